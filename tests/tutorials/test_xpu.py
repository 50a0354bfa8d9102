"""The tutorial "PyTorch 2 Export Quantization with Intel GPU Backend through Inductor".

Every block of it, with other imports, a CPU in place of the "xpu" device, smaller images and random weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from lowbit import (
    HistogramObserver,
    PerChannelMinMaxObserver,
    QuantizationConfig,
    QuantizationSpec,
    XPUInductorQuantizer,
    convert_pt2e,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends import xpu_inductor as xpuiq
from lowbit.tools.models import resnet18
from torch.export import export
from torch.fx import GraphModule

if TYPE_CHECKING:
    from lowbit.ir.specs import ObserverOrFakeQuantizeConstructor


def get_xpu_inductor_symm_quantization_config() -> QuantizationConfig:
    extra_args: dict[str, Any] = {"eps": 2**-12}
    act_observer_or_fake_quant_ctr = HistogramObserver
    act_quantization_spec = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric,  # Change the activation quant config to symmetric
        is_dynamic=False,
        observer_or_fake_quant_ctr=act_observer_or_fake_quant_ctr.with_args(**extra_args),
    )

    weight_observer_or_fake_quant_ctr: ObserverOrFakeQuantizeConstructor = PerChannelMinMaxObserver

    weight_quantization_spec = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,  # Same as the default config, the only option for weight
        ch_axis=0,  # 0 corresponding to weight shape = (oc, ic, kh, kw) of conv
        is_dynamic=False,
        observer_or_fake_quant_ctr=weight_observer_or_fake_quant_ctr.with_args(**extra_args),
    )

    bias_quantization_spec = None  # will use placeholder observer by default
    return QuantizationConfig(
        act_quantization_spec,
        act_quantization_spec,
        weight_quantization_spec,
        bias_quantization_spec,
        False,
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_intel_gpu_backend_through_inductor(symmetric: bool) -> None:
    torch.manual_seed(191009)
    # Create the Eager Model
    model = resnet18(num_classes=10)

    # Set the model to eval mode
    model = model.eval().to("cpu")

    # Create the data, using the dummy data here as an example
    traced_bs = 2
    x = torch.randn(traced_bs, 3, 32, 32, device="cpu").contiguous(memory_format=torch.channels_last)
    example_inputs = (x,)

    # Capture the FX Graph to be quantized
    with torch.no_grad():
        exported_model = export(model, example_inputs).module()
    assert isinstance(exported_model, GraphModule)

    quantizer = XPUInductorQuantizer()
    quantizer.set_global(xpuiq.get_default_xpu_inductor_quantization_config())
    if symmetric:
        # Then, set the quantization configuration to the quantizer.
        quantizer = XPUInductorQuantizer()
        quantizer.set_global(get_xpu_inductor_symm_quantization_config())

    prepared_model = prepare_pt2e(exported_model, quantizer)

    # We use the dummy data as an example here
    prepared_model(*example_inputs)

    converted_model = convert_pt2e(prepared_model)
    with torch.no_grad():
        expected = converted_model(*example_inputs)
        assert sqnr(model(x), expected) > 15
    assert zero_points(converted_model) == {0} if symmetric else zero_points(converted_model) != {0}

    with torch.no_grad():
        optimized_model = torch.compile(converted_model)

        # Running some benchmark
        assert sqnr(expected, optimized_model(*example_inputs)) > 30

    with torch.amp.autocast(device_type="cpu", dtype=torch.bfloat16), torch.no_grad():
        # Turn on Autocast to use int8-mixed-bf16 quantization.
        optimized_model = torch.compile(converted_model)

        # Running some benchmark
        result = optimized_model(*example_inputs)
        assert result.dtype is torch.bfloat16
        assert sqnr(expected, result.float()) > 15

    # What would run there: all convolutions and the linear, the residual additions within them.
    lowered = lower_pt2e(converted_model, pack_weights=False)
    called = [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]
    assert called.count("onednn.qconv_pointwise.default") == 12
    assert called.count("onednn.qconv2d_pointwise.binary") == 8
    assert called.count("onednn.qlinear_pointwise.default") == 1
    # Of the float model one operator is left, which these GPUs have no int8 kernel for.
    left = {name for name in called if name.startswith("aten.")}
    assert "aten.max_pool2d.default" in left
    assert not {"aten.conv2d.default", "aten.linear.default", "aten.add.Tensor", "aten.relu.default"} & left


def zero_points(converted: GraphModule) -> set[object]:
    """Those of activations."""
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    return {node.args[2] for node in converted.graph.find_nodes(op="call_function", target=quantize)}


def sqnr(signal: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to noise, dB."""
    return float(10 * torch.log10(signal.pow(2).mean() / (signal - other).pow(2).mean()))
