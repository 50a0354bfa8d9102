"""The tutorials on post-training quantization, with other imports, smaller images and random data.

"PyTorch 2 Export Post Training Quantization with X86 Backend through Inductor" and "PyTorch 2 Export Post
Training Quantization". Names, arguments and the order of calls are theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends import x86_inductor as xiq
from lowbit.errors import SaturationWarning
from lowbit.tools.models import resnet18
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

WEIGHTED = ("aten.conv2d.default", "aten.linear.default")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(191009)


def calibrate(model: GraphModule, data_loader: DataLoader[tuple[Tensor, Tensor]]) -> None:
    """As the pages have it."""
    model.eval()
    with torch.no_grad():
        for image, _target in data_loader:
            model(image)


def images(count: int, size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(TensorDataset(torch.randn(count, 3, size, size), torch.arange(count)), batch_size=2)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_x86_backend_through_inductor(reduce_range: bool) -> None:
    # Create the Eager Model
    model = resnet18()

    # Set the model to eval mode
    model = model.eval()

    # Create the data, using the dummy data here as an example
    traced_bs = 2
    x = torch.randn(traced_bs, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    example_inputs = (x,)

    # Capture the FX Graph to be quantized
    with torch.no_grad():
        exported_model = torch.export.export(model, example_inputs).module()
    assert isinstance(exported_model, GraphModule)

    quantizer = X86InductorQuantizer()
    quantizer.set_global(xiq.get_default_x86_inductor_quantization_config(reduce_range=reduce_range))

    # "When Vector Neural Network Instruction is not available, the oneDNN backend silently chooses kernels
    # that assume multiplications are 7-bit x 8-bit": not silently here.
    saturates = not (reduce_range or xiq.has_vnni())
    with pytest.warns(SaturationWarning, match="reduce_range=True") if saturates else nullcontext():
        prepared_model = prepare_pt2e(exported_model, quantizer)

    # We use the dummy data as an example here
    prepared_model(*example_inputs)

    # Alternatively: user can define the dataset to calibrate
    calibrate(prepared_model, images(4, 64))

    converted_model = convert_pt2e(prepared_model)

    # The way without freezing.
    lowered_model = lower_pt2e(converted_model)
    with torch.no_grad():
        assert sqnr(model(x), lowered_model(x)) > 15
        assert sqnr(converted_model(x), lowered_model(x)) > (25 if reduce_range else 30)
    if saturates:
        multiplying = [d for d in decisions(lowered_model) if d.target in WEIGHTED]
        assert len(multiplying) == 21
        assert {(d.status, d.reason) for d in multiplying} == {("float", "saturates-without-vnni")}
        return

    # TORCHINDUCTOR_FREEZING=1
    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        optimized_model = torch.compile(converted_model)

        # Running some benchmark
        result = optimized_model(*example_inputs)

    lowered = counters["inductor"]
    assert lowered["qconv_unary_lower_count"] == 12
    assert lowered["qconv2d_binary_lower_count"] == 8
    assert lowered["qlinear_unary_lower_count"] == 1
    with torch.no_grad():
        assert sqnr(model(x), result) > 15
        assert sqnr(converted_model(x), result) > (25 if reduce_range else 30)
        # The way without freezing gives the same.
        assert sqnr(result, lowered_model(x)) > (25 if reduce_range else 30)


def sqnr(signal: Tensor, other: Tensor) -> float:
    """Signal to noise, dB."""
    return float(10 * torch.log10(signal.pow(2).mean() / (signal - other).pow(2).mean()))


def print_size_of_model(model: nn.Module, path: Path) -> float:
    torch.save(model.state_dict(), path)
    size = os.path.getsize(path) / 1e6
    path.unlink()
    return size


def accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(1) == target).float().mean())


def evaluate(
    model: nn.Module, criterion: Callable[..., Tensor], data_loader: DataLoader[tuple[Tensor, Tensor]]
) -> float:
    model.eval()
    top1 = []
    with torch.no_grad():
        for image, target in data_loader:
            output = model(image)
            assert criterion(output, target).isfinite()
            top1.append(accuracy(output, target))
    return sum(top1) / len(top1)


def test_motivation() -> None:
    class M(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(5, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    example_inputs = (torch.randn(1, 5),)
    m = M().eval()

    # Step 1. program capture
    exported = torch.export.export(m, example_inputs).module()
    assert isinstance(exported, GraphModule)

    # Step 2. quantization
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(*example_inputs)
    converted = convert_pt2e(prepared)
    assert (converted(*example_inputs) - m(*example_inputs)).abs().max() < 0.02


@pytest.mark.parametrize("dynamic", [False, True])
def test_export_post_training_quantization(dynamic: bool, tmp_path: Path) -> None:
    data_loader_test = images(8, 32)
    example_inputs = (next(iter(data_loader_test))[0],)
    criterion = nn.CrossEntropyLoss()
    float_model = resnet18(num_classes=10)

    # Set the model to eval mode
    model_to_quantize = resnet18(num_classes=10)
    model_to_quantize.eval()

    # Export the model with torch.export, or capture with dynamic dimensions
    dynamic_shapes = tuple(
        {0: torch.export.Dim("dim")} if i == 0 else None for i in range(len(example_inputs))
    )
    exported_model = torch.export.export(
        model_to_quantize, example_inputs, dynamic_shapes=dynamic_shapes if dynamic else None
    ).module()
    assert isinstance(exported_model, GraphModule)

    # Import the Backend Specific Quantizer and Configure how to Quantize the Model
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())

    # Prepare the Model for Post Training Quantization
    prepared_model = prepare_pt2e(exported_model, quantizer)
    assert "activation_post_process" in str(prepared_model.graph)
    assert "batch_norm" not in str(prepared_model.graph)

    # Calibration
    calibrate(prepared_model, data_loader_test)

    # Convert the Calibrated Model to a Quantized Model
    quantized_model = convert_pt2e(prepared_model)

    # Checking Model Size and Accuracy Evaluation
    size_of_baseline = print_size_of_model(float_model, tmp_path / "temp.p")
    evaluate(float_model, criterion, data_loader_test)
    size_of_quantized = print_size_of_model(quantized_model, tmp_path / "temp.p")
    assert size_of_quantized < 0.27 * size_of_baseline
    top1 = evaluate(quantized_model, criterion, data_loader_test)

    # Save and Load Quantized Model
    # 0. Store reference output, for example, inputs, and check evaluation accuracy
    ref = quantized_model(*example_inputs)

    # 1. Export the model and Save ExportedProgram
    pt2e_quantized_model_file_path = tmp_path / "resnet18_pt2e_quantized.pt2"
    quantized_ep = torch.export.export(
        quantized_model, example_inputs, dynamic_shapes=dynamic_shapes if dynamic else None
    )
    torch.export.save(quantized_ep, pt2e_quantized_model_file_path)
    # export again to remove unused weights: there are none
    again = quantized_ep.module()
    assert print_size_of_model(again, tmp_path / "temp.p") == pytest.approx(size_of_quantized, rel=0.01)

    # 2. Load the saved ExportedProgram
    loaded_quantized_ep = torch.export.load(pt2e_quantized_model_file_path)
    loaded_quantized_model = loaded_quantized_ep.module()

    # 3. Check results for example inputs and check evaluation accuracy again
    assert torch.equal(ref, loaded_quantized_model(*example_inputs))
    # An exported program refuses eval(), which is torch's to mend, so without it.
    with torch.no_grad():
        results = [accuracy(loaded_quantized_model(image), target) for image, target in data_loader_test]
    assert sum(results) / len(results) == top1
    if dynamic:
        image = torch.randn(5, 3, 32, 32)
        assert torch.equal(quantized_model(image), loaded_quantized_model(image))
