"""``merge-parallel-linears``: one kernel for linears of one input, and where that is not done."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
import torch.nn.functional as F
from lowbit import decisions, explain, get_default_x86_inductor_quantization_config, lower_pt2e
from lowbit.backends.x86_inductor import X86_INDUCTOR, X86InductorQuantizer
from lowbit.ir.text import parse, to_tensors, to_text
from lowbit.tools.lowering_report import lowering_report
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

pytestmark = pytest.mark.usefixtures("linears_stay")

QLINEAR = (torch.ops.onednn.qlinear_pointwise.default, torch.ops.onednn.qlinear_pointwise.tensor)
APART = X86_INDUCTOR.lower.without("merge-parallel-linears")


class Flow(Protocol):
    inputs: tuple[Any, ...]
    converted: GraphModule
    lowered: GraphModule

    def decision(self, node: str) -> Any: ...


class RunFlow(Protocol):
    def __call__(self, model: nn.Module, *inputs: Any, **options: Any) -> Flow: ...


class Attention(nn.Module):
    def __init__(self, *, biases: tuple[bool, bool, bool] = (True, True, True)) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=bias) for bias in biases)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(-3, -2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))


def kernels(model: GraphModule) -> int:
    return sum(node.target in QLINEAR for node in model.graph.nodes)


@torch.no_grad()
def assert_same_numbers(flow: Flow, *inputs: Any) -> None:
    """As with a kernel for each linear, to the bit."""
    apart = lower_pt2e(flow.converted, pipeline=APART)
    assert torch.equal(flow.lowered(*inputs), apart(*inputs))


@pytest.mark.parametrize("biases", [(True,) * 3, (False,) * 3, (True, False, True)])
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_query_key_and_value_are_one_kernel(
    biases: tuple[bool, bool, bool], is_dynamic: bool, run_flow: RunFlow
) -> None:
    torch.manual_seed(0)
    config = get_default_x86_inductor_quantization_config(is_dynamic=is_dynamic, reduce_range=True)
    quantizer = X86InductorQuantizer().set_global(config)
    flow = run_flow(Attention(biases=biases), torch.randn(2, 5, 8), quantizer=quantizer)
    assert kernels(flow.lowered) == 2
    assert_same_numbers(flow, *flow.inputs)
    # The decisions name the kernel that is there now.
    (first, _) = (node for node in flow.lowered.graph.nodes if node.target in QLINEAR)
    assert {flow.decision(name).runs_at for name in ("linear", "linear_1", "linear_2")} == {first.name}
    assert lowering_report(flow.lowered).coverage == 1


def test_sizes_that_the_run_tells(run_flow: RunFlow) -> None:
    torch.manual_seed(0)
    flow = run_flow(Attention(), torch.randn(2, 5, 8), dynamic_shapes=({0: Dim("n", min=0, max=9)},))
    assert kernels(flow.lowered) == 2
    for batch in (0, 1, 7):
        assert_same_numbers(flow, torch.randn(batch, 5, 8))


def test_it_compiles_and_is_saved(run_flow: RunFlow) -> None:
    torch.manual_seed(0)
    flow = run_flow(Attention(), torch.randn(2, 5, 8))
    unpacked = lower_pt2e(flow.converted, pack_weights=False)
    assert kernels(unpacked) == 2
    with torch.no_grad():
        expected = flow.lowered(*flow.inputs)
        compiled = torch.compile(flow.lowered)
        torch.testing.assert_close(compiled(*flow.inputs), expected)
        file = io.BytesIO()
        torch.export.save(torch.export.export(unpacked, flow.inputs), file)
        file.seek(0)
        assert torch.equal(torch.export.load(file).module()(*flow.inputs), expected)


class Two(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.join = join

    def forward(self, x: Tensor) -> Any:
        return self.join(self.a(x), self.b(x))


@pytest.mark.parametrize(
    ("join", "why"),
    [
        (lambda a, b: F.softmax(a, -1) * b, ""),
        (lambda a, b: F.softmax(a.reshape(-1), 0) * b.reshape(-1), ""),
        (lambda a, b: F.softmax(a.view(-1), 0) * b.view(-1), "not-merged-reader"),
        (lambda a, b: (a, b * 2), "not-merged-returned"),
        (lambda a, b: a.transpose(0, 1), ""),
        (lambda a, b: (a.transpose(0, 1), b * 2), "not-merged-returned"),
        (lambda a, b: F.relu(a) * b, "not-merged-different"),
        (lambda a, b: F.relu(a) * F.relu(b), ""),
        (lambda a, b: a.as_strided((8, 3), (1, 8)).softmax(0) * b.t(), "not-merged-reader"),
    ],
    ids=["slices", "copies", "dense", "result", "one", "view as result", "two kinds", "one kind", "strides"],
)
def test_where_a_slice_will_do(join: Callable[[Tensor, Tensor], Any], why: str, run_flow: RunFlow) -> None:
    torch.manual_seed(0)
    flow = run_flow(Two(join), torch.randn(3, 8))
    made = [d for d in decisions(flow.lowered) if d.target == "aten.linear.default" and d.kernel]
    assert kernels(flow.lowered) == (len(made) if why else 1)
    # The decisions say why, in a code of the table and in words.
    assert {d.note for d in made} == {why}
    assert all(("by itself" in d.detail) is bool(why) for d in made)
    apart = lower_pt2e(flow.converted, pipeline=APART)
    with torch.no_grad():
        torch.testing.assert_close(flow.lowered(*flow.inputs), apart(*flow.inputs), rtol=0, atol=0)


def test_the_text_of_a_graph_has_the_notes(run_flow: RunFlow) -> None:
    torch.manual_seed(0)
    flow = run_flow(Two(lambda a, b: (a, b * 2)), torch.randn(3, 8))
    unpacked = lower_pt2e(flow.converted, pack_weights=False)
    read = parse(to_text(unpacked), to_tensors(unpacked))
    assert decisions(read) == decisions(unpacked)
    assert "by itself: the model returns %qlinear" in flow.decision("linear").detail
    assert "by itself: the model returns %qlinear" in str(lowering_report(unpacked))
    assert "note:    not-merged-returned: by itself: the model" in str(explain(unpacked, "linear"))


def test_each_quantized_result_has_its_own_scale(run_flow: RunFlow) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x)) + self.d(self.b(x))

    torch.manual_seed(0)
    flow = run_flow(Gated(), torch.randn(3, 8))
    assert kernels(flow.lowered) == 4
    notes = [flow.decision(name).note for name in ("linear", "linear_1", "linear_2", "linear_3")]
    assert sorted(notes) == ["", "", "not-merged-own-scale", "not-merged-own-scale"]


class Repeated(nn.Module):
    """The same two layers, and with ``alone`` one of them once more by itself."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.alone = alone

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.sin(self.a(x)) + torch.cos(self.b(x))
        return self.a(x) if self.alone else x


@pytest.mark.parametrize(("alone", "count"), [(False, 3), (True, 7)])
def test_a_weight_is_stored_once(alone: bool, count: int, run_flow: RunFlow) -> None:
    torch.manual_seed(0)
    flow = run_flow(Repeated(alone=alone), torch.randn(3, 8))
    unpacked = lower_pt2e(flow.converted, pack_weights=False)
    assert kernels(unpacked) == count
    assert sum(t.numel() for t in unpacked.buffers() if t.dtype is torch.int8) == 2 * 8 * 8
    assert sum("packed" in name for name, _ in flow.lowered.named_buffers()) == (2 if alone else 1)
    notes = {d.note for d in decisions(unpacked)}
    assert notes == ({"", "not-merged-weight-shared"} if alone else {""})
    assert_same_numbers(flow, *flow.inputs)
