"""Presets for training and for calibration, where the other is wanted, and both in one model."""

from __future__ import annotations

import pytest
import torch
from lowbit import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    QConfigMapping,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    convert_pt2e,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
    move_exported_model_to_eval,
    prepare_fx,
)
from lowbit.backends.backend_config import get_default_qat_qconfig, get_native_backend_config
from lowbit.backends.backend_config.quantizer import BackendConfigQuantizer
from lowbit.errors import NothingRoundedWarning, RoundedCalibrationWarning, SpecError
from lowbit.ir.quantizer import Quantizer
from lowbit.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e
from torch import nn
from torch.fx import GraphModule

X = torch.ones(2, 4)


def exported() -> GraphModule:
    return torch.export.export(nn.Linear(4, 4), (X,)).module()


@pytest.mark.parametrize(
    "quantizer",
    [
        X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(reduce_range=True)),
        XNNPACKQuantizer().set_global(get_symmetric_quantization_config()),
        XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_dynamic=True)),
    ],
    ids=["x86", "xnnpack", "xnnpack dynamic"],
)
def test_a_preset_that_is_not_for_training(quantizer: Quantizer) -> None:
    with pytest.warns(NothingRoundedWarning, match="is_qat=True"):
        prepare_qat_pt2e(exported(), quantizer)


@pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")
def test_a_model_of_which_nothing_is_quantized() -> None:
    model = exported()
    assert torch.equal(prepare_qat_pt2e(model, X86InductorQuantizer())(X), model(X))


def x86(**preset: bool) -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(reduce_range=True, **preset)
    return X86InductorQuantizer().set_global(config)


@pytest.mark.parametrize(
    "quantizer",
    [
        x86(is_qat=True),
        x86(is_qat=True, is_dynamic=True),
        XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=True)),
    ],
    ids=["x86", "x86 dynamic", "xnnpack"],
)
def test_a_preset_that_is_for_training_only(quantizer: Quantizer) -> None:
    with pytest.warns(RoundedCalibrationWarning, match="Use prepare_qat_pt2e, or a preset without is_qat"):
        prepared = prepare_pt2e(exported(), quantizer)
    # As in PyTorch's flow it works all the same.
    prepared(X)
    assert convert_pt2e(prepared)(X).shape == (2, 4)


def test_the_mapping_of_a_module_is_checked_at_once() -> None:
    mapping = QConfigMapping().set_global(get_default_qat_qconfig())
    with pytest.raises(SpecError, match="has fake quantizers, which observe in training only"):
        prepare_fx(nn.Linear(4, 4).eval(), mapping, (X,))


@pytest.mark.parametrize("prepare", [prepare_pt2e, prepare_qat_pt2e])
@pytest.mark.parametrize("nested", [False, True])
def test_training_and_calibration_are_not_mixed_in_a_composition(prepare, nested: bool) -> None:
    parts = [x86(is_qat=True), XNNPACKQuantizer().set_global(get_symmetric_quantization_config())]
    for order in (parts, parts[::-1]):
        quantizer = ComposableQuantizer([ComposableQuantizer(order[:1]), order[1]] if nested else order)
        with pytest.raises(SpecError, match=r"QAT configuration of X86.* mixed with a PTQ one of XNNPACK"):
            prepare(exported(), quantizer)


def test_a_mapping_is_not_mixed_with_a_preset_of_the_other_kind() -> None:
    mapping = QConfigMapping().set_global(get_default_qat_qconfig())
    by_mapping = BackendConfigQuantizer(get_native_backend_config(), mapping, is_qat=True)
    with pytest.raises(SpecError, match=r"QAT configuration of BackendConfigQuantizer .* PTQ one of X86"):
        prepare_qat_pt2e(exported(), ComposableQuantizer([by_mapping, x86()]))


def test_what_is_configured_says_what_it_is_for() -> None:
    quantizer = x86(is_qat=True)
    assert quantizer.is_qat is True
    assert quantizer.set_global(None).is_qat is None
    assert quantizer.set_module_name("head", get_default_x86_inductor_quantization_config()).is_qat is False
    # Who has weights alone in low precision goes with both.
    assert EmbeddingQuantizer().is_qat is None


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(i))


def test_weights_that_training_moves_are_observed_as_they_are_in_the_end() -> None:
    """An observer of a weight, which no fake quantizer rounds, knows the weight and not its history."""
    i = torch.arange(20)
    model = torch.export.export(Text(), (i,)).module()
    assert isinstance(model, GraphModule)
    prepared = prepare_qat_pt2e(model, ComposableQuantizer([EmbeddingQuantizer(), x86(is_qat=True)]))
    prepared(i)
    with torch.no_grad():
        # A power of two, so that scales are exactly as much smaller; the smallest is that of the preset.
        prepared.get_parameter("embedding.weight").mul_(2**-3)
    converted = convert_pt2e(move_exported_model_to_eval(prepared))
    table = prepared.get_parameter("embedding.weight").detach()
    low, high = table.amin(1).clamp(max=0), table.amax(1).clamp(min=0)
    expected = ((high - low) / 255).clamp(min=2**-12)
    assert torch.allclose(converted.state_dict()["embedding.weight_scale"], expected, rtol=1e-6, atol=0)
