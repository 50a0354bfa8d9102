"""Numeric verification looks into bodies: what breaks there is named, and what does not break passes."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import ClassVar

import attrs
import pytest
import torch
from lowbit import Pipeline, Stage
from lowbit.errors import ContractError
from lowbit.ir.control_flow import bodies
from lowbit.ir.oracle import run_exactly
from lowbit.passes import Normalize, PassContext, PassManager
from lowbit.passes.equivalence import Trace
from lowbit.passes.instruments import VerifyNumeric
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.fx import GraphModule

aten = torch.ops.aten
COND = torch.ops.higher_order.cond
X = torch.ones(3, 4)


class Layers(nn.Module):
    """Two linears with all weights the same number each, and what the forward does with them."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.body = nn.Linear(4, 4), nn.Linear(4, 4), forward
        for layer, number in ((self.a, 0.25), (self.b, 0.5)):
            for parameter in layer.parameters():
                parameter.data.fill_(number)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def branches(m: Layers, x: Tensor) -> Tensor:
    def inner(y: Tensor) -> Tensor:
        return torch.cond(y.sum() > 100, m.b, lambda y: m.a(y).relu(), (y,))

    return torch.cond(x.sum() > 0, inner, m.b, (x,)) + 1


def looped(m: Layers, x: Tensor) -> Tensor:
    return while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, m.a(y).relu()), (torch.tensor(0), x))[1]


def scanned(m: Layers, x: Tensor) -> Tensor:
    def combine(carry: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(carry).relu()
        return y + row, y.clone()

    return scan(combine, x[0], x, dim=0)[1]


def mapped(m: Layers, x: Tensor) -> Tensor:
    return map_over(lambda row: m.a(row).relu(), x)


@attrs.frozen
class Change:
    """A pass that does whatever it is told."""

    change: Callable[[GraphModule], None]

    name: ClassVar[str] = "change"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        self.change(gm)
        return True


def exported(forward: Callable[..., Tensor]) -> GraphModule:
    return torch.export.export(Layers(forward).eval(), (X,)).module()  # pyright: ignore[reportReturnType]


def verified(gm: GraphModule, *changes: Callable[[GraphModule], None]) -> GraphModule:
    return PassManager((VerifyNumeric((X,)),)).run(gm, Pipeline((Normalize(), *map(Change, changes))))


def scale(by: float) -> Callable[[GraphModule], None]:
    """Let each ReLU in a body read ``by`` times what it read, and the model nothing else."""

    def change(gm: GraphModule) -> None:
        for body in bodies(gm):
            for relu in body.module.graph.find_nodes(op="call_function", target=aten.relu.default):
                with body.module.graph.inserting_before(relu):
                    scaled = body.module.graph.call_function(aten.mul.Tensor, (relu.args[0], by))
                scaled.meta = dict(relu.meta)
                relu.update_arg(0, scaled)

    return change


@pytest.mark.parametrize(
    ("forward", "where"),
    [
        (branches, "false_graph_0 in the body true_graph_0"),
        (looped, "while_loop_body_graph_0"),
        (scanned, "scan_combine_graph_0"),
        (mapped, "body_graph_0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_breaks_in_a_body_is_named(forward: Callable[..., Tensor], where: str) -> None:
    gm = exported(forward)
    verified(gm, scale(1 + 2**-24))
    with pytest.raises(ContractError, match=f"%mul_tensor in the body {where} is not what %linear was"):
        verified(gm, scale(1 + 2**-20))


def test_the_other_branch_is_found_where_its_result_is_read() -> None:
    def swap(gm: GraphModule) -> None:
        (call,) = gm.graph.find_nodes(op="call_function", target=COND)
        call.args = (call.args[0], call.args[2], call.args[1], call.args[3])

    with pytest.raises(ContractError, match="%cond is not what %cond was"):
        verified(exported(branches), swap)


def test_other_operands_are_found() -> None:
    """Also where both were there before, so that neither is what the other was."""

    def forward(m: Layers, x: Tensor) -> Tensor:
        doubled, tripled = x * 2, x * 3
        return torch.cond(x.sum() > 0, m.a, m.b, (doubled,)) + tripled

    def hand_in_the_other(gm: GraphModule) -> None:
        (call,) = gm.graph.find_nodes(op="call_function", target=COND)
        doubled, tripled = gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
        call.prepend(tripled)
        call.update_arg(3, tuple(tripled if operand is doubled else operand for operand in call.args[3]))

    with pytest.raises(ContractError, match="in the body true_graph_0 is not what"):
        verified(exported(forward), hand_in_the_other)


def test_a_call_that_is_gone_is_not_taken_for_another_of_the_same_bodies() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        first = torch.cond(x.sum() > 0, m.a, m.b, (x,))
        return first + torch.cond(x.sum() > 0, m.a, m.b, (x - 1,))

    gm = exported(forward)
    first, second = gm.graph.find_nodes(op="call_function", target=COND)
    second.args = (*first.args[:3], second.args[3])
    (add,) = gm.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    add.args = (add.args[1], add.args[1])
    new = verified(gm)
    assert len(new.graph.find_nodes(op="call_function", target=COND)) == 1


def test_a_body_writes_into_what_it_is_handed() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            (y,) = torch.cond(
                x.sum() > 0, lambda y, c: (y + c,), lambda y, c: (y - c,), (x, self.get_buffer("count"))
            )
            return y + self.get_buffer("count")

    gm = torch.export.export(Counted().eval(), (X,)).module()
    body = gm.get_submodule("true_graph_0")
    assert isinstance(gm, GraphModule)
    assert isinstance(body, GraphModule)
    _, count = body.graph.find_nodes(op="placeholder")
    (add,) = body.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    with body.graph.inserting_before(add):
        body.graph.call_function(aten.add_.Tensor, (count, 1.0)).meta = dict(count.meta)
    body.recompile()
    assert torch.equal(run_exactly(gm, X), copy.deepcopy(gm)(X).double())


def test_only_the_last_run_is_kept() -> None:
    """With what it says of bodies: each is as large as all values of the model."""
    traces: list[weakref.ref[Trace]] = []

    verify = VerifyNumeric((X,))

    class Look:
        def before(self, *_: object) -> None:
            pass

        def after(self, *_: object) -> None:
            if verify._trace is not None:
                traces.append(weakref.ref(verify._trace))

    def multiply_by_one(gm: GraphModule) -> None:
        (call,) = gm.graph.find_nodes(op="call_function", target=COND)
        with gm.graph.inserting_before(call):
            same = gm.graph.call_function(aten.mul.Tensor, (call.args[3][0], 1.0))
        same.meta = dict(call.args[3][0].meta)
        call.update_arg(3, (same, *call.args[3][1:]))

    PassManager((verify, Look())).run(
        exported(branches), Pipeline((Normalize(), *[Change(multiply_by_one)] * 4))
    )
    assert len(traces) >= 4
    assert [trace() is None for trace in traces] == [True] * (len(traces) - 1) + [False]
