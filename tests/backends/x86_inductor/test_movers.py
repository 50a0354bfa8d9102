"""Operators that move values: between two linears each runs on the integers, tuples of results too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
import torch.nn.functional as F
from lowbit import decisions
from lowbit.backends.x86_inductor.kernels import MaxPool2d
from lowbit.backends.x86_inductor.movers import MOVERS
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.schema import operator_name
from lowbit.matchers.operator_pattern import OperatorPattern
from torch import Tensor, nn
from torch.fx import GraphModule, Node

pytestmark = pytest.mark.usefixtures("linears_stay")

QLINEAR = torch.ops.onednn.qlinear_pointwise.default
ROUNDING = 1e-6


class Flow(Protocol):
    converted: GraphModule
    lowered: GraphModule

    def targets(self) -> list[str]: ...
    def decision(self, node: str) -> Any: ...
    def difference(self, *inputs: Any) -> float: ...


class RunFlow(Protocol):
    def __call__(self, model: nn.Module, *inputs: Any, **options: Any) -> Flow: ...


class Between(nn.Module):
    """A linear for each input, the operator, and a linear behind it."""

    def __init__(self, pattern: OperatorPattern) -> None:
        super().__init__()
        inputs = pattern.example_inputs()
        self.function = pattern.function
        self.before = nn.ModuleList(nn.Linear(x.shape[-1], x.shape[-1]) for x in inputs)
        self.behind = nn.Linear(pattern.function(*inputs).shape[-1], 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        moved = self.function(*(linear(x) for linear, x in zip(self.before, inputs, strict=True)))
        return self.behind(moved)


class All(nn.Module):
    """A branch for each, so that export and passes run once."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({p.name: Between(p) for p in MOVERS})

    def forward(self, inputs: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        return {name: branch(*inputs[name]) for name, branch in self.branches.items()}


@pytest.fixture(scope="module")
def flow(run_flow: RunFlow) -> Flow:
    torch.manual_seed(0)
    return run_flow(All(), {p.name: tuple(map(torch.randn_like, p.example_inputs())) for p in MOVERS})


@pytest.mark.parametrize("pattern", MOVERS, ids=lambda p: p.name)
def test_it_is_quantized_between_two_linears(pattern: OperatorPattern, flow: Flow) -> None:
    made = [d for d in decisions(flow.lowered) if d.module == f"branches.{pattern.name}"]
    operators = {operator_name(pattern.operator)[1]} | ({"getitem"} if pattern.size > 1 else set())
    assert {d.target.split(".")[1 if "." in d.target else 0] for d in made if d.intended} <= operators
    assert {(d.status, d.reason) for d in made} == {("quantized", pattern.name)}
    expected = "the compiler" if pattern.kernel is None else pattern.kernel.name
    assert {d.kernel for d in made} == {expected}


def test_they_run_on_the_integers(flow: Flow) -> None:
    pooling = torch.ops.quantized.max_pool2d.default
    moving = {pooling if isinstance(p.kernel, MaxPool2d) else p.operator for p in MOVERS}
    compiled = {p.operator for p in MOVERS if p.kernel is None}
    called = [n for n in flow.lowered.graph.nodes if n.op == "call_function"]
    assert {n.target for n in called} >= moving
    assert sum(map(qd.is_dequantize, called)) == len(compiled)
    for node in called:
        reads_float = any(map(qd.is_dequantize, node.all_input_nodes))
        assert reads_float == (node.target in compiled)
    linears = [n for n in called if n.target in (QLINEAR, torch.ops.onednn.qconv_pointwise.default)]
    assert len(linears) == sum(1 + len(p.example_inputs()) for p in MOVERS)
    assert flow.difference() < ROUNDING


class Tokens(nn.Module):
    """Attention's way with Q, K and V, and a result that only a float operator reads."""

    def __init__(self, take: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)
        self.take = take

    def forward(self, x: Tensor) -> list[Tensor]:
        q, k, v = self.take(self.qkv(x))
        return [self.out(q), self.out(k), torch.sigmoid(v)]


@pytest.mark.parametrize(
    ("take", "operator"),
    [
        (lambda y: y.split(8, -1), "split"),
        (lambda y: y.split([8, 8, 8], -1), "split_with_sizes"),
        (lambda y: torch.tensor_split(y, 3, -1), "slice"),
        (lambda y: y.chunk(3, -1), "chunk"),
        (lambda y: y.unflatten(-1, (3, 8)).unbind(-2), "unbind"),
    ],
    ids=["split", "split_with_sizes", "tensor_split", "chunk", "unbind"],
)
def test_several_results(take: Callable[[Tensor], Any], operator: str, run_flow: RunFlow) -> None:
    torch.manual_seed(0)
    flow = run_flow(Tokens(take), torch.randn(2, 5, 8))
    made = {d.node: d for d in decisions(flow.lowered)}
    reasons = {d.reason for d in made.values() if d.node.split("_")[0] in {operator, "getitem"}}
    if operator != "slice":
        assert reasons == {operator}
        # It is called once, whatever picks of its results.
        assert sum(operator_of(n) == operator for n in flow.lowered.graph.nodes) == 1
    assert [str(n.target) for n in flow.lowered.graph.nodes].count(str(QLINEAR)) == 3
    assert flow.difference() < ROUNDING


def operator_of(node: Node) -> str:
    return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""


def test_sizes_of_the_run(run_flow: RunFlow) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).reshape(x.shape[0], x.shape[1], 2, 4).transpose(1, 2)
            return self.b(y.reshape(x.shape[0], -1, 8))

    dim = torch.export.Dim.DYNAMIC
    flow = run_flow(Heads(), torch.randn(3, 6, 8), dynamic_shapes=({0: dim, 1: dim},))
    assert {flow.decision(n).status for n in ("reshape", "transpose", "reshape_1")} == {"quantized"}
    for sizes in ((3, 6), (2, 8), (5, 4)):
        assert flow.difference(torch.randn(*sizes, 8)) < ROUNDING


def test_a_float_branch_stays_float(run_flow: RunFlow) -> None:
    """``cat`` of something that is not in low precision."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cat([self.a(x), F.layer_norm(x, (4,))], -1))

    flow = run_flow(Joined(), torch.randn(2, 4))
    assert (flow.decision("cat").status, flow.decision("cat").reason) == ("float", "float-input")
