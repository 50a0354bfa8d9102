"""Linears that read the same integers: which of them one kernel can compute, and why not the others."""

from __future__ import annotations

import contextlib
import operator
from collections import Counter
from collections.abc import Container, Iterable
from typing import Any, Final, cast

import attrs
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ...ir.aliasing import aliased_inputs, written_inputs
from ...ir.attributes import constants, get_tensor
from ...matchers.operator_pattern import Refusal
from .prepack import QLINEAR_PREPACK

__all__ = ["BIAS", "WEIGHT", "ParallelLinears", "Slices", "parallel_linears", "parameters"]

_aten = torch.ops.aten
_qlinear = torch.ops.onednn.qlinear_pointwise
_LINEARS: Final = (_qlinear.default, _qlinear.tensor)
WEIGHT: Final = 3
"""The position of the packed weight; its scales and zero points are behind it."""
BIAS: Final = 6
"""The position of the bias."""
_RESULT: Final = 9
"""The position of the dtype of the result."""
_VIEWS: Final = frozenset(
    {
        operator.getitem,
        _aten.alias.default,
        _aten.chunk.default,
        _aten.contiguous.default,
        _aten.detach.default,
        _aten.expand.default,
        _aten.flatten.using_ints,
        _aten.permute.default,
        _aten.reshape.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.t.default,
        _aten.to.dtype,
        _aten.transpose.int,
        _aten.unbind.int,
        _aten.unflatten.int,
        _aten.unsqueeze.default,
        _aten.view.default,
    }
)
"""Views whose values do not depend on how their input lies in memory, as those of ``as_strided`` do."""


@attrs.frozen
class ParallelLinears:
    """What there is to merge in a graph.

    Args:
        groups: calls that one kernel can compute, with what each is of its result.
        refused: calls that read the integers that others read as well, and each is by itself; why.
    """

    groups: list[tuple[list[Node], Slices]]
    refused: dict[Node, Refusal]


def parallel_linears(gm: GraphModule) -> ParallelLinears:
    """Find the linears that read the same integers, differ in weight and bias only, and give floats."""
    constant = constants(gm.graph)
    calls = [node for node in gm.graph.nodes if node.target in _LINEARS]
    readers_of = Counter(call.args[:WEIGHT] for call in calls)
    refused: dict[Node, Refusal] = {}
    alike: dict[tuple[object, ...], list[Node]] = {}
    for call in calls:
        if readers_of[call.args[:WEIGHT]] > 1:
            refusal = _own_scale(call) or _weight_form(gm, call, constant)
            if refusal is None:
                key = (call.target, *call.args[:WEIGHT], *map(str, call.args[BIAS + 1 :]))
                alike.setdefault(key, []).append(call)
            else:
                refused[call] = refusal
    groups: list[tuple[list[Node], Slices]] = []
    elsewhere = _read_elsewhere(gm.graph, [group for group in alike.values() if len(group) > 1])
    for group in alike.values():
        found = Slices.of(group) if len(group) > 1 else Refusal("not-merged-different")
        read = next((name for name in _weights(group) if name in elsewhere), None)
        if read is not None:
            found = Refusal("not-merged-weight-shared", f"{read} is read elsewhere too")
        if isinstance(found, Slices):
            groups.append((group, found))
        else:
            refused |= dict.fromkeys(group, found)
    return ParallelLinears(groups, refused)


def _own_scale(call: Node) -> Refusal | None:
    dtype = cast(torch.dtype, call.args[_RESULT])
    return None if dtype.is_floating_point else Refusal("not-merged-own-scale")


def _weight_form(gm: GraphModule, call: Node, constant: Container[Node]) -> Refusal | None:
    packed, *others = call.args[WEIGHT : BIAS + 1]
    assert isinstance(packed, Node)
    stored = [node for node in (packed.args[0], *others) if isinstance(node, Node)]
    if packed.target is QLINEAR_PREPACK and all(node in constant for node in stored):
        weight, scales = (get_tensor(gm, str(node.target)) for node in stored[:2])
        if weight.shape[:1] == scales.shape:
            return None
    return Refusal("not-merged-weight-form")


def _read_elsewhere(graph: Graph, groups: Iterable[list[Node]]) -> set[str]:
    """The weights of ``groups`` that others read as well, of which a second copy would be stored."""
    together = Counter(map(_weights, groups))
    within: dict[str, list[int]] = {}
    for targets, times in together.items():
        for target in targets:
            within.setdefault(target, []).append(times * targets.count(target))
    readers = _readers(graph, within)
    return {target for target, counts in within.items() if any(readers[target] != n for n in counts)}


def _weights(calls: list[Node]) -> tuple[str, ...]:
    return tuple(str(parameters(call)[0].target) for call in calls)


def _readers(graph: Graph, targets: Iterable[str]) -> Counter[str]:
    """How many calls read each of the weights ``targets``."""
    found = Counter(dict.fromkeys(targets, 0))
    for node in graph.find_nodes(op="get_attr"):
        if node.target in found:
            packs = [len(user.users) if user.target is QLINEAR_PREPACK else 1 for user in node.users]
            found[str(node.target)] += sum(packs)
    return found


def parameters(call: Node) -> tuple[Node, Node, Node]:
    """Weight, scales, zero points."""
    packed, scales, zero_points = call.args[WEIGHT:BIAS]
    return cast("tuple[Node, Node, Node]", (cast(Node, packed).args[0], scales, zero_points))


@attrs.frozen
class Slices:
    """What the values of linears are as slices of one result, and those of the views of them."""

    whole: FakeTensor
    parts: tuple[FakeTensor, ...]
    views: dict[Node, Any]

    @staticmethod
    def of(calls: list[Node]) -> Slices | Refusal:
        """The slices that ``calls`` give, or why one of the readers cannot do with them."""
        x, packed = calls[0].args[0], [cast(Node, call.args[WEIGHT]) for call in calls]
        inputs = x.meta.get("val") if isinstance(x, Node) else None
        if not isinstance(inputs, FakeTensor):
            return Refusal("shape-unknown")
        sizes = [cast(Node, pack.args[0]).meta["val"].shape[0] for pack in packed]
        dtype = cast(torch.dtype, calls[0].args[_RESULT])
        with inputs.fake_mode:
            whole = torch.empty((*inputs.shape[:-1], sum(sizes)), dtype=dtype, device=inputs.device)
            parts = whole.split(sizes, -1)
        views: dict[Node, Any] = {}
        for call, part in zip(calls, parts, strict=True):
            refusal = _follow(call, part, views)
            if refusal is not None:
                return refusal
        return Slices(cast(FakeTensor, whole), cast("tuple[FakeTensor, ...]", parts), views)


def _follow(node: Node, value: Any, views: dict[Node, Any]) -> Refusal | None:
    """Why a reader of ``node`` cannot do with ``value``; the views among the readers go to ``views``."""
    for user in node.users:
        refusal = None
        if user.op == "output":
            refusal = Refusal("not-merged-returned", f"the model returns %{node.name}")
        elif node in written_inputs(user):
            refusal = Refusal("not-merged-reader", f"%{user.name} ({user.target}) writes into %{node.name}")
        elif node in aliased_inputs(user):
            refusal = _view(user, node, value, views) or _follow(user, views[user], views)
        if refusal is not None:
            return refusal
    return None


def _view(user: Node, node: Node, value: Any, views: dict[Node, Any]) -> Refusal | None:
    """Put into ``views`` what ``user`` is where ``node`` is ``value``, or say why it is nothing."""
    if user.op == "call_function" and user.target in _VIEWS:
        known = {node: value} | {
            n: views.get(n, n.meta.get("val")) for n in user.all_input_nodes if n is not node
        }
        if any(each is None for each in known.values()):
            return Refusal("shape-unknown")
        args, kwargs = map_arg((user.args, user.kwargs), known.__getitem__)
        assert callable(user.target)
        # Of memory that has gaps there may be no such view.
        with contextlib.suppress(RuntimeError, ValueError):
            views[user] = user.target(*args, **kwargs)
            return None
    return Refusal("not-merged-reader", f"%{user.name} ({user.target}) needs all memory of %{node.name}")
