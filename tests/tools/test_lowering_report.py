"""The lowering report: the kernel of each intended operator, or why it has none; also of whole models."""

from __future__ import annotations

import os

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
    lowering_report,
    prepare_pt2e,
)
from lowbit.errors import StageError
from lowbit.ir import quantized_decomposed as qd
from lowbit.tools.models.catalogue import CATALOGUE
from torch import Tensor, nn
from torch.fx import GraphModule

PRESET = get_default_x86_inductor_quantization_config(reduce_range=True)
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


def quantize(model: nn.Module, x: Tensor, *, strict: bool = False) -> GraphModule:
    exported = torch.export.export(model.eval(), (x,), strict=strict).module()
    assert isinstance(exported, GraphModule)
    # How a range is found is not the matter here, and this is the quick way.
    activation = attrs.evolve(PRESET.input_activation, observer_or_fake_quant_ctr=MinMaxObserver)
    config = attrs.evolve(PRESET, input_activation=activation, output_activation=activation)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config))
    with torch.no_grad():
        prepared(x)
    return convert_pt2e(prepared)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.linear = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = F.avg_pool2d(self.b(F.max_pool2d(y, 2)), 3)
        return torch.sigmoid(self.linear(torch.flatten(y, 1)))


@pytest.fixture
def converted() -> GraphModule:
    torch.manual_seed(0)
    return quantize(Net(), torch.randn(2, 3, 8, 8))


@pytest.mark.usefixtures("linears_stay")
def test_what_every_intended_operator_runs_on(converted: GraphModule) -> None:
    report = lowering_report(lower_pt2e(converted))
    assert {d.node: d.kernel for d in report.lowered} == {
        "conv2d": "onednn.qconv_pointwise",
        "conv2d_1": "onednn.qconv_pointwise",
        "linear": "onednn.qlinear_pointwise",
        "max_pool2d": "quantized.max_pool2d",
        "avg_pool2d": "the compiler",
        "flatten": "integer operator",
    }
    assert report.missed == ()
    assert report.coverage == 1
    text = str(report)
    assert "6 of 6 intended operators run in low precision (100.0%)" in text
    assert "relu" not in {d.node for d in report.lowered}  # its convolution's kernel applies it
    line = next(line for line in text.splitlines() if line.startswith("conv2d "))
    assert line.split() == ["conv2d", "a", "onednn.qconv_pointwise", "conv2d-relu"]


def test_what_no_kernel_takes_is_missed(converted: GraphModule) -> None:
    (average,) = converted.graph.find_nodes(op="call_function", target=torch.ops.aten.avg_pool2d.default)
    (quantize,) = average.users
    (dequantize,) = quantize.users
    dequantize.replace_all_uses_with(average)
    converted.recompile()
    report = lowering_report(lower_pt2e(converted))
    assert {d.node: d.reason for d in report.missed} == {"avg_pool2d": "no-kernel", "flatten": "no-kernel"}
    assert report.coverage == pytest.approx(4 / 6)
    assert "avg_pool2d" in str(report)
    assert "float no-kernel: no kernel takes it as it is quantized here" in " ".join(str(report).split())


def test_of_nothing_intended_all_is_lowered() -> None:
    with pytest.warns(UserWarning, match="annotated no tensor"):
        converted = quantize(nn.Sequential(nn.Sigmoid()), torch.randn(2, 3))
    report = lowering_report(lower_pt2e(converted, "x86_inductor"))
    assert (report.lowered, report.missed, report.coverage) == ((), (), 1.0)


def test_a_model_that_is_not_lowered(converted: GraphModule) -> None:
    with pytest.raises(StageError, match="not lowered"):
        lowering_report(converted)


@pytest.mark.usefixtures("linears_stay")
def test_a_model_that_was_saved(converted: GraphModule, tmp_path) -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(converted, (x,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert isinstance(loaded, GraphModule)
    report = lowering_report(lower_pt2e(loaded, "x86_inductor"))
    assert [d.kernel for d in report.lowered].count("onednn.qconv_pointwise") == 2
    assert report.coverage == 1


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A published model, two of the layers of those whose layers are alike, and a small input."""
    entry = CATALOGUE[name]
    model, (x,) = entry.make(), entry.batches(1, 2, 0)
    if not NIGHTLY:
        for parent in model.modules():
            for child, layers in parent.named_children():
                alike = isinstance(layers, (nn.ModuleList, nn.Sequential)) and len({*map(repr, layers)}) == 1
                if alike and len(layers) > 2:
                    setattr(parent, child, layers[:2])
    if not x.is_floating_point():
        return model, x[:, :8]
    return model, x if "vit" in name else x[:, :, ::4, ::4].contiguous(memory_format=torch.channels_last)


def quantizes(model: GraphModule) -> int:
    return sum(map(qd.is_quantize, model.graph.nodes))


# Strict export of these takes ten seconds each; test_resnet does it for one of them.
LONG = {"resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small"}


@pytest.mark.parametrize(
    "name", [name for name in CATALOGUE if NIGHTLY or name not in {"resnet18", "resnet50"}]
)
def test_every_intended_operator_of_the_published_models_is_lowered(name: str, undecided) -> None:
    model, x = small(name)
    converted = quantize(model, x)
    lowered = lower_pt2e(converted)
    assert undecided(lowered) == []
    report = lowering_report(lowered)
    assert report.lowered
    assert not report.missed, str(report)
    if NIGHTLY or name not in LONG:
        assert quantizes(quantize(model, x, strict=True)) == quantizes(converted) > 0
