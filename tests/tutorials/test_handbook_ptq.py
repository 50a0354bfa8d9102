"""The handbook's "PyTorch 2 Export Post Training Quantization", on XNNPACK, and its note on the IR.

The code is the page's, with other imports and the lines it lost completed (``**self.__dict__``). Where it
reads ImageNet and a downloaded ResNet-18, random images and weights stand. ``torch.jit.script`` does not take
exported models, so the size is that of the state, as in the X86 tutorial. How the Q/DQ and the reference
representation are written is checked by running the page's functions beside a converted model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lowbit import (
    XNNPACKQuantizer,
    convert_pt2e,
    decisions,
    get_symmetric_quantization_config,
    prepare_pt2e,
)
from lowbit.ir import quantized_decomposed as qd
from lowbit.tools.models import resnet18
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture(autouse=True)
def seed() -> None:
    # Specify random seed for repeatable results
    _ = torch.manual_seed(191009)


class M(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_the_api_at_a_glance() -> None:
    example_inputs = (torch.randn(1, 5),)
    m = M().eval()
    float_model = m

    # Step 1. program capture
    m = torch.export.export(m, example_inputs).module()
    # we get a model with aten ops

    # Step 2. quantization
    # backend developer will write their own Quantizer and expose methods to allow
    # users to express how they
    # want the model to be quantized
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    m = prepare_pt2e(m, quantizer)

    # calibration omitted
    m(*example_inputs)

    m = convert_pt2e(m)
    # we have a model with aten ops doing integer computations when possible
    assert [d.status for d in decisions(m)] == ["quantized"]
    assert (m(*example_inputs) - float_model(*example_inputs)).abs().max() < 0.02


# Define Helper Functions and Prepare Dataset


class AverageMeter:
    """Computes and stores the average and current value"""

    def __init__(self, name: str, fmt: str = ":f") -> None:
        self.name = name
        self.fmt = fmt
        self.reset()

    def reset(self) -> None:
        self.val = 0
        self.avg = 0
        self.sum = 0
        self.count = 0

    def update(self, val: Any, n: int = 1) -> None:
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count

    def __str__(self) -> str:
        fmtstr = "{name} {val" + self.fmt + "} ({avg" + self.fmt + "})"
        return fmtstr.format(**self.__dict__)


def accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[Tensor]:
    """Computes the accuracy over the k top predictions for the specified values of k."""
    with torch.no_grad():
        maxk = max(topk)
        batch_size = target.size(0)

        _, pred = output.topk(maxk, 1, True, True)
        pred = pred.t()
        correct = pred.eq(target.view(1, -1).expand_as(pred))

        res = []
        for k in topk:
            correct_k = correct[:k].reshape(-1).float().sum(0, keepdim=True)
            res.append(correct_k.mul_(100.0 / batch_size))
        return res


def evaluate(model: nn.Module, criterion: nn.Module, data_loader: Any) -> tuple[AverageMeter, AverageMeter]:
    model.eval()
    top1 = AverageMeter("Acc@1", ":6.2f")
    top5 = AverageMeter("Acc@5", ":6.2f")
    cnt = 0
    with torch.no_grad():
        for image, target in data_loader:
            output = model(image)
            criterion(output, target)
            cnt += 1
            acc1, acc5 = accuracy(output, target, topk=(1, 5))
            top1.update(acc1[0], image.size(0))
            top5.update(acc5[0], image.size(0))
    assert cnt == len(data_loader)

    return top1, top5


def load_model(model_file: Path) -> nn.Module:
    model = resnet18()
    state_dict = torch.load(model_file)
    model.load_state_dict(state_dict)
    model.to("cpu")
    return model


def print_size_of_model(model: nn.Module, temp: Path) -> float:
    torch.save(model.state_dict(), temp)
    size = os.path.getsize(temp) / 1e6
    os.remove(temp)
    return size


def prepare_data_loaders(train_batch_size: int, eval_batch_size: int) -> tuple[DataLoader, DataLoader]:
    dataset = TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4))
    dataset_test = TensorDataset(torch.rand(6, 3, 32, 32), torch.arange(6))

    train_sampler = torch.utils.data.RandomSampler(dataset)
    test_sampler = torch.utils.data.SequentialSampler(dataset_test)

    data_loader = torch.utils.data.DataLoader(dataset, batch_size=train_batch_size, sampler=train_sampler)

    data_loader_test = torch.utils.data.DataLoader(
        dataset_test, batch_size=eval_batch_size, sampler=test_sampler
    )

    return data_loader, data_loader_test


def calibrate(model: nn.Module, data_loader: DataLoader) -> None:
    model.eval()
    with torch.no_grad():
        for image, _target in data_loader:
            model(image)


def test_average_meters_print() -> None:
    meter = AverageMeter("Acc@1", ":6.2f")
    meter.update(50.0, 2)
    assert str(meter) == "Acc@1  50.00 ( 50.00)"


def test_post_training_quantization(tmp_path: Path) -> None:
    saved_model_dir = tmp_path
    float_model_file = "resnet18_pretrained_float.pth"
    torch.save(resnet18().state_dict(), saved_model_dir / float_model_file)

    train_batch_size = 2
    eval_batch_size = 2

    data_loader, data_loader_test = prepare_data_loaders(train_batch_size, eval_batch_size)
    example_inputs = next(iter(data_loader))[0]
    criterion = nn.CrossEntropyLoss()
    float_model = load_model(saved_model_dir / float_model_file).to("cpu")
    float_model.eval()

    # create another instance of the model since
    # we need to keep the original model around
    model_to_quantize = load_model(saved_model_dir / float_model_file).to("cpu")

    # Set the model to eval mode
    model_to_quantize.eval()

    # Export the model with torch.export; with dynamic dimensions: see the test of the X86 tutorial
    example_inputs = (torch.rand(2, 3, 32, 32),)
    exported_model = torch.export.export(model_to_quantize, example_inputs).module()

    # Import the Backend Specific Quantizer and Configure how to Quantize the Model
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config())

    # Prepare the Model for Post Training Quantization
    prepared_model = prepare_pt2e(exported_model, quantizer)
    assert "activation_post_process" in str(prepared_model.graph)
    # prepare_pt2e folds BatchNorm operators into preceding Conv2d operators
    assert "batch_norm" not in str(prepared_model.graph)

    # Calibration
    calibrate(prepared_model, data_loader_test)  # run calibration on sample data

    # Convert the Calibrated Model to a Quantized Model
    quantized_model = convert_pt2e(prepared_model)
    assert {d.status for d in decisions(quantized_model)} == {"quantized"}

    # Checking Model Size and Accuracy Evaluation
    # Baseline model size and accuracy
    size_of_baseline = print_size_of_model(float_model, tmp_path / "temp.p")

    top1, top5 = evaluate(float_model, criterion, data_loader_test)
    assert top1.count == top5.count == 6

    # Quantized model size and accuracy
    # "The weights are still in fp32 right now": here they are int8 once converted
    assert print_size_of_model(quantized_model, tmp_path / "temp.p") < 0.27 * size_of_baseline

    before, _ = evaluate(quantized_model, criterion, data_loader_test)

    # Save and Load Quantized Model
    # 0. Store reference output, for example, inputs, and check evaluation accuracy:
    example_inputs = (next(iter(data_loader))[0],)
    ref = quantized_model(*example_inputs)

    # 1. Export the model and Save ExportedProgram
    pt2e_quantized_model_file_path = saved_model_dir / "resnet18_pt2e_quantized.pt2"
    # capture the model to get an ExportedProgram
    quantized_ep = torch.export.export(quantized_model, example_inputs)
    # use torch.export.save to save an ExportedProgram
    torch.export.save(quantized_ep, pt2e_quantized_model_file_path)

    # 2. Load the saved ExportedProgram
    loaded_quantized_ep = torch.export.load(pt2e_quantized_model_file_path)
    loaded_quantized_model = loaded_quantized_ep.module()

    # 3. Check results for example inputs and check evaluation accuracy again:
    res = loaded_quantized_model(*example_inputs)
    assert (ref - res).abs().max() == 0

    # eval() of what torch loads raises, which is torch's to mend; it is in evaluation anyway.
    loaded_quantized_model.eval = lambda: loaded_quantized_model
    after, _ = evaluate(loaded_quantized_model, criterion, data_loader_test)
    assert torch.equal(before.avg, after.avg)


def test_ways_to_configure_a_quantizer() -> None:
    class Bar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bar = nn.Linear(6, 6)
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(self.bar(x), self.weight)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.foo, self.conv, self.linear = Bar(), nn.Conv2d(3, 3, 1), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(self.foo(x)))

    example_inputs = (torch.rand(1, 3, 6, 6),)
    names = {"conv2d", "linear", "linear_1", "linear_2"}

    def quantized(quantizer: XNNPACKQuantizer) -> set[str]:
        m = torch.export.export(Model().eval(), example_inputs).module()
        prepared = prepare_pt2e(m, quantizer)
        return {d.node for d in decisions(prepared) if d.status == "quantized"}

    # qconfig_opt is an optional quantization config
    qconfig_opt = get_symmetric_quantization_config()
    everything = (
        XNNPACKQuantizer()
        .set_global(qconfig_opt)
        .set_object_type(torch.nn.Conv2d, qconfig_opt)  # can be a module type
        .set_object_type(torch.nn.functional.linear, qconfig_opt)  # or torch functional op
        .set_module_name("foo.bar", qconfig_opt)
    )
    assert quantized(everything) == names
    some = (
        XNNPACKQuantizer()
        .set_global(None)
        .set_object_type(torch.nn.Conv2d, qconfig_opt)
        .set_module_name("foo.bar", qconfig_opt)
    )
    assert quantized(some) == {"conv2d", "linear"}
    others = XNNPACKQuantizer().set_global(qconfig_opt).set_object_type(torch.nn.functional.linear, None)
    assert quantized(others) == {"conv2d"}


# Q/DQ Representation (default)


def quantized_linear(  # noqa: PLR0917  (the page's)
    x_i8: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight_i8: Tensor,
    weight_scale: float,
    weight_zero_point: int,
    bias_fp32: Tensor,
    output_scale: float,
    output_zero_point: int,
) -> Tensor:
    x_fp32 = torch.ops.quantized_decomposed.dequantize_per_tensor(
        x_i8, x_scale, x_zero_point, -128, 127, torch.int8
    )
    weight_fp32 = torch.ops.quantized_decomposed.dequantize_per_tensor(
        weight_i8, weight_scale, weight_zero_point, -127, 127, torch.int8
    )
    weight_permuted = torch.ops.aten.permute_copy.default(weight_fp32, [1, 0])
    out_fp32 = torch.ops.aten.addmm.default(bias_fp32, x_fp32, weight_permuted)
    return torch.ops.quantized_decomposed.quantize_per_tensor(
        out_fp32, output_scale, output_zero_point, -128, 127, torch.int8
    )


# Reference Quantized Pattern for quantized linear


def reference_quantized_linear(  # noqa: PLR0917  (the page's)
    x_int8: Tensor,
    x_scale: float,
    x_zero_point: int,
    weight_int8: Tensor,
    weight_scale: float,
    weight_zero_point: int,
    bias_fp32: Tensor,
    output_scale: float,
    output_zero_point: int,
) -> Tensor:
    out_dtype = torch.ops.higher_order.out_dtype
    x_int16 = x_int8.to(torch.int16)
    # The page leaves the transposition of the weight out.
    weight_int16 = weight_int8.to(torch.int16).t()
    acc_int32 = out_dtype(
        torch.ops.aten.mm.default, torch.int32, (x_int16 - x_zero_point), (weight_int16 - weight_zero_point)
    )
    bias_scale = x_scale * weight_scale
    bias_int32 = out_dtype(torch.ops.aten.div.Tensor, torch.int32, bias_fp32, torch.tensor(bias_scale))
    acc_int32 = acc_int32 + bias_int32
    acc_int32 = (
        out_dtype(torch.ops.aten.mul.Scalar, torch.int32, acc_int32, x_scale * weight_scale / output_scale)
        + output_zero_point
    )
    return torch.ops.aten.clamp(acc_int32, -128, 127).to(torch.int8)


def test_representations_of_a_quantized_linear() -> None:
    x = torch.randn(4, 5)
    m = torch.export.export(M().eval(), (x,)).module()
    prepared = prepare_pt2e(m, XNNPACKQuantizer().set_global(get_symmetric_quantization_config()))
    prepared(x)
    converted = convert_pt2e(prepared)

    read, written = converted.graph.find_nodes(op="call_function", target=qd.QUANTIZE_PER_TENSOR)
    (linear,) = converted.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    weight, weight_scale, weight_zero_point, *_ = linear.args[1].args
    arguments = (
        qd.QUANTIZE_PER_TENSOR(x, *read.args[1:]),
        *read.args[1:3],
        converted.get_buffer(weight.target),
        weight_scale,
        weight_zero_point,
        converted.get_parameter("linear.bias"),
        *written.args[1:3],
    )
    integers = quantized_linear(*arguments)
    out = qd.DEQUANTIZE_PER_TENSOR(integers, *written.args[1:])
    assert torch.equal(converted(x), out)

    # convert_pt2e(..., use_reference_representation=True)
    reference = convert_pt2e(prepared, use_reference_representation=True)
    # The page's function truncates where quantization rounds.
    assert (reference_quantized_linear(*arguments).int() - integers.int()).abs().max() <= 2
    scale = written.args[1]
    assert (reference(x) - out).abs().max() <= 1.01 * scale
    assert not any(qd.is_dequantize(node) for node in reference.graph.nodes)


# A Note on IR for PT2E Quantization Flow


@pytest.mark.parametrize("strict", [False, True])
def test_matching_aten_ir_directly(strict: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.conv3 = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.bn, self.relu = nn.BatchNorm2d(3), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.nn.functional.relu(self.conv1(x))
            return self.relu(self.conv3(self.relu(self.bn(self.conv2(x)))))

    gm = torch.export.export(Model().eval(), (torch.rand(1, 3, 8, 8),), strict=strict).module()
    assert isinstance(gm, GraphModule)
    annotated = []
    for n in gm.graph.nodes:
        if n.op != "call_function" or n.target not in [
            torch.ops.aten.relu.default,
            torch.ops.aten.relu_.default,
        ]:
            continue
        relu_node = n
        maybe_conv_node = n.args[0]
        if (
            not isinstance(maybe_conv_node, Node)
            or maybe_conv_node.op != "call_function"
            or maybe_conv_node.target
            not in [
                torch.ops.aten.conv1d.default,
                torch.ops.aten.conv2d.default,
            ]
        ):
            continue

        # annotate conv and relu nodes
        annotated.append((maybe_conv_node.name, relu_node.target))
    # "The representation might change": a BatchNorm that is not folded yet hides the second convolution.
    assert annotated == [
        ("conv2d", torch.ops.aten.relu.default),
        ("conv2d_2", torch.ops.aten.relu_.default),
    ]
