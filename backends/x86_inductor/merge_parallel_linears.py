"""``merge-parallel-linears``: one kernel for the linears that read the same integers."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
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
from ...passes.contracts import EXACT, Contract
from .prepack import QLINEAR_PREPACK

__all__ = ["MergeParallelLinears"]

_aten = torch.ops.aten
_qlinear = torch.ops.onednn.qlinear_pointwise
_LINEARS: Final = (_qlinear.default, _qlinear.tensor)
_WEIGHT, _BIAS, _RESULT = 3, 6, 9
"""Positions of the packed weight, with its scales and zero points behind it, of the bias, and of the dtype of
the result."""
_OWN: Final = frozenset({ID_KEY, KERNEL_KEY, ORIGIN_KEY})
"""What is not of a slice but of the linear it stands for."""
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


@register_pass
@attrs.frozen
class MergeParallelLinears:
    """Lets one kernel compute linears of one input, for example the query, key and value of attention.

    It reads its input once, has larger matrices to multiply and costs one call; the weights are laid one
    behind the other, and each reader gets its slice of the result. The numbers are the same: each output
    feature is summed up by itself, in integers.

    Linears whose result is quantized stay as they are, because a kernel has one scale for its whole result,
    and so do those of which a reader cannot do with a slice: views that need dense memory, operators that
    write, and the caller of the model.
    """

    name: ClassVar[str] = "merge-parallel-linears"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.LOWERED})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = EXACT

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Merge in place."""
        constants = _Constants(gm)
        runs_at: dict[str, str] = {}
        for calls in _parallel(gm):
            slices = _Slices.of(calls)
            if slices is not None and context.allows("merge", calls[0]):
                runs_at |= _merge(gm.graph, calls, slices, constants)
        if runs_at:
            context.ledger.moved(runs_at)
            erase_unread(gm.graph)
            delete_unused(gm)
        return bool(runs_at)


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
    parallel = [calls for calls in groups.values() if len(calls) > 1]
    together = Counter(map(_weights, parallel))
    readers = _readers(gm.graph, {target for targets in together for target in targets})
    for calls in parallel:
        targets = _weights(calls)
        # Of a weight that others read as well, a second copy would be stored.
        if all(readers[target] == together[targets] * targets.count(target) for target in targets):
            yield calls


def _weights(calls: list[Node]) -> tuple[str, ...]:
    return tuple(str(_parameters(call)[0].target) for call in calls)


def _readers(graph: Graph, targets: set[str]) -> Counter[str]:
    """How many calls read each of the weights ``targets``."""
    found: Counter[str] = Counter()
    for node in graph.find_nodes(op="get_attr"):
        if node.target in targets:
            packs = [len(user.users) if user.target is QLINEAR_PREPACK else 1 for user in node.users]
            found[str(node.target)] += sum(packs)
    return found


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
        if user.target not in _VIEWS:
            return False
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


def _merge(graph: Graph, calls: list[Node], slices: _Slices, constants: _Constants) -> dict[str, str]:
    """Put one call in place of ``calls``; which call each runs at now, by name."""
    first = calls[0]
    packed = cast(Node, first.args[_WEIGHT])
    with graph.inserting_before(first):
        weight, scales, zero_points = map(constants.joined, zip(*map(_parameters, calls), strict=True))
        biases = [cast("Node | None", call.args[_BIAS]) for call in calls]
        bias = constants.joined(biases, [part.shape[-1] for part in slices.parts]) if any(biases) else None
        pack = graph.call_function(QLINEAR_PREPACK, (weight, *packed.args[1:]))
        pack.meta = dict(packed.meta)
        arguments = (*first.args[:_WEIGHT], pack, scales, zero_points, bias, *first.args[_BIAS + 1 :])
        whole = graph.call_function(cast(Any, first.target), arguments)
        whole.meta = {k: v for k, v in first.meta.items() if k != STANDS_FOR_KEY} | {"val": slices.whole}
        start = 0
        for call, value in zip(calls, slices.parts, strict=True):
            end = start + value.shape[-1]
            part = graph.call_function(_aten.slice.Tensor, (whole, -1, start, end))
            part.meta = {k: v for k, v in call.meta.items() if k not in _OWN}
            part.meta |= {"val": value, STANDS_FOR_KEY: call.name}
            call.replace_all_uses_with(part)
            start = end
    for node, value in slices.views.items():
        node.meta["val"] = value
    for call in calls:
        graph.erase_node(call)
    return {call.name: whole.name for call in calls}


def _parameters(call: Node) -> tuple[Node, Node, Node]:
    """Weight, scales, zero points."""
    packed, scales, zero_points = call.args[_WEIGHT:_BIAS]
    return cast("tuple[Node, Node, Node]", (cast(Node, packed).args[0], scales, zero_points))


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
        new = self._gm.graph.get_attr(target)
        new.meta = {k: v for k, v in like.meta.items() if k not in _OWN}
        value = like.meta.get("val")
        if isinstance(value, FakeTensor):
            with value.fake_mode:
                new.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        return new
