"""``linears-to-convolutions``: the same numbers from the kernel of convolutions, and where linears stay."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import (
    X86_INDUCTOR,
    LinearsToConvolutions,
    linears_to_convolutions,
    requantize,
)
from lowbit.ir.meta import KERNEL_KEY
from lowbit.passes import PassManager, Pipeline, PropagateBf16
from lowbit.tools.lowering_report import lowering_report
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

QCONV = torch.ops.onednn.qconv_pointwise.default
QLINEAR = torch.ops.onednn.qlinear_pointwise.default
NAME = "linears-to-convolutions"
APART = X86_INDUCTOR.lower.without(NAME)


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are right on every CPU; it is faster on those."""
    monkeypatch.setattr(linears_to_convolutions, "convolves_faster", lambda: True)


def converted(model: nn.Module, *inputs: Any, is_dynamic: bool = False, **export: Any) -> GraphModule:
    exported = torch.export.export(model.eval(), inputs, **export).module()
    assert isinstance(exported, GraphModule)
    config = get_default_x86_inductor_quantization_config(reduce_range=True, is_dynamic=is_dynamic)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config))
    return convert_pt2e(calibrate(prepared, [inputs], progress=False))


def count(model: GraphModule, target: object) -> int:
    return sum(node.target is target for node in model.graph.nodes)


@torch.no_grad()
def assert_same_bits(model: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """Lowered with the pass and without."""
    now, before = lower_pt2e(model), lower_pt2e(model, pipeline=APART)
    for factor in (1.0, 1.7, -1.0):  # beyond what calibration saw, so that quantization saturates
        scaled = [factor * x for x in inputs]
        assert torch.equal(now(*scaled), before(*scaled))
    return now


class Layers(nn.Module):
    """Two linears, with something between them that may be part of the first kernel."""

    def __init__(self, between: Callable[[Tensor], Tensor], sizes: Sequence[int], *, bias: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(*pair, bias=bias) for pair in pairwise(sizes))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


@pytest.mark.parametrize(
    "between",
    [lambda x: x, F.relu, F.hardtanh, F.hardswish, F.silu],
    ids=["nothing", "relu", "hardtanh", "hardswish", "silu"],
)
@pytest.mark.parametrize("shape", [(8,), (1, 8), (5, 8), (2, 3, 8), (2, 1, 3, 8)], ids=str)
def test_the_bits_are_those_of_the_other_kernel(
    between: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(len(shape))
    x = 3 * torch.randn(shape)
    lowered = assert_same_bits(converted(Layers(between, (8, 19, 7), bias=len(shape) > 1), x), [x])
    assert count(lowered, QCONV) == 2
    assert count(lowered, QLINEAR) == 0
    assert lowering_report(lowered).coverage == 1


def test_other_forms_of_memory() -> None:
    torch.manual_seed(0)
    model = converted(Layers(F.relu, (8, 16, 4), bias=True), torch.randn(3, 5, 8))
    assert_same_bits(model, [torch.randn(5, 3, 8).transpose(0, 1)])
    assert_same_bits(model, [torch.randn(3, 8, 5).transpose(1, 2)])
    assert_same_bits(model, [torch.randn(3, 1, 8).expand(3, 5, 8)])


def test_sizes_that_the_run_tells() -> None:
    torch.manual_seed(0)
    shapes = ({0: Dim("n", min=0, max=9), 1: Dim("m", min=0, max=9)},)
    model = converted(Layers(F.relu, (8, 16, 4), bias=True), torch.randn(2, 5, 8), dynamic_shapes=shapes)
    for n, m in [(2, 5), (1, 1), (7, 2), (0, 5), (4, 0)]:
        lowered = assert_same_bits(model, [torch.randn(n, m, 8)])
        assert count(lowered, QCONV) == 2


def test_the_decisions_name_the_kernel_that_is_there() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    lowered = lower_pt2e(converted(Layers(F.relu, (8, 16, 4), bias=True), x))
    made = {d.node: d for d in decisions(lowered) if d.kernel}
    assert {d.kernel for d in made.values()} == {"onednn.qconv_pointwise"}
    assert made["linear"].detail == "runs as onednn.qconv_pointwise"
    nodes = {node.name: node for node in lowered.graph.nodes}
    kernels = {name: nodes[made[name].runs_at] for name in ("linear", "relu", "linear_1")}
    assert [node.meta[KERNEL_KEY] for node in kernels.values()] == [
        "linear-relu → onednn.qconv_pointwise",
        "linear-relu → onednn.qconv_pointwise",
        "linear → onednn.qconv_pointwise",
    ]
    assert all(node.target is QCONV for node in kernels.values())


def test_on_other_cpus_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears_to_convolutions, "convolves_faster", lambda: False)
    x = torch.randn(3, 8)
    lowered = lower_pt2e(converted(Layers(F.relu, (8, 16, 4), bias=True), x))
    assert (count(lowered, QCONV), count(lowered, QLINEAR)) == (0, 2)


def test_scales_that_the_run_tells_stay() -> None:
    x = torch.randn(3, 8)
    lowered = lower_pt2e(converted(Layers(F.relu, (8, 16, 4), bias=True), x, is_dynamic=True))
    assert count(lowered, QCONV) == 0
    assert lowering_report(lowered).coverage == 1


def test_bfloat16_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requantize, "writes_bfloat16", lambda: True)
    x = torch.randn(3, 8)
    model = converted(Layers(F.relu, (8, 16, 4), bias=True), x)
    pipeline = X86_INDUCTOR.lower.before("emit-inductor", PropagateBf16())
    lowered = lower_pt2e(model, pipeline=pipeline)
    assert (count(lowered, QCONV), count(lowered, QLINEAR)) == (1, 1)
    (linear,) = lowered.graph.find_nodes(op="call_function", target=QLINEAR)
    assert torch.bfloat16 in linear.args


class Tied(nn.Module):
    """One weight in two layers, one of which is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(F.relu(self.first(x)))))


def test_a_weight_is_packed_once_a_layout() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6)
    lowered = assert_same_bits(converted(Tied(), x), [x])
    assert count(lowered, QCONV) == 3
    # One for activations with zero point 0, one for those with another, whatever their scales are.
    zero_points = {bool(node.args[2]) for node in lowered.graph.nodes if node.target is QCONV}
    assert len([name for name in lowered.state_dict() if "_packed" in name]) == len(zero_points) == 2
    # Nothing is left of the layout that no kernel reads.
    assert not [name for name in lowered.state_dict() if name.endswith(("weight_int8", "filter"))]


def test_it_compiles_and_is_saved() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    model = converted(Layers(F.relu, (8, 16, 4), bias=True), x)
    lowered, unpacked = lower_pt2e(model), lower_pt2e(model, pack_weights=False)
    with torch.no_grad():
        expected = lowered(x)
        torch.testing.assert_close(torch.compile(lowered)(x), expected, rtol=0, atol=0)
        file = io.BytesIO()
        torch.export.save(torch.export.export(unpacked, (x,)), file)
        file.seek(0)
        assert torch.equal(torch.export.load(file).module()(x), expected)


def test_in_bodies_of_control_flow() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (Layers(F.relu, (8, 16, 4), bias=True) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, self.a, self.b, (x,))

    torch.manual_seed(0)
    x = torch.randn(3, 8).abs()
    exported = torch.export.export(Choice().eval(), (x,)).module()
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config))
    model = convert_pt2e(calibrate(prepared, [(x,), (-x,)], progress=False))
    now, before = lower_pt2e(model), lower_pt2e(model, pipeline=APART)
    bodies = [body for body in now.modules() if isinstance(body, GraphModule) and body is not now]
    assert sum(count(body, QCONV) for body in bodies) == 4
    with torch.no_grad():
        compiled = torch.compile(now)
        for sign in (1, -1):
            assert torch.equal(now(sign * x), before(sign * x))
            torch.testing.assert_close(compiled(sign * x), now(sign * x), rtol=0, atol=0)


def test_sizes_that_the_run_tells_compile() -> None:
    torch.manual_seed(0)
    for features in (1, 2, 8):
        x = torch.randn(5, features)
        model = converted(nn.Linear(features, 8), x, dynamic_shapes=({0: Dim("n")},))
        lowered = lower_pt2e(model)
        assert count(lowered, QCONV) == 1
        torch._dynamo.reset()
        compiled = torch.compile(lowered, dynamic=True)
        with torch.no_grad():
            for rows in (5, 3, 9):
                y = torch.randn(rows, features)
                torch.testing.assert_close(compiled(y), lowered(y), rtol=0, atol=0)


def test_packed_weights_stay() -> None:
    x = torch.randn(3, 8)
    packed = lower_pt2e(converted(Layers(F.relu, (8, 16, 4), bias=True), x), pipeline=APART)
    again = PassManager(()).run(packed, Pipeline((LinearsToConvolutions(),)))
    assert (count(again, QCONV), count(again, QLINEAR)) == (0, 2)


def test_merged_linears() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))

    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    lowered = assert_same_bits(converted(Attention(), x), [x])
    assert count(lowered, QCONV) == 2
    runs_at = {d.node: d.runs_at for d in decisions(lowered) if d.target == "aten.linear.default"}
    whole = runs_at.pop("linear_3"), *set(runs_at.values())
    assert len(whole) == 2
    targets = {node.name: node.target for node in lowered.graph.nodes}
    assert [targets[name] for name in whole] == [QCONV, QCONV]
