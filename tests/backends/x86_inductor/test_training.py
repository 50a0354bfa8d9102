"""The presets for training: a model learns, converts to what it evaluates, and is lowered."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    X86InductorQuantizer,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule

aten = torch.ops.aten
X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
# Which quadrant is the brightest.
LABELS = torch.nn.functional.adaptive_avg_pool2d(X.mean(1), 2).flatten(1).argmax(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.hidden, self.head = nn.Linear(8 * 16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        y = F.relu(self.bn2(self.conv2(y)) + y)
        y = F.max_pool2d(y, 2).flatten(1)
        return self.head(F.relu(self.hidden(y)))


def trained(is_dynamic: bool) -> tuple[GraphModule, list[float]]:
    torch.manual_seed(0)
    exported = torch.export.export(Net().train(), (X,)).module()
    assert isinstance(exported, GraphModule)
    config = get_default_x86_inductor_quantization_config(
        is_qat=True, is_dynamic=is_dynamic, reduce_range=not has_vnni()
    )
    prepared = prepare_qat_pt2e(exported, X86InductorQuantizer().set_global(config))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(prepared(X), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return prepared, losses


@pytest.mark.usefixtures("linears_stay")
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_a_model_trains_converts_and_is_lowered(is_dynamic: bool) -> None:
    prepared, losses = trained(is_dynamic)
    assert losses[-1] < 0.7 * losses[0]
    prepared.eval()
    converted = convert_pt2e(prepared)
    lowered = lower_pt2e(converted)
    with torch.no_grad():
        expected, y = converted(X), lowered(X)
        assert torch.equal(prepared(X), expected)
    # A step of an activation, at most, in few places: float32 rounds the other way there.
    assert (y - expected).abs().max() <= 0.02 * expected.abs().max()
    assert (y.argmax(1) == expected.argmax(1)).float().mean() > 0.9

    kernels = [str(n.target).split(".")[1] for n in lowered.graph.nodes if "pointwise" in str(n.target)]
    linears = [k for k in kernels if "qlinear" in k]
    assert len(linears) == 2
    assert len(kernels) == (2 if is_dynamic else 4)
    # Dynamic quantization is of linears; BatchNorm is folded all the same.
    assert not [n for n in lowered.graph.nodes if "batch_norm" in str(n.target)]
    chosen = [
        n for n in converted.graph.nodes if n.target in (qd.CHOOSE_QPARAMS, qd.CHOOSE_QPARAMS_SYMMETRIC)
    ]
    assert len(chosen) == (2 if is_dynamic else 0)


def test_the_ranges_of_dynamic_training_are_those_of_each_batch() -> None:
    prepared, _ = trained(is_dynamic=True)
    prepared.eval()
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        for scale in (1e-3, 1, 1e3):
            assert torch.equal(converted(scale * X), prepared(scale * X))


def test_the_fake_quantizers_of_the_presets() -> None:
    for is_dynamic in (False, True):
        config = get_default_x86_inductor_quantization_config(is_qat=True, is_dynamic=is_dynamic)
        assert config.is_qat
        assert config.bias is None
        activation, weight = config.input_activation, config.weight
        assert activation is not None
        assert weight is not None
        made = activation.observer_or_fake_quant_ctr(is_dynamic=is_dynamic)
        assert type(made) is (FakeQuantize if is_dynamic else FusedMovingAvgObsFakeQuantize)
        assert (activation.dtype, activation.quant_min, activation.quant_max) == (torch.uint8, 0, 255)
        assert activation.is_dynamic is is_dynamic
        assert made.eps == 2**-12
        assert (weight.dtype, weight.quant_min, weight.quant_max, weight.ch_axis) == (
            torch.int8,
            -128,
            127,
            0,
        )
        assert weight.qscheme == torch.per_channel_symmetric


def test_qat_and_post_training_quantization_decide_alike() -> None:
    """What is quantized does not depend on how: BatchNorm is folded in both."""
    statuses = []
    for is_qat in (True, False):
        config = get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=not has_vnni())
        exported = torch.export.export(Net().train(is_qat), (X,)).module()
        assert isinstance(exported, GraphModule)
        quantizer = X86InductorQuantizer().set_global(config)
        prepared = prepare_qat_pt2e(exported, quantizer) if is_qat else prepare_pt2e(exported, quantizer)
        kept = [d for d in decisions(prepared) if "batch_norm" not in d.target and "add_." not in d.target]
        statuses.append({d.node: (d.status, d.reason) for d in kept})
    assert statuses[0] == statuses[1]
