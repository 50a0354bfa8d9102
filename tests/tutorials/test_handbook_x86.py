"""The handbook's chapter on X86 through Inductor, as far as the X86 tutorial's test does not run it already.

That test has static quantization of ResNet-18, compiled with freezing; ``test_qat.py`` has training. Here are
dynamic quantization, the C++ wrapper and int8-mixed-bf16, with other imports and a small model.
"""

from __future__ import annotations

import torch
from lowbit import X86InductorQuantizer, convert_pt2e, decisions, lower_pt2e, prepare_pt2e
from lowbit.backends import x86_inductor as xiq
from torch import Tensor, nn
from torch._inductor import config
from torch.fx import GraphModule

example_inputs = (torch.linspace(-1, 2, 8 * 16).reshape(8, 16),)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.gelu(self.first(x)))


def quantized(is_dynamic: bool) -> GraphModule:
    model = Model().eval()
    with torch.no_grad():
        exported_model = torch.export.export(model, example_inputs).module()
    assert isinstance(exported_model, GraphModule)

    quantizer = X86InductorQuantizer()
    # reduce_range: what CPUs without VNNI need.
    quantizer.set_global(
        xiq.get_default_x86_inductor_quantization_config(
            is_dynamic=is_dynamic, reduce_range=not xiq.has_vnni()
        )
    )
    prepared_model = prepare_pt2e(exported_model, quantizer)

    # We use the dummy data as an example here
    if not is_dynamic:
        # This step is needed for static quantization only.
        prepared_model(*example_inputs)

    return convert_pt2e(prepared_model)


def test_dynamic_quantization() -> None:
    converted_model = quantized(is_dynamic=True)
    assert {d.node for d in decisions(converted_model) if d.status == "quantized"} >= {"linear", "linear_1"}
    lowered_model = lower_pt2e(converted_model)
    with torch.no_grad():
        expected = Model()(*example_inputs)
        for model in (converted_model, lowered_model):
            assert (model(*example_inputs) - expected).abs().max() < 0.05 * expected.abs().max()


def test_lower_into_inductor() -> None:
    converted_model = quantized(is_dynamic=False)
    torch._dynamo.reset()
    # Optional: using the C++ wrapper instead of default Python wrapper
    with torch.no_grad(), config.patch(cpp_wrapper=True):
        optimized_model = torch.compile(lower_pt2e(converted_model))

        # Running some benchmark
        result = optimized_model(*example_inputs)
    with torch.no_grad():
        expected = converted_model(*example_inputs)
    assert (result - expected).abs().max() < 0.02 * expected.abs().max()


def test_int8_mixed_bf16() -> None:
    converted_model = quantized(is_dynamic=False)
    torch._dynamo.reset()
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16, enabled=True), torch.no_grad():
        # Turn on Autocast to use int8-mixed-bf16 quantization.
        optimized_model = torch.compile(converted_model)

        # Running some benchmark
        result = optimized_model(*example_inputs)
    # The output stays bfloat16 where no quantize operator follows.
    assert result.dtype is torch.bfloat16
    with torch.no_grad():
        expected = converted_model(*example_inputs)
    assert (result - expected).abs().max() < 0.05 * expected.abs().max()
