"""Every post-operator that the kernels take: found in modules and functions, fused, and right."""

from __future__ import annotations

import attrs
import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit.backends.x86_inductor import has_vnni
from lowbit.backends.x86_inductor.post_operators import AFTER_CONVOLUTION, AFTER_LINEAR
from torch import nn

pytestmark = pytest.mark.usefixtures("linears_stay")

onednn = torch.ops.onednn
STOCK = lowbit.get_default_x86_inductor_quantization_config()
# Activations of 8 bits, which need no clamp, on CPUs without VNNI too: there weights have 7.
CONFIG = (
    STOCK
    if has_vnni()
    else attrs.evolve(STOCK, weight=attrs.evolve(STOCK.weight, quant_min=-64, quant_max=63))
)


class Net(nn.Module):
    """Two weighted operators with something between them."""

    def __init__(self, kind, between):
        super().__init__()
        convolution = kind == "conv2d"
        self.first = nn.Conv2d(8, 16, 3) if convolution else nn.Linear(8, 16)
        self.between = between
        self.second = nn.Conv2d(16, 8, 1) if convolution else nn.Linear(16, 4)

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def flow(kind, between):
    """The converted and the lowered model, and an input of several times the unit range."""
    torch.manual_seed(0)
    x = 8 * torch.randn((2, 8, 9, 9) if kind == "conv2d" else (5, 8))
    exported = torch.export.export(Net(kind, between).eval(), (x,)).module()
    prepared = lowbit.prepare_pt2e(exported, lowbit.X86InductorQuantizer().set_global(CONFIG))
    converted = lowbit.convert_pt2e(lowbit.calibrate(prepared, [x], progress=False))
    return converted, lowbit.lower_pt2e(converted), x


def kernels(lowered):
    targets = (onednn.qconv_pointwise.default, onednn.qlinear_pointwise.default)
    return [node for node in lowered.graph.nodes if node.target in targets]


def assert_fused_and_right(converted, lowered, x):
    first, second = kernels(lowered)
    # The first kernel writes what the second reads: nothing stands between them.
    assert second.args[0] is first
    # What the two graphs compute between the kernels, in steps of its scale.
    (quantize,) = [
        node
        for node in converted.graph.nodes
        if node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
        and node.args[0].op == "call_function"
    ]
    assert (first.args[-6], first.args[-5]) == quantize.args[1:3]
    expected, found = value_of(converted, quantize, x), value_of(lowered, first, x)
    assert found.dtype is torch.uint8
    assert expected.unique().numel() > 8
    assert (expected.int() - found.int()).abs().max() <= 1


def value_of(gm, wanted, x):
    class Stop(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n is wanted:
                self.found = value
            return value

    interpreter = Stop(gm)
    with torch.no_grad():
        interpreter.run(x)
    return interpreter.found


@pytest.mark.parametrize("post", AFTER_CONVOLUTION, ids=lambda post: post.name)
def test_behind_a_convolution(post):
    converted, lowered, x = flow("conv2d", post.function)
    assert_fused_and_right(converted, lowered, x)
    assert kernels(lowered)[0].args[-3] == post.attribute


@pytest.mark.parametrize("post", AFTER_LINEAR, ids=lambda post: post.name)
def test_behind_a_linear(post):
    converted, lowered, x = flow("linear", post.function)
    assert_fused_and_right(converted, lowered, x)
    assert kernels(lowered)[0].args[-3] == post.attribute
    assert kernels(lowered)[0].args[-1] == post.algorithm


@pytest.mark.parametrize(
    ("kind", "module", "arguments"),
    [
        ("conv2d", nn.ReLU6(inplace=True), ("hardtanh", [0.0, 6.0], "")),
        ("conv2d", nn.Hardtanh(-2, 3), ("hardtanh", [-2.0, 3.0], "")),
        ("conv2d", nn.Hardswish(inplace=True), ("hardswish", [0.0], "")),
        ("conv2d", nn.SiLU(inplace=True), ("swish", [0.0], "")),
        ("linear", nn.LeakyReLU(0.25, inplace=True), ("leaky_relu", [0.25], "")),
        ("linear", nn.GELU(), ("gelu", [0.0], "none")),
        ("linear", nn.GELU("tanh"), ("gelu", [0.0], "tanh")),
        ("linear", nn.Tanh(), ("tanh", [0.0], "")),
    ],
    ids=lambda value: repr(value) if isinstance(value, nn.Module) else "",
)
def test_the_numbers_of_modules_reach_the_kernel(kind, module, arguments):
    converted, lowered, x = flow(kind, module)
    assert_fused_and_right(converted, lowered, x)
    assert tuple(kernels(lowered)[0].args[-3:]) == arguments


@pytest.mark.parametrize(
    ("kind", "between"), [("conv2d", F.gelu), ("conv2d", torch.sigmoid), ("linear", torch.sigmoid)]
)
def test_what_the_kernel_does_not_take_stays_float_and_right(kind, between):
    converted, lowered, x = flow(kind, between)
    with torch.no_grad():
        assert torch.allclose(lowered(x), converted(x), atol=1e-5)
    name = "gelu" if between is F.gelu else "sigmoid"
    (decision,) = [d for d in lowbit.decisions(lowered) if d.node == name]
    assert (decision.status, decision.reason) == ("float", "pointwise")


def test_compiled():
    torch._dynamo.reset()
    for kind, between in (("conv2d", F.hardswish), ("linear", F.gelu)):
        _, lowered, x = flow(kind, between)
        with torch.no_grad():
            assert torch.allclose(torch.compile(lowered)(x), lowered(x), rtol=0, atol=1e-6)
