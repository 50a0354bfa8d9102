"""The error of each node."""

from __future__ import annotations

import math

import pytest
import torch
from lowbit import FixedQParamsQuantizationSpec, QuantizationAnnotation, Quantizer, convert_pt2e, prepare_pt2e
from lowbit.ir.meta import ID_KEY
from lowbit.tools.report.numeric_error import NodeError, node_errors
from torch import Tensor, nn
from torch.fx import GraphModule


class Halves(Quantizer):
    """Quantizes the input of relu to multiples of 1/2."""

    def annotate(self, model: GraphModule) -> GraphModule:
        spec = FixedQParamsQuantizationSpec(torch.int8, 0.5, 0, -128, 127, torch.per_tensor_affine)
        (node,) = model.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
        node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[0]: spec}, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None: ...


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * 2


def errors_of(x: Tensor) -> dict[str, NodeError]:
    prepared = prepare_pt2e(torch.export.export(Twice().eval(), (x,)).module(), Halves())
    converted = convert_pt2e(prepared)
    found = node_errors(prepared, converted, (x,), lambda node: node.meta.get(ID_KEY))
    return {
        node.name: found[node.meta[ID_KEY]] for node in converted.graph.nodes if node.meta[ID_KEY] in found
    }


def test_values_on_the_grid_have_no_error() -> None:
    errors = errors_of(torch.tensor([0.5, -1.0, 3.0]))
    assert set(errors) == {"dequantize_per_tensor_default", "relu", "mul"}
    assert all(error.sqnr == math.inf and error.largest == 0.0 for error in errors.values())


def test_the_error_is_that_of_rounding() -> None:
    # 1.25 is rounded to even: 1.0; -2.75 is -5.5 halves, so -3.0.
    errors = errors_of(torch.tensor([1.25, -2.75]))
    own = errors["dequantize_per_tensor_default"]
    assert own.is_own
    assert own.largest == 0.25
    assert own.sqnr == pytest.approx(10 * math.log10((1.25**2 + 2.75**2) / (2 * 0.25**2)), abs=1e-12)
    relu, mul = errors["relu"], errors["mul"]
    assert (relu.is_own, relu.largest, mul.largest) == (False, 0.25, 0.5)
    assert relu.sqnr == mul.sqnr == pytest.approx(10 * math.log10(1.25**2 / 0.25**2), abs=1e-12)


def test_noise_without_a_signal() -> None:
    errors = errors_of(torch.tensor([0.25 + 1e-3, -100.0]))
    assert errors["relu"].largest == pytest.approx(0.249, abs=1e-6)
    silent = errors_of(torch.zeros(2))
    assert silent["mul"].sqnr == math.inf
