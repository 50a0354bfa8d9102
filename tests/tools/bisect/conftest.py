"""A small network that quantization leaves exact: every number is a step of its tensor's scale."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch
from lowbit import QuantizationSpec, X86InductorQuantizer
from lowbit.backends.registry import get_backend
from lowbit.ir.observers import PerChannelMinMaxObserver
from lowbit.ir.specs import FixedQParamsQuantizationSpec, QuantizationConfig
from lowbit.passes import Pipeline, ReferenceRepresentation
from lowbit.tools.bisect import Calibration, Passes, Step, verb_steps
from torch import Tensor, nn
from torch.fx import GraphModule


class _Norm(nn.BatchNorm2d):
    """Multiplies by 0.5 / sqrt(0.0625 + 0.1875) = 1, if nobody forgets the second number."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__(channels, eps=0.1875)
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            self.running_var.fill_(0.0625)
            self.running_mean.copy_(torch.randint(1, 3, (channels,), generator=generator))
            self.weight.fill_(0.5)
            self.bias.copy_(torch.randint(1, 3, (channels,), generator=generator))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(4, 8, 3, padding="same")
        self.first_norm = _Norm(8, generator)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.grouped_norm = _Norm(8, generator)
        self.point = nn.Conv2d(8, 8, 1)
        self.point_norm = _Norm(8, generator)
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(32, 6)
        self.last = nn.Linear(6, 5)
        self.relu = nn.ReLU(inplace=True)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                _make_small(module, generator)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first_norm(self.first(x)))
        point = self.point_norm(self.point(self.dropout(y)))
        z = self.relu(point + self.grouped_norm(self.grouped(y)))
        z = nn.functional.max_pool2d(z, 2).flatten(1)
        return self.last(self.relu(self.hidden(z)))


def _make_small(module: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    """Three weights of ±1 an output, the others 0; a small whole bias."""
    with torch.no_grad():
        rows = module.weight.zero_().view(module.weight.shape[0], -1)
        for row in rows:
            chosen = torch.randperm(len(row), generator=generator)[:3]
            row[chosen] = torch.randint(0, 2, (3,), generator=generator) * 2.0 - 1
        if module.bias is not None:
            module.bias.copy_(torch.randint(1, 3, module.bias.shape, generator=generator))


@attrs.frozen(eq=False)
class Exact:
    """The network, exported, and what it computes."""

    model: GraphModule
    x: Tensor
    expected: Tensor

    def steps(self, flow: str = "lower", data: Any = None) -> tuple[Step, ...]:
        """What to do with it: ``"lower"``, ``"reference"``, ``"training"`` or its first part alone."""
        data = [(self.x,)] if data is None else data
        activation = FixedQParamsQuantizationSpec(torch.uint8, 1.0, 64, 0, 127, torch.per_tensor_affine)
        weight = QuantizationSpec(
            torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, 0
        )
        quantizer = X86InductorQuantizer().set_global(
            QuantizationConfig(activation, activation, weight, None)
        )
        steps = verb_steps(self.model, quantizer=quantizer, data=data)
        if flow == "reference":
            return (*steps[:-1], Passes(Pipeline((ReferenceRepresentation(),))))
        if flow.endswith("training"):
            prepare = get_backend("x86_inductor").prepare_qat
            assert prepare is not None
            trained = (Passes(prepare, quantizer), Calibration(data), *steps[2:-1])
            return trained[:1] if flow == "prepare-training" else trained
        return steps

    def is_good(self, model: GraphModule) -> bool:
        """Whether ``model`` computes the same, up to the rounding of float32."""
        with torch.no_grad():
            return bool((model(self.x) - self.expected).abs().max() < 1e-3)


@pytest.fixture(scope="session")
def exact() -> Exact:
    model = _Network().eval()
    x = torch.randint(-2, 3, (3, 4, 4, 4), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        expected = model(x)
    return Exact(torch.export.export(model, (x,)).module(), x, expected)


@pytest.fixture(scope="session")
def mutate() -> ModuleType:
    """What seeds the faults of the mutation zoo."""
    path = Path(__file__).parents[1] / "testing" / "mutate.py"
    spec = importlib.util.spec_from_file_location("lowbit_tests_mutate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
