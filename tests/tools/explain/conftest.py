"""A model with a case of everything, quantized for X86."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    MinMaxObserver,
    X86InductorQuantizer,
    convert_pt2e,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from torch import Tensor, nn
from torch.fx import GraphModule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.bn(y) + y
        a, b = self.block(y), F.max_pool2d(y, 3, 1, 1)
        joined = torch.cat([a, b], 1).mean((2, 3))
        z = F.linear(joined, self.last.weight * 2, self.last.bias)
        return torch.softmax(z, -1)


@attrs.frozen
class Stages:
    prepared: GraphModule
    converted: GraphModule
    lowered: GraphModule


@pytest.fixture(scope="session")
def stages() -> Stages:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    activation = attrs.evolve(preset.input_activation, observer_or_fake_quant_ctr=MinMaxObserver)
    quick = attrs.evolve(preset, input_activation=activation, output_activation=activation)
    exported = torch.export.export(Net().eval(), (x,)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(quick))
    prepared(x)
    converted = convert_pt2e(prepared)
    return Stages(prepared, converted, lower_pt2e(converted))
