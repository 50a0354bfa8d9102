"""CPUs without VNNI: ranges that overflow in int16 never reach a kernel, and people are told."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Protocol

import attrs
import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    QuantizationConfig,
    X86InductorQuantizer,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni, saturation
from lowbit.backends.x86_inductor.saturation import saturates
from lowbit.errors import SaturationWarning
from lowbit.ir.reasons import REASONS
from torch import Tensor, nn
from torch.fx import GraphModule

onednn = torch.ops.onednn
STOCK = get_default_x86_inductor_quantization_config()
REDUCED = get_default_x86_inductor_quantization_config(reduce_range=True)
NARROW_WEIGHTS = attrs.evolve(STOCK, weight=attrs.evolve(STOCK.weight, quant_min=-64, quant_max=63))


class Flow(Protocol):
    prepared: GraphModule
    lowered: GraphModule

    def targets(self) -> list[str]: ...
    def decision(self, node: str) -> Any: ...
    def difference(self, *inputs: Any) -> float: ...


class RunFlow(Protocol):
    def __call__(self, model: nn.Module, *inputs: Any, **options: Any) -> Flow: ...


@pytest.fixture
def cpu_without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturation, "has_vnni", lambda: False)


@pytest.fixture
def cpu_with_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturation, "has_vnni", lambda: True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        r = F.max_pool2d(F.relu(self.stem(x)), 2)
        y = F.relu(self.conv(r) + r)
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


def quantizer(config: QuantizationConfig) -> X86InductorQuantizer:
    return X86InductorQuantizer().set_global(config)


X = torch.linspace(-1, 1, 2 * 3 * 10 * 10).reshape(2, 3, 10, 10)


# The rule.


@pytest.mark.parametrize(
    ("activation", "weight", "expected"),
    [
        ((0, 255), (-128, 127), True),
        ((0, 127), (-128, 127), False),
        ((0, 128), (-128, 127), True),
        ((0, 128), (-127, 127), False),
        ((0, 255), (-64, 63), False),
        ((0, 255), (-63, 64), False),
        ((0, 255), (-65, 63), True),
        ((0, 255), (0, 65), True),
    ],
)
def test_the_rule(activation: tuple[int, int], weight: tuple[int, int], expected: bool) -> None:
    assert saturates(activation, weight) is expected


@pytest.mark.parametrize(("activation", "weight"), [(127, -128), (127, 127), (255, -64), (255, 64)])
@pytest.mark.parametrize("depth", [4, 64])
def test_what_the_rule_allows_is_exact_at_its_ends(activation: int, weight: int, depth: int) -> None:
    """On this CPU, whatever it is: the largest products there are, and nothing else."""
    x = torch.full((3, depth, 6, 6), activation, dtype=torch.uint8)
    kernel = torch.full((16, depth, 3, 3), weight, dtype=torch.int8)
    scales, zeros = torch.ones(16), torch.zeros(16, dtype=torch.int32)
    tail = (torch.float32, "none", [0.0], "")
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    packed = onednn.qconv_prepack(kernel, scales, 1.0, 0, *geometry, list(x.shape))
    image = x.contiguous(memory_format=torch.channels_last)
    found = onednn.qconv_pointwise(image, 1.0, 0, packed, scales, zeros, None, *geometry, 1.0, 0, *tail)
    assert (found == 9 * depth * activation * weight).all()
    rows, matrix = x[:, :, 0, 0].contiguous(), kernel[:, :, 0, 0].contiguous()
    packed = onednn.qlinear_prepack(matrix, list(rows.shape))
    found = onednn.qlinear_pointwise(rows, 1.0, 0, packed, scales, zeros, None, 1.0, 0, *tail)
    assert (found == depth * activation * weight).all()


# Refusal.


@pytest.mark.usefixtures("cpu_without_vnni")
def test_what_would_saturate_stays_float_and_says_why(run_flow: RunFlow) -> None:
    flow = run_flow(Net(), X, quantizer=quantizer(STOCK))
    assert not [target for target in flow.targets() if "onednn" in target]
    for node, kernel in (
        ("conv2d", "onednn.qconv_pointwise as conv2d"),
        ("conv2d_1", "onednn.qconv_pointwise as conv2d"),
        ("linear", "onednn.qlinear_pointwise as linear"),
    ):
        decision = flow.decision(node)
        assert (decision.status, decision.reason) == ("float", "saturates-without-vnni")
        assert decision.detail.startswith("activations up to 255")
        assert decision.detail.endswith(f"; tried {kernel}")
        assert "reduce_range=True" in REASONS[decision.reason].advice
        assert "--preset static-7-bit" in REASONS[decision.reason].in_command
    # What only moves values works on integers everywhere.
    assert flow.decision("max_pool2d").status == "quantized"
    # What is left of the graph is the graph itself.
    assert flow.difference() == 0


@pytest.mark.usefixtures("cpu_without_vnni")
@pytest.mark.parametrize("config", [REDUCED, NARROW_WEIGHTS], ids=["7-bit activations", "7-bit weights"])
def test_what_fits_is_lowered(config: QuantizationConfig, run_flow: RunFlow) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SaturationWarning)
        flow = run_flow(Net(), X, quantizer=quantizer(config))
    assert len([target for target in flow.targets() if "pointwise" in target]) == 3
    assert flow.difference() < 0.01


@pytest.mark.skipif(not has_vnni(), reason="needs a CPU with VNNI")
def test_with_vnni_the_stock_preset_is_lowered(run_flow: RunFlow) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SaturationWarning)
        flow = run_flow(Net(), X, quantizer=quantizer(STOCK))
    assert len([target for target in flow.targets() if "pointwise" in target]) == 3
    assert flow.difference() < 0.01


IN_ANOTHER_PROCESS = """
import warnings, torch
import lowbit
warnings.simplefilter("ignore", lowbit.errors.SaturationWarning)
torch.manual_seed(0)
model, x = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU()).eval(), 3 * torch.rand(8, 64)
torch.nn.init.uniform_(model[0].weight, 0.9, 1)
# Under this limit linears have the kernel of convolutions.
for reduce_range in (False, True):
    preset = lowbit.get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
    exported = torch.export.export(model, (x,)).module()
    prepared = lowbit.prepare_pt2e(exported, lowbit.X86InductorQuantizer().set_global(preset))
    converted = lowbit.convert_pt2e(lowbit.calibrate(prepared, [x], progress=False))
    lowered = lowbit.lower_pt2e(converted)
    with torch.no_grad():
        error = ((lowered(x) - converted(x)).abs().max() / converted(x).abs().max()).item()
    (reason,) = {d.reason for d in lowbit.decisions(lowered)}
    print(reason, "onednn.qconv_pointwise" in str(lowered.graph), error < 1e-5)
"""


def test_a_limit_on_onednn_is_heeded(tmp_path: Path) -> None:
    """Set for a process, it makes CPUs with VNNI refuse too, and their results right."""
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["saturates-without-vnni False True", "linear-relu True True"]


# The warning.


def prepared_with_warnings(config: QuantizationConfig, model: nn.Module) -> list[str]:
    exported = torch.export.export(model.eval(), (X,)).module()
    assert isinstance(exported, GraphModule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare_pt2e(exported, quantizer(config))
    return [str(w.message) for w in caught if issubclass(w.category, SaturationWarning)]


@pytest.mark.usefixtures("cpu_without_vnni")
def test_one_warning_says_how_many_and_what_to_do() -> None:
    (message,) = prepared_with_warnings(STOCK, Net())
    assert message.startswith("3 operators are annotated")
    assert "will leave them float here" in message
    assert "reduce_range=True" in message
    (message,) = prepared_with_warnings(STOCK, nn.Conv2d(3, 4, 3))
    assert message.startswith("1 operator is annotated")


@pytest.mark.usefixtures("cpu_without_vnni")
def test_no_warning_of_what_fits_or_is_not_quantized() -> None:
    assert not prepared_with_warnings(REDUCED, Net())
    assert not prepared_with_warnings(NARROW_WEIGHTS, Net())
    assert not prepared_with_warnings(STOCK, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())[1:])


@pytest.mark.usefixtures("cpu_with_vnni")
def test_no_warning_with_vnni() -> None:
    assert not prepared_with_warnings(STOCK, Net())


def test_a_model_lowered_on_another_cpu_is_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is asked where the graph is lowered, not where it was prepared."""
    exported = torch.export.export(Net().eval(), (X,)).module()
    assert isinstance(exported, GraphModule)
    monkeypatch.setattr(saturation, "has_vnni", lambda: True)
    converted = convert_pt2e(lowbit.calibrate(prepare_pt2e(exported, quantizer(STOCK)), [X], progress=False))
    monkeypatch.setattr(saturation, "has_vnni", lambda: False)
    lowered = lower_pt2e(converted)
    assert "onednn" not in str(lowered.graph)
    assert "saturates-without-vnni" in {d.reason for d in decisions(lowered)}
