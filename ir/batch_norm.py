"""BatchNorm calls in graphs: taking one apart, and seeing whether it can be folded into what feeds it."""

from __future__ import annotations

import operator
from typing import cast

import attrs
import torch
from torch.fx import Node

from .location import target_text
from .schema import OpOverload, argument, signature

__all__ = ["BATCH_NORMS", "PRODUCERS", "Norm", "NotFoldable", "producer_layout", "read_norm"]

_aten = torch.ops.aten

BATCH_NORMS: tuple[OpOverload, ...] = (
    _aten.batch_norm.default,
    _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default,
    _aten._native_batch_norm_legit.default,
    _aten._native_batch_norm_legit.no_stats,
    _aten._native_batch_norm_legit_no_training.default,
    _aten._batch_norm_no_update.default,
)

_TRANSPOSED: frozenset[OpOverload] = frozenset(
    {_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input}
)
PRODUCERS: frozenset[OpOverload] = _TRANSPOSED | {
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.conv3d.default,
    _aten.conv3d.padding,
    _aten.convolution.default,
    _aten.linear.default,
}
"""What a BatchNorm can be folded into: the products of a weight."""


@attrs.define
class NotFoldable(Exception):  # noqa: N818  (a verdict, not an error: passes enter it in the ledger)
    """Why a BatchNorm stays: a reason code and a sentence."""

    reason: str
    detail: str


@attrs.frozen
class Norm:
    """A BatchNorm: its call, the node that is its normalized output, and its arguments."""

    call: Node
    output: Node
    source: Node
    weight: Node | None
    bias: Node | None
    mean: Node
    var: Node
    eps: float
    training: bool
    """Whether it normalizes with the statistics of the batch, and updates the running ones."""


def read_norm(call: Node) -> Norm:
    """Take a BatchNorm call apart.

    Raises:
        NotFoldable: it has no running statistics, or more than its normalized output is read.
    """
    positional = signature(cast("OpOverload", call.target)).positional
    training = any(
        argument(call, name) is not False for name in ("training", "use_input_stats") if name in positional
    )
    mean = argument(call, "running_mean") if "running_mean" in positional else None
    var = argument(call, "running_var") if "running_var" in positional else None
    if mean is None or var is None:
        raise NotFoldable("batch-statistics", "it has no running statistics")

    output = call
    if call.target is not _aten.batch_norm.default:
        outputs = {user.args[1]: user for user in call.users if user.target is operator.getitem}
        if len(outputs) != len(call.users) or set(outputs) != {0}:
            raise NotFoldable("statistics-read", "its other outputs are read, or one is read several times")
        output = outputs[0]
    return Norm(
        call=call,
        output=output,
        source=cast("Node", call.args[0]),
        weight=cast("Node | None", argument(call, "weight")),
        bias=cast("Node | None", argument(call, "bias")),
        mean=cast("Node", mean),
        var=cast("Node", var),
        eps=cast(float, argument(call, "eps" if "eps" in positional else "epsilon")),
        training=training,
    )


def producer_layout(producer: Node, norm: Norm) -> tuple[int, bool]:
    """Groups of the producer's weight, and whether its axes are those of a transposed convolution.

    Raises:
        NotFoldable: ``producer`` is no convolution or linear, is read elsewhere, or the channels of BatchNorm
            (axis 1) are not those it puts out.
    """
    target = producer.target
    weight = argument(producer, "weight") if target in PRODUCERS else None
    value, shape = producer.meta.get("val"), weight.meta.get("val") if isinstance(weight, Node) else None
    if not isinstance(value, torch.Tensor) or not isinstance(shape, torch.Tensor) or shape.ndim < 2:
        raise NotFoldable("not-after-convolution", f"its input is {target_text(producer.target)}")
    if len(producer.users) != 1:
        raise NotFoldable("several-users", f"the output of {producer.name} is also read elsewhere")
    # Without a batch dimension, the channels of a convolution are on axis 0; those of linear are on the last.
    if value.ndim != shape.ndim:
        raise NotFoldable("channel-axis", f"axis 1 of the {value.ndim}-d input does not hold the channels")
    normalized = norm.output.meta.get("val")
    if isinstance(normalized, torch.Tensor) and normalized.dtype != value.dtype:
        raise NotFoldable("not-floating-point", f"it turns {value.dtype} into {normalized.dtype}")
    if target is _aten.linear.default:
        return 1, False
    transposed = target in _TRANSPOSED or (
        target is _aten.convolution.default and argument(producer, "transposed") is True
    )
    return cast(int, argument(producer, "groups")), transposed
