"""``merge-linears``: one kernel for the linears that read the same integers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar, Final, cast

import attrs
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ...ir.aliasing import aliased_inputs, written_inputs
from ...ir.attributes import FreeNames, delete_unused, get_tensor, is_constant, set_tensor
from ...ir.meta import ID_KEY, KERNEL_KEY, ORIGIN_KEY, STANDS_FOR_KEY
from ...ir.stages import Stage
from ...ir.sweep import erase_unread
from ...passes import PassContext, register_pass
from .prepack import QLINEAR_PREPACK

__all__ = ["MergeLinears"]

_qlinear = torch.ops.onednn.qlinear_pointwise
_LINEARS: Final = (_qlinear.default, _qlinear.tensor)
_WEIGHT, _BIAS, _RESULT = 3, 6, 9
"""Positions of the packed weight, with its scales and zero points behind it, of the bias, and of the dtype of
the result."""
_OWN: Final = frozenset({ID_KEY, KERNEL_KEY, ORIGIN_KEY})
"""What is not of a slice but of the linear it stands for."""


@register_pass
@attrs.frozen
class MergeLinears:
    """Lets one kernel compute linears of one input, for example the query, key and value of attention.

    It reads its input once, has larger matrices to multiply and costs one call; the weights are laid one
    behind the other, and each reader gets its slice of the result. The numbers are the same: each output
    feature is summed up by itself, in integers.

    Linears whose result is quantized stay as they are, because a kernel has one scale for its whole result,
    and so do those of which a reader cannot do with a slice: views that need dense memory, operators that
    write, and the caller of the model.
    """

    name: ClassVar[str] = "merge-linears"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.LOWERED})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Merge in place."""
        names = FreeNames(gm)
        merged = False
        for calls in _parallel(gm):
            slices = _Slices.of(calls)
            if slices is not None and context.allows("merge", calls[0]):
                _merge(gm, calls, slices, names, context)
                merged = True
        if merged:
            erase_unread(gm.graph)
            delete_unused(gm)
        return merged


def _parallel(gm: GraphModule) -> Iterator[list[Node]]:
    """Linears that differ in weight and bias only, and give floats."""
    constant = functools.cache(is_constant)
    groups: dict[tuple[object, ...], list[Node]] = {}
    for node in gm.graph.nodes:
        if (
            node.target in _LINEARS
            and node.args[_RESULT].is_floating_point
            and _is_mergeable(gm, node, constant)
        ):
            given = (*node.args[:_WEIGHT], *map(str, node.args[_BIAS + 1 :]))
            groups.setdefault((node.target, *given), []).append(node)
    yield from (calls for calls in groups.values() if len(calls) > 1)


def _is_mergeable(gm: GraphModule, call: Node, constant: Any) -> bool:
    packed, *parameters = call.args[_WEIGHT : _BIAS + 1]
    assert isinstance(packed, Node)
    stored = [node for node in (packed.args[0], *parameters) if isinstance(node, Node)]
    if packed.target is not QLINEAR_PREPACK or not all(map(constant, stored)):
        return False
    weight, scales = (get_tensor(gm, str(node.target)) for node in stored[:2])
    return weight.shape[:1] == scales.shape


@attrs.frozen
class _Slices:
    """What the values of linears are as slices of one result, and those of the views of them."""

    whole: FakeTensor
    parts: tuple[FakeTensor, ...]
    views: dict[Node, Any]

    @staticmethod
    def of(calls: list[Node]) -> _Slices | None:
        """None where one of the readers cannot do with a slice."""
        x, packed = calls[0].args[0], [cast(Node, call.args[_WEIGHT]) for call in calls]
        inputs = x.meta.get("val") if isinstance(x, Node) else None
        if not isinstance(inputs, FakeTensor):
            return None
        sizes = [cast(Node, pack.args[0]).meta["val"].shape[0] for pack in packed]
        dtype = cast(torch.dtype, calls[0].args[_RESULT])
        with inputs.fake_mode:
            whole = torch.empty((*inputs.shape[:-1], sum(sizes)), dtype=dtype, device=inputs.device)
            parts = whole.split(sizes, -1)
        views: dict[Node, Any] = {}
        if all(_follow(call, part, views) for call, part in zip(calls, parts, strict=True)):
            return _Slices(cast(FakeTensor, whole), cast("tuple[FakeTensor, ...]", parts), views)
        return None


def _follow(node: Node, value: Any, views: dict[Node, Any]) -> bool:
    """Whether the readers of ``node`` can do with ``value``; the views among them go to ``views``."""
    for user in node.users:
        if user.op != "call_function" or node in written_inputs(user):
            return False
        if node not in aliased_inputs(user):
            continue
        known = {node: value} | {
            n: views.get(n, n.meta.get("val")) for n in user.all_input_nodes if n is not node
        }
        if any(each is None for each in known.values()):
            return False
        args, kwargs = map_arg((user.args, user.kwargs), known.__getitem__)
        assert callable(user.target)
        try:
            views[user] = user.target(*args, **kwargs)
        except (RuntimeError, ValueError):
            # A view of memory that has gaps.
            return False
        if not _follow(user, views[user], views):
            return False
    return True


def _merge(
    gm: GraphModule, calls: list[Node], slices: _Slices, names: FreeNames, context: PassContext
) -> None:
    first, graph = calls[0], gm.graph
    packed = cast(Node, first.args[_WEIGHT])
    with graph.inserting_before(first):
        stored = [_joined(gm, column, names) for column in zip(*map(_parameters, calls), strict=True)]
        weight, *parameters = stored
        bias = _joined_biases(gm, calls, slices, names)
        pack = graph.call_function(QLINEAR_PREPACK, (weight, *packed.args[1:]))
        pack.meta = dict(packed.meta)
        arguments = (*first.args[:_WEIGHT], pack, *parameters, bias, *first.args[_BIAS + 1 :])
        whole = graph.call_function(cast(Any, first.target), arguments)
        whole.meta = {k: v for k, v in first.meta.items() if k != STANDS_FOR_KEY} | {"val": slices.whole}
        start = 0
        for call, value in zip(calls, slices.parts, strict=True):
            end = start + value.shape[-1]
            part = graph.call_function(torch.ops.aten.slice.Tensor, (whole, -1, start, end))
            part.meta = {k: v for k, v in call.meta.items() if k not in _OWN}
            part.meta |= {"val": value, STANDS_FOR_KEY: call.name}
            context.ledger.moved(call.name, whole.name)
            call.replace_all_uses_with(part)
            start = end
    for node, value in slices.views.items():
        node.meta["val"] = value
    for call in calls:
        graph.erase_node(call)


def _parameters(call: Node) -> tuple[Node, ...]:
    """Weight, scales, zero points."""
    packed, scales, zero_points = call.args[_WEIGHT:_BIAS]
    return tuple(cast("list[Node]", [cast(Node, packed).args[0], scales, zero_points]))


def _joined(gm: GraphModule, nodes: tuple[Node, ...], names: FreeNames) -> Node:
    """The constants of ``nodes``, one behind the other."""
    tensors = [get_tensor(gm, str(node.target)).detach() for node in nodes]
    return _constant(gm, nodes[0], torch.cat(tensors), names)


def _joined_biases(gm: GraphModule, calls: list[Node], slices: _Slices, names: FreeNames) -> Node | None:
    given = [call.args[_BIAS] for call in calls]
    like = next((bias for bias in given if isinstance(bias, Node)), None)
    if like is None:
        return None
    tensors = [
        get_tensor(gm, str(bias.target)).detach()
        if isinstance(bias, Node)
        else torch.zeros(part.shape[-1], dtype=torch.float32)
        for bias, part in zip(given, slices.parts, strict=True)
    ]
    return _constant(gm, like, torch.cat(tensors), names)


def _constant(gm: GraphModule, like: Node, tensor: torch.Tensor, names: FreeNames) -> Node:
    target = names.fresh(f"{like.target}_merged")
    set_tensor(gm, target, tensor)
    graph: Graph = gm.graph
    new = graph.get_attr(target)
    new.meta = dict(like.meta)
    value = like.meta.get("val")
    if isinstance(value, FakeTensor):
        with value.fake_mode:
            new.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return new
