"""The operators that cost the accuracy: as few as bring it back."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import attrs
import pytest
import torch
from lowbit import X86InductorQuantizer
from lowbit.backends.registry import get_backend
from lowbit.backends.x86_inductor import get_default_x86_inductor_quantization_config
from lowbit.errors import GraphInputError, PipelineError
from lowbit.passes import Pipeline
from lowbit.passes.registry import pass_class
from lowbit.tools.bisect import accuracy, costly_operators
from torch import nn
from torch.fx import GraphModule


class Outliers(nn.Module):
    """Six linears side by side; two of them have one weight that is far larger than the others of its row."""

    def __init__(self, large: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 4, bias=False) for _ in range(6))
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(4, 8, generator=generator))
                if index in large:
                    layer.weight[:, 0] = 1000.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self.layers], 1)


class Case:
    def __init__(self, *large: int) -> None:
        model = Outliers(large).eval()
        self.x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
        self.x[:, 0] = 0  # else the outlier is all there is to see
        self.model = torch.export.export(model, (self.x,)).module()
        with torch.no_grad():
            self.expected = model(self.x)

    def metric(self, model: GraphModule) -> float:
        """Minus the largest error."""
        with torch.no_grad():
            return -float((model(self.x) - self.expected).abs().max())

    def find(self, tolerance: float = 0.2, data: Any = None) -> Any:
        config = get_default_x86_inductor_quantization_config(reduce_range=True)
        quantizer = X86InductorQuantizer().set_global(config)
        return costly_operators(
            self.model,
            quantizer,
            [(self.x,)] if data is None else data,
            self.metric,
            tolerance=tolerance,
        )


def test_finds_the_two_of_six() -> None:
    found = Case(1, 4).find()
    assert [operator.module for operator in found.operators] == ["layers.1", "layers.4"]
    assert [operator.nodes for operator in found.operators] == [("linear_1",), ("linear_4",)]
    assert found.quantized >= 6
    assert found.float_metric == 0
    assert found.quantized_metric < -1
    assert found.recovered_metric >= -0.2
    # Each is needed: with one alone the other still costs.
    assert all(operator.alone < -0.2 for operator in found.operators)
    assert "with 2 of" in str(found)


def test_finds_nothing_where_nothing_costs() -> None:
    found = Case().find()
    assert found.operators == ()
    assert found.recovered_metric == found.quantized_metric
    assert found.trials == 1


def test_says_the_same_again() -> None:
    case = Case(2)
    assert case.find() == case.find()


def test_no_tolerance_at_all() -> None:
    found = Case(0).find(tolerance=0)
    assert len(found.operators) >= 6
    assert found.recovered_metric == 0


def test_data_must_last() -> None:
    case = Case(0)
    with pytest.raises(GraphInputError, match="only once"):
        case.find(data=iter([(case.x,)]))


def test_needs_a_pass_that_annotates() -> None:
    class Quantizer(X86InductorQuantizer):
        backend_name = "other"

    x86 = get_backend("x86_inductor")
    other = attrs.evolve(x86, name="other", prepare=Pipeline((pass_class("normalize")(),)))
    case = Case(0)
    with (
        patch.object(accuracy, "get_backend", {"other": other}.__getitem__),
        pytest.raises(PipelineError, match="for other has no pass named 'annotate'") as raised,
    ):
        costly_operators(case.model, Quantizer(), [(case.x,)], case.metric, tolerance=0)
    assert "settings of the quantizer" in raised.value.hint
