"""Agreement of observers between the processes of ``DistributedDataParallel``.

Each rank sees its own part of a batch. Without agreement each would find another scale, and the ranks would
train different models. What is shared here is the statistic of a step, so that it is that of the union of all
ranks' data, whatever way they are divided.

torch says which ``DistributedDataParallel`` is running in the private ``_get_active_ddp_module`` (and
``_join_config``); ``tests/ir/observers/test_distributed.py`` says when they move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import UnsupportedError

if TYPE_CHECKING:  # some builds of torch have no torch.distributed
    from torch.distributed import ProcessGroup

__all__ = ["extremes_of_all_ranks", "running_group", "sum_of_all_ranks"]


def running_group() -> ProcessGroup | None:
    """The process group of the ``DistributedDataParallel`` whose forward is running; None outside of one.

    Raises:
        UnsupportedError: it runs under ``join()``, where ranks without data take part in no collective of the
            model's own.
    """
    running = torch.nn.parallel.DistributedDataParallel._get_active_ddp_module()
    if running is None:
        return None
    if running._join_config.enable:
        raise UnsupportedError(
            "an observer was run under DistributedDataParallel.join(), where ranks have different numbers of "
            "batches",
            hint="give each rank as many batches, or train with disabled observers: "
            "model.apply(disable_observer)",
        )
    return running.process_group


def extremes_of_all_ranks(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest ``low`` and the largest ``high`` of all ranks; outside of a distributed forward, these.

    NaN counts as infinite, since reductions lose it: every rank sees that one of them met bad data.
    """
    group = running_group()
    if group is None:
        return low, high
    infinity = float("inf")
    both = torch.stack((-low, high)).nan_to_num(infinity, infinity, -infinity)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX, group=group)
    return -both[0], both[1]


def sum_of_all_ranks(counts: Tensor) -> Tensor:
    """The sum of ``counts`` over all ranks; outside of a distributed forward, ``counts``."""
    group = running_group()
    if group is None:
        return counts
    total = counts.clone()
    torch.distributed.all_reduce(total, torch.distributed.ReduceOp.SUM, group=group)
    return total
