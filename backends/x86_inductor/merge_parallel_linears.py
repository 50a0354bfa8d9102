"""``merge-parallel-linears``: one kernel for the linears that read the same integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, cast

import attrs
import torch
from torch.fx import Graph, GraphModule, Node

from ...ir.attributes import FreeNames, delete_unused, get_tensor, set_tensor
from ...ir.meta import ID_KEY, KERNEL_KEY, ORIGIN_KEY, STANDS_FOR_KEY
from ...ir.reasons import REASONS
from ...ir.stages import Stage
from ...ir.sweep import erase_unread
from ...passes import PassContext, register_pass
from ...passes.contracts import EXACT, Contract
from .operands import constant_like
from .parallel_linears import BIAS, WEIGHT, Slices, parallel_linears, parameters
from .prepack import QLINEAR_PREPACK

__all__ = ["MergeParallelLinears"]

_OWN: Final = frozenset({ID_KEY, KERNEL_KEY, ORIGIN_KEY})
"""What is not of a slice but of the linear it stands for."""


@register_pass
@attrs.frozen
class MergeParallelLinears:
    """Lets one kernel compute linears of one input, for example the query, key and value of attention.

    It reads its input once, has larger matrices to multiply and costs one call; the weights are laid one
    behind the other, and each reader gets its slice of the result. The numbers are the same: each output
    feature is summed up by itself, in integers.

    Linears whose result is quantized stay as they are, because a kernel has one scale for its whole result,
    and so do those of which a reader cannot do with a slice: views that need dense memory, operators that
    write, and the caller of the model. Decisions about linears that stay as they are, beside others of their
    input, have a note that says why.
    """

    name: ClassVar[str] = "merge-parallel-linears"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.LOWERED})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = EXACT

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Merge in place."""
        constants = _Constants(gm)
        runs_at: dict[str, str] = {}
        found = parallel_linears(gm)
        for calls, slices in found.groups:
            if context.allows("merge", calls[0]):
                runs_at |= _merge(gm.graph, calls, slices, constants)
        context.ledger.noted(
            {
                call.name: (refusal.reason, f"by itself: {refusal.detail or REASONS[refusal.reason].meaning}")
                for call, refusal in found.refused.items()
            }
        )
        if runs_at:
            context.ledger.moved(runs_at)
            erase_unread(gm.graph)
            delete_unused(gm)
        return bool(runs_at)


def _merge(graph: Graph, calls: list[Node], slices: Slices, constants: _Constants) -> dict[str, str]:
    """Put one call in place of ``calls``; which call each runs at now, by name."""
    first = calls[0]
    packed = cast(Node, first.args[WEIGHT])
    with graph.inserting_before(first):
        weight, scales, zero_points = map(constants.joined, zip(*map(parameters, calls), strict=True))
        biases = [cast("Node | None", call.args[BIAS]) for call in calls]
        bias = constants.joined(biases, [part.shape[-1] for part in slices.parts]) if any(biases) else None
        pack = graph.call_function(QLINEAR_PREPACK, (weight, *packed.args[1:]))
        pack.meta = dict(packed.meta)
        arguments = (*first.args[:WEIGHT], pack, scales, zero_points, bias, *first.args[BIAS + 1 :])
        whole = graph.call_function(cast(Any, first.target), arguments)
        whole.meta = {k: v for k, v in first.meta.items() if k != STANDS_FOR_KEY} | {"val": slices.whole}
        start = 0
        for call, value in zip(calls, slices.parts, strict=True):
            end = start + value.shape[-1]
            part = graph.call_function(torch.ops.aten.slice.Tensor, (whole, -1, start, end))
            part.meta = {k: v for k, v in call.meta.items() if k not in _OWN}
            part.meta |= {"val": value, STANDS_FOR_KEY: call.name}
            call.replace_all_uses_with(part)
            start = end
    for node, value in slices.views.items():
        node.meta["val"] = value
    for call in calls:
        graph.erase_node(call)
    return {call.name: whole.name for call in calls}


class _Constants:
    """The constants of linears, one behind the other: once for a layer that is called several times."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._names = FreeNames(gm)
        self._made: dict[tuple[str, ...], Node] = {}

    def joined(self, nodes: Sequence[Node | None], sizes: Sequence[int] = ()) -> Node:
        """A node that reads all of ``nodes``; where one is None, it reads zeros, as many as ``sizes`` say."""
        key = tuple("" if node is None else str(node.target) for node in nodes)
        if key not in self._made:
            tensors = [
                torch.zeros(sizes[i]) if node is None else get_tensor(self._gm, str(node.target)).detach()
                for i, node in enumerate(nodes)
            ]
            like = next(node for node in nodes if node is not None)
            self._made[key] = self._stored(torch.cat(tensors), like)
        return self._made[key]

    def _stored(self, tensor: torch.Tensor, like: Node) -> Node:
        target = self._names.fresh(f"{like.target}_merged")
        set_tensor(self._gm, target, tensor)
        return constant_like(self._gm.graph, target, tensor, like)
