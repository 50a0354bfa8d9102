"""The lowered graph computes what the quantize/dequantize graph says, to one step of the output's scale.

Shapes are drawn from a seed. Many of them are branches of one model, so that export and passes run a few
times, not hundreds of times. All of it is eager: that compiled kernels give the same is for test_compile.
Many more shapes, of every pattern and without the way there, are in test_generated.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    MinMaxObserver,
    QuantizationAnnotation,
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.backends.x86_inductor.cpu import convolves_faster
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule

QCONV = torch.ops.onednn.qconv_pointwise.default
QCONV_ADD = torch.ops.onednn.qconv2d_pointwise.binary
QLINEAR = torch.ops.onednn.qlinear_pointwise.default

Inputs = tuple[Tensor, ...]


class QuantizesOutputs(X86InductorQuantizer):
    """Quantizes what the model returns too, so that it comes out in steps of a scale."""

    def __init__(self, *, reduce_range: bool) -> None:
        super().__init__()
        preset = get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
        # How a range is found is not the matter here, and this is the quick way.
        self.activation = attrs.evolve(
            preset.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12)
        )
        self.set_global(attrs.evolve(preset, input_activation=self.activation))

    def annotate(self, model: GraphModule) -> GraphModule:
        super().annotate(model)
        for node in model.graph.output_node().all_input_nodes:
            annotation = node.meta.setdefault("quantization_annotation", QuantizationAnnotation())
            node.meta["quantization_annotation"] = attrs.evolve(annotation, output_qspec=self.activation)
        return model


class Branches(nn.Module):
    """Independent models, each with inputs of its own."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, inputs: list[Inputs]) -> list[Tensor]:
        return [branch(*x) for branch, x in zip(self.branches, inputs, strict=True)]


class Conv(nn.Module):
    """A convolution, maybe a residual addition, maybe ReLU; ``form`` says how they are written."""

    def __init__(self, conv: nn.Conv2d, form: str, *, relu: bool) -> None:
        super().__init__()
        self.conv = conv
        self.form = form
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if residual is not None:
            if self.form == "right":
                y = y + residual
            elif self.form == "left":
                y = residual + y
            else:
                y += residual
        if self.relu:
            y = y.relu_() if self.form == "in place" else F.relu(y)
        return y


class Linear(nn.Module):
    def __init__(self, linear: nn.Linear, *, relu: bool) -> None:
        super().__init__()
        self.linear = linear
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return F.relu(y) if self.relu else y


@attrs.frozen
class Case:
    model: nn.Module
    inputs: Inputs
    kernel: object


def image(rng: random.Random, shape: tuple[int, int, int, int]) -> Tensor:
    n, c, h, w = shape
    layout = rng.choice(["contiguous", "channels_last", "transposed", "strided"])
    if layout == "transposed":
        return torch.randn(n, c, w, h).transpose(2, 3)
    if layout == "strided":
        return torch.randn(n, c, h, 2 * w)[..., ::2]
    x = torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def draw_conv(rng: random.Random) -> Case:
    depthwise = rng.random() < 0.25
    groups = rng.choice([3, 8, 16]) if depthwise else rng.choice([1, 1, 1, 2, 4])
    c_in = groups * (1 if depthwise else rng.choice([1, 2, 3, 5, 8]))
    c_out = groups * rng.choice([1, 2, 3, 7] if depthwise else [1, 3, 4, 9])
    kernel = (rng.randint(1, 5), rng.randint(1, 5))
    dilation = (rng.choice([1, 1, 2]), rng.choice([1, 1, 3]))
    mode = rng.choice(["numbers", "numbers", "numbers", "same", "valid"])
    if mode == "same":
        # Of an even extent "same" pads the two ends differently, and the convolution stays float.
        kernel = tuple(k if d * (k - 1) % 2 == 0 else k - 1 for k, d in zip(kernel, dilation, strict=True))
    # Of more than this, windows see nothing but padding: test_geometries_that_onednn_gets_wrong.
    most = [min(2, d * (k - 1)) for k, d in zip(kernel, dilation, strict=True)]
    padding = (rng.randint(0, most[0]), rng.randint(0, most[1])) if mode == "numbers" else mode
    stride = (1, 1) if mode == "same" else (rng.randint(1, 3), rng.randint(1, 3))
    height, width = (d * (k - 1) + rng.randint(1, 7) for k, d in zip(kernel, dilation, strict=True))
    if stride[1] > 1:
        # Results one column wide: test_geometries_that_onednn_gets_wrong.
        width += stride[1]
    conv = nn.Conv2d(
        c_in, c_out, kernel, stride, padding, dilation=dilation, groups=groups, bias=rng.random() < 0.7
    )
    x = image(rng, (rng.randint(1, 3), c_in, height, width))
    form = rng.choice(["none", "none", "right", "left", "in place"])
    model = Conv(conv, form, relu=rng.random() < 0.5)
    if form == "none":
        return Case(model, (x,), QCONV)
    with torch.no_grad():
        n, c, h, w = conv(x).shape
    return Case(model, (x, image(rng, (n, c, h, w))), QCONV_ADD)


def draw_linear(rng: random.Random) -> Case:
    n_in, n_out = rng.randint(1, 40), rng.randint(1, 40)
    shape = (*(rng.randint(1, 4) for _ in range(rng.randint(0, 3))), n_in)
    x = torch.randn(shape)
    if len(shape) > 1 and rng.random() < 0.4:
        x = torch.randn(*shape[:-2], n_in, shape[-2]).transpose(-1, -2)
    linear = nn.Linear(n_in, n_out, bias=rng.random() < 0.7)
    kernel = QCONV if convolves_faster() else QLINEAR
    return Case(Linear(linear, relu=rng.random() < 0.5), (x,), kernel)


def quantize(
    model: nn.Module, inputs: list[Inputs], *, reduce_range: bool | None = None, dynamic_shapes: object = None
) -> tuple[GraphModule, GraphModule]:
    """The converted and the lowered model; the range of activations is what this CPU has kernels for."""
    exported = torch.export.export(model.eval(), (inputs,), dynamic_shapes=dynamic_shapes).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(
        exported, QuantizesOutputs(reduce_range=not has_vnni() if reduce_range is None else reduce_range)
    )
    calibrate(prepared, [(inputs,)], progress=False)
    converted = convert_pt2e(prepared)
    return converted, lower_pt2e(converted)


def kernels(model: GraphModule) -> Counter[object]:
    targets = {QCONV, QCONV_ADD, QLINEAR}
    return Counter(node.target for node in model.graph.nodes if node.target in targets)


def assert_within_one_step(converted: GraphModule, lowered: GraphModule, inputs: list[Inputs]) -> None:
    before = [tuple(x.clone() for x in xs) for xs in inputs]
    with torch.no_grad():
        expected, actual = converted(inputs), lowered(inputs)
    for xs, ys in zip(inputs, before, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True)), "an input was overwritten"
    (outputs,) = converted.graph.output_node().args
    assert isinstance(outputs, (list, tuple))
    different = total = 0
    for node, want, got in zip(outputs, expected, actual, strict=True):
        assert node.target is qd.DEQUANTIZE_PER_TENSOR
        assert got.shape == want.shape
        assert got.dtype is torch.float32
        steps = (got - want) / node.args[1]
        assert steps.abs().max().item() <= 1.001 if steps.numel() else True, node
        different += int((steps.abs() > 0.5).sum())
        total += steps.numel()
    # Sums are rounded once by the kernel and several times in float: they part at ties, which are rare.
    assert different <= 0.002 * total


def check(cases: list[Case], *, reduce_range: bool | None = None) -> None:
    inputs = [case.inputs for case in cases]
    converted, lowered = quantize(Branches([case.model for case in cases]), inputs, reduce_range=reduce_range)
    assert kernels(lowered) == Counter(case.kernel for case in cases)
    assert_within_one_step(converted, lowered, inputs)
    # Beyond what calibration saw, so that quantization saturates.
    assert_within_one_step(converted, lowered, [tuple(1.7 * x for x in xs) for xs in inputs])


@pytest.mark.parametrize("seed", range(2))
def test_generated_convolutions(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    check([draw_conv(rng) for _ in range(32)])


def test_generated_linears() -> None:
    rng = random.Random(100)
    torch.manual_seed(0)
    check([draw_linear(rng) for _ in range(24)])


GEOMETRIES = {
    # A result of 6 by 1 under a stride of 3: wrong on AMX.
    "column-under-stride": (nn.Conv2d(8, 4, (5, 2), stride=(1, 3), dilation=(1, 3)), (1, 8, 10, 4)),
    # The first and last rows of the result see padding only: wrong.
    "window-in-padding": (nn.Conv2d(16, 48, (2, 1), padding=(2, 1), groups=16), (2, 16, 4, 7)),
    # Taps at -2 and 2 of an image of extent 2: a segmentation fault.
    "window-in-padding astride": (nn.Conv2d(8, 8, (2, 3), dilation=(4, 1), padding=(2, 0)), (1, 8, 2, 6)),
    # A pixel and the padding around it: a segmentation fault.
    "window-in-padding pixel": (nn.Conv2d(8, 8, 1, stride=2, dilation=2, padding=1), (1, 8, 3, 1)),
}


@pytest.mark.parametrize("case", GEOMETRIES)
def test_geometries_that_onednn_gets_wrong_stay_float(case: str) -> None:
    torch.manual_seed(0)
    conv, shape = GEOMETRIES[case]
    inputs = [(torch.randn(shape),)]
    converted, lowered = quantize(Branches([Conv(conv, "none", relu=True)]), inputs)
    assert not kernels(lowered)
    reasons = {d.reason for d in decisions(lowered) if d.target == "aten.conv2d.default"}
    assert reasons == {case.split(maxsplit=1)[0]}
    assert_within_one_step(converted, lowered, inputs)


def test_strided_kernels_of_one_tap_on_several_threads() -> None:
    """oneDNN's own gathering is a race without AVX-512, which one run may win and forty do not."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inputs = [(torch.randn(8, 40, 14, 14),)]
        converted, lowered = quantize(
            Branches([Conv(nn.Conv2d(40, 128, 1, stride=2), "none", relu=True)]), inputs
        )
        assert kernels(lowered)
        for _ in range(40):
            assert_within_one_step(converted, lowered, inputs)
    finally:
        torch.set_num_threads(threads)


def test_any_batch_size_of_one_export() -> None:
    torch.manual_seed(0)
    rng = random.Random(3)
    cases = [draw(rng) for draw in (draw_conv, draw_conv, draw_conv, draw_linear) for _ in range(6)]
    cases = [case for case in cases if case.inputs[0].ndim > 1]
    # At least two of each: export makes a constant of sizes 0 and 1.
    inputs = [tuple(x.new_empty(3, *x.shape[1:]).normal_() for x in case.inputs) for case in cases]
    batch = torch.export.Dim.DYNAMIC
    converted, lowered = quantize(
        Branches([case.model for case in cases]),
        inputs,
        dynamic_shapes=([tuple({0: batch} for _ in xs) for xs in inputs],),
    )
    assert kernels(lowered) == Counter(case.kernel for case in cases)
    for size in (0, 1, 2, 7):
        resized = [tuple(x.new_empty(size, *x.shape[1:]).normal_() for x in xs) for xs in inputs]
        assert_within_one_step(converted, lowered, resized)


def test_reduced_range_saturates_where_the_graph_does() -> None:
    rng = random.Random(7)
    torch.manual_seed(7)
    check([draw(rng) for draw in (draw_conv, draw_linear) for _ in range(12)], reduce_range=True)
