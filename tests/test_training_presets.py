"""prepare_qat_pt2e asks for specs that train: presets for calibration are taken with a warning."""

from __future__ import annotations

import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
)
from lowbit.errors import NothingRoundedWarning
from lowbit.ir.quantizer import Quantizer
from lowbit.quantize_pt2e import prepare_qat_pt2e
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
