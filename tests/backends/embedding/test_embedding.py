"""Embeddings of int8 rows: the range of each row as it is, and look-ups that never see the table in float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import (
    EmbeddingQuantizer,
    PerChannelMinMaxObserver,
    decisions,
    get_default_embedding_quantization_config,
    get_default_x86_inductor_quantization_config,
    prepare_pt2e,
)
from lowbit.errors import NothingQuantizedWarning
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.observers import create_observer
from torch import Tensor, nn
from torch.fx import GraphModule

INDICES = torch.tensor([[0, 3, 3], [4, 1, 0]])


class Table(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(weight)

    def forward(self, i: Tensor) -> Tensor:
        return self.table(i)


def test_rows_are_stored_as_int8_with_float_parameters(run_flow: Any) -> None:
    torch.manual_seed(0)
    flow = run_flow(Table(torch.randn(5, 8)), INDICES, quantizer=EmbeddingQuantizer())
    stored = {name: (t.dtype, tuple(t.shape)) for name, t in flow.converted.state_dict().items()}
    assert stored == {
        "table.weight_int8": (torch.int8, (5, 8)),
        "table.weight_scale": (torch.float32, (5,)),
        "table.weight_zero_point": (torch.float32, (5,)),
    }
    assert flow.decision("embedding").detail == "runs as aten.embedding of integers"
    assert not any(map(qd.is_dequantize, flow.lowered.graph.nodes))
    with torch.no_grad():
        assert torch.equal(flow.lowered(INDICES), flow.converted(INDICES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_have_the_dtype_of_the_table(run_flow: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    flow = run_flow(Table(torch.randn(5, 8)).to(dtype), INDICES, quantizer=EmbeddingQuantizer())
    assert flow.decision("embedding").detail == "runs as aten.embedding of integers"
    with torch.no_grad():
        result = flow.lowered(INDICES)
        assert result.dtype is dtype
        assert torch.equal(result, flow.converted(INDICES))


def test_tables_in_float64_stay_as_they_are(run_flow: Any) -> None:
    with pytest.warns(NothingQuantizedWarning):
        flow = run_flow(Table(torch.randn(5, 8)).double(), INDICES, quantizer=EmbeddingQuantizer())
    assert flow.decision("embedding").reason == "weight-is-float64"
    assert flow.lowered(INDICES).dtype is torch.float64


@settings(max_examples=40)
@given(
    low=st.floats(-100, 100, width=32),
    width=st.floats(0, 100, width=32),
    seed=st.integers(0, 2**31),
)
def test_every_value_is_within_half_a_step(low: float, width: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = low + width * torch.rand(3, 16, generator=generator)
    spec = get_default_embedding_quantization_config().weight
    assert spec is not None
    observer: Any = create_observer(spec)
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.float32)
    assert torch.equal(zero_point, zero_point.round())
    parameters = (scale, zero_point, 0, -128, 127, torch.int8)
    back = qd.DEQUANTIZE_PER_CHANNEL(qd.QUANTIZE_PER_CHANNEL(weight, *parameters), *parameters)
    # And what float32 has of numbers of that size, each of which is rounded a few times.
    rounding = 8 * torch.finfo(torch.float32).eps * weight.abs().max()
    assert bool(((back - weight).abs() <= scale[:, None] / 2 + rounding).all())


def test_a_row_far_from_zero_keeps_its_steps() -> None:
    weight = 5 + torch.linspace(0, 0.1, 16)[None]
    observer = PerChannelMinMaxObserver(0, torch.int8, torch.per_channel_affine_float_qparams)
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    assert float(scale) == pytest.approx(0.1 / 255, rel=1e-3)
    assert float(zero_point) < -10_000


def test_a_configuration_with_activations_is_not_for_embeddings() -> None:
    exported = torch.export.export(nn.Embedding(4, 2).eval(), (torch.arange(3),)).module()
    assert isinstance(exported, GraphModule)
    quantizer = EmbeddingQuantizer().set_global(get_default_x86_inductor_quantization_config())
    with pytest.warns(NothingQuantizedWarning):
        (decision,) = decisions(prepare_pt2e(exported, quantizer))
    assert (decision.status, decision.reason) == ("float", "weight-only")


def test_parts_can_be_left_float(run_flow: Any) -> None:
    quantizer = EmbeddingQuantizer().set_module_name("second", None)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Embedding(5, 4), nn.Embedding(5, 4)

        def forward(self, i: Tensor) -> Tensor:
            return self.first(i) + self.second(i)

    flow = run_flow(Two(), INDICES, quantizer=quantizer)
    assert flow.decision("embedding").status == "quantized"
    assert flow.decision("embedding_1").reason == "not-configured"


def test_tables_that_are_computed_stay_float(run_flow: Any) -> None:
    class Computed(Table):
        def forward(self, i: Tensor) -> Tensor:
            return F.embedding(i, self.table.weight * 2)

    with pytest.warns(UserWarning, match="annotated no tensor"):
        flow = run_flow(Computed(torch.randn(5, 4)), INDICES, quantizer=EmbeddingQuantizer())
    assert flow.decision("embedding").reason == "weight-not-constant"
