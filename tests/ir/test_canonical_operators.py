"""One name for each operator: what becomes canonical, that it computes the same, and what does not."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit.ir.aliasing import find_aliases
from lowbit.ir.canonical_operators import ALIASES, canonical_call, canonical_name
from lowbit.ir.schema import complete_arguments, operator_name, schema_of
from torch import Tensor, nn
from torch.fx import GraphModule

aten = torch.ops.aten
X, Y = torch.linspace(-8, 8, 24).reshape(2, 3, 4), torch.linspace(1, 5, 24).reshape(2, 3, 4)

# Each as a model may write it, and the operators that it is canonically.
WRITTEN: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[Any]]] = {
    "concat": (lambda x, y: torch.concat([x, y], 1), [aten.cat.default]),
    "concatenate": (lambda x, y: torch.concatenate([x, y], -1), [aten.cat.default]),
    "multiply": (torch.multiply, [aten.mul.Tensor]),
    "multiply by a number": (lambda x, y: x.multiply(3), [aten.mul.Tensor]),
    "in place": (lambda x, y: (x + 1).multiply_(y), [aten.add.Tensor, aten.mul_.Tensor]),
    "subtract": (lambda x, y: torch.subtract(x, y, alpha=2), [aten.sub.Tensor]),
    "true_divide": (torch.true_divide, [aten.div.Tensor]),
    "divide": (torch.divide, [aten.div.Tensor]),
    "divide, rounding": (lambda x, y: torch.divide(x, y, rounding_mode="floor"), [aten.div.Tensor_mode]),
    "swapaxes": (lambda x, y: torch.swapaxes(x, 1, -1), [aten.transpose.int]),
    "swapdims": (lambda x, y: x.swapdims(0, 2), [aten.transpose.int]),
    "moveaxis": (lambda x, y: torch.moveaxis(x, 0, 2), [aten.permute.default]),
    "moveaxis, several": (lambda x, y: x.moveaxis((0, -1), (1, 0)), [aten.permute.default]),
    "movedim": (lambda x, y: torch.movedim(x, -1, 0), [aten.permute.default]),
    "T": (lambda x, y: x[0].T, [aten.select.int, aten.transpose.int]),
    "mT": (lambda x, y: x.mT, [aten.transpose.int]),
    "t": (lambda x, y: x[0].t(), [aten.select.int, aten.transpose.int]),
    "adjoint": (lambda x, y: x.adjoint(), [aten.transpose.int]),
    "H": (lambda x, y: x[0].H, [aten.select.int, aten.transpose.int]),
    "clip": (lambda x, y: torch.clip(x, 0, 6), [aten.clamp.default]),
    "relu6": (lambda x, y: F.relu6(x), [aten.hardtanh.default]),
    "relu6 in place": (lambda x, y: F.relu6(x + 1, True), [aten.add.Tensor, aten.hardtanh_.default]),
    "broadcast_to": (lambda x, y: x.broadcast_to(5, 2, 3, 4), [aten.expand.default]),
    "narrow": (lambda x, y: x.narrow(1, 1, 2), [aten.slice.Tensor]),
    "absolute": (lambda x, y: torch.absolute(x), [aten.abs.default]),
    "negative": (lambda x, y: -torch.negative(x), [aten.neg.default, aten.neg.default]),
    "special_expit": (lambda x, y: torch.special.expit(x), [aten.sigmoid.default]),
    "comparisons": (lambda x, y: torch.greater(x, y) & torch.not_equal(x, 0), [
        aten.gt.Tensor, aten.ne.Scalar, aten.__and__.Tensor,
    ]),
    # Nearly the same is not the same.
    "clamp": (lambda x, y: x.clamp(0, 6), [aten.clamp.default]),
    "clamp_min": (lambda x, y: x.clamp_min(0), [aten.clamp_min.default]),
    "narrow from the end": (lambda x, y: x.narrow(1, -2, 2), [aten.narrow.default]),
    "t of a vector": (lambda x, y: x[0, 0].t(), [aten.select.int, aten.select.int, aten.t.default]),
    "reshape_as": (lambda x, y: x.reshape_as(y), [aten.reshape_as.default]),
}  # fmt: skip


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(x, y)


def export(function: Callable[[Tensor, Tensor], Any], *, strict: bool = False) -> GraphModule:
    exported = torch.export.export(Calls(function), (X, Y), strict=strict).module()
    assert isinstance(exported, GraphModule)
    return exported


def canonical(gm: GraphModule) -> list[bool]:
    """Make the calls of ``gm`` canonical; whether each one said that it changed."""
    changed = []
    for node in gm.graph.nodes:
        complete_arguments(node)
        call = canonical_call(node)
        changed.append(call is not None)
        if call is not None:
            node.target, node.args, node.kwargs = call
    gm.graph.lint()
    gm.recompile()
    return changed


@pytest.mark.parametrize(
    ("name", "strict"),
    [*((name, False) for name in WRITTEN), ("concat", True), ("in place", True), ("T", True)],
)
def test_what_is_written_in_many_ways(name: str, strict: bool) -> None:
    function, operators = WRITTEN[name]
    gm = export(function, strict=strict)
    before = [node.target for node in gm.graph.nodes]
    canonical(gm)
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == operators
    assert torch.equal(gm(X, Y), function(X, Y))
    # Once is enough.
    assert canonical(gm) == [False] * len(before)


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("comparisons",)])
def test_gradients_are_the_same(name: str) -> None:
    function, _ = WRITTEN[name]
    gm = export(function)
    canonical(gm)
    # On both ends of what relu6 keeps, too.
    x = torch.cat([X.flatten()[:-2], torch.tensor([0.0, 6.0])]).reshape(X.shape)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.linspace(0.5, 2, function(X, Y).numel())
    (gm(ours, Y).flatten() * weights).sum().backward()
    (function(theirs, Y).flatten() * weights).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["T", "mT", "movedim", "narrow", "swapaxes", "broadcast_to"])
def test_views_stay_views(name: str) -> None:
    gm = export(WRITTEN[name][0])
    canonical(gm)
    x = X.clone()
    assert gm(x, Y).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    aliases = find_aliases(gm.graph)
    first, *_, last = (n for n in gm.graph.nodes if n.op in ("placeholder", "call_function"))
    assert aliases.group(first) == aliases.group(last)


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_has_the_schema_of_what_it_stands_for(name: str) -> None:
    """If torch changes one of the two, this says so."""
    found = 0
    for suffix in ("", "_"):
        packet = getattr(aten, name + suffix, None)
        for overload in packet.overloads() if packet is not None else ():
            ours = getattr(packet, overload)
            kept = getattr(getattr(aten, ALIASES[name] + suffix), overload)
            assert types_of(ours) == types_of(kept), overload
            found += 1
    assert found
    assert canonical_name(name) == canonical_name(f"{name}_") == canonical_name(ALIASES[name])


def types_of(op: Any) -> list[tuple[str, bool]]:
    """Types of arguments and results, and whether arguments are keyword-only; names may differ."""
    schema = schema_of(op)
    return [
        *((str(a.real_type), a.kwarg_only) for a in schema.arguments),
        *((str(r.real_type), False) for r in schema.returns),
    ]


def test_complex_tensors_are_not_transposed_for_conjugated() -> None:
    gm = torch.export.export(Calls(lambda x, y: x.mH), (X + 1j * Y, Y)).module()
    canonical(gm)
    assert torch.equal(gm(X + 1j * Y, Y), (X + 1j * Y).mH)


def test_other_calls_and_other_namespaces_are_left_alone() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    pair = graph.call_function(aten.split.Tensor, (x, 1, 0))
    graph.output(graph.call_function(operator.getitem, (pair, 0)))
    assert not any(canonical_call(node) for node in graph.nodes)
    assert operator_name(aten.split.Tensor)[1] == canonical_name("split")
