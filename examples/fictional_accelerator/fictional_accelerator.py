"""A backend of its own: an accelerator that has linear, with or without ReLU, and addition, all in int8.

It multiplies integers and writes integers: results are requantized whoever reads them. ``pip install`` makes
it known to lowbit; ``lower_pt2e`` then puts its operators into the graph.
"""

import attrs
import torch
import torch.nn.functional as F
from lowbit import MinMaxObserver, QuantizationConfig, QuantizationSpec
from lowbit.backends import Backend, Preset
from lowbit.backends.guards import constant_weight, dimensions, float32_activations
from lowbit.backends.pattern_quantizer import PatternQuantizer
from lowbit.backends.pipelines import CONVERT, PREPARE
from lowbit.matchers.operator_pattern import KernelCall, OperatorPattern, Refusal, Role
from lowbit.passes import EmitInductor, Pipeline
from torch import Tensor
from torch.fx import Node

# The operators, in place of a driver: what they compute, and the shape of it for the compiler.


@torch.library.custom_op("fictional::linear", mutates_args=())
def linear(  # noqa: PLR0917
    x: Tensor, scale_in: float, zero_in: int, weight: Tensor, scale_weight: float, bias: Tensor | None,
    relu: bool, scale_out: float, zero_out: int,
) -> Tensor:  # fmt: skip
    """int8 ``[…, in]`` by int8 ``[out, in]`` → int8 ``[…, out]``, added up in int32."""
    result = F.linear(x.int() - zero_in, weight.int()).float() * (scale_in * scale_weight)
    result = result if bias is None else result + bias
    return _requantized(result.relu() if relu else result, scale_out, zero_out)


@torch.library.custom_op("fictional::add", mutates_args=())
def add(  # noqa: PLR0917
    x: Tensor, scale_x: float, zero_x: int, y: Tensor, scale_y: float, zero_y: int,
    scale_out: float, zero_out: int,
) -> Tensor:  # fmt: skip
    """int8 + int8 → int8, broadcast."""
    result = (x.int() - zero_x) * scale_x + (y.int() - zero_y) * scale_y
    return _requantized(result, scale_out, zero_out)


@linear.register_fake
def _(x: Tensor, scale_in: float, zero_in: int, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@add.register_fake
def _(x: Tensor, scale_x: float, zero_x: int, y: Tensor, *_: object) -> Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape, y.shape))


def _requantized(result: Tensor, scale: float, zero_point: int) -> Tensor:
    return ((result / scale).round() + zero_point).clamp(-128, 127).to(torch.int8)


# How they are called.


@attrs.frozen
class Linear:
    relu: bool = False
    name: str = "fictional.linear"

    def refuses(self, call: KernelCall) -> Refusal | None:
        weight = call.quantized("weight")
        if weight.axis is not None or weight.zero_point != 0:
            return Refusal("weight-not-symmetric-per-tensor")
        return None if call.quantization is not None else Refusal("result-read-in-float")

    def emit(self, call: KernelCall) -> Node:
        x, weight, out = call.quantized("x"), call.quantized("weight"), call.quantization
        arguments = (x.node, x.scale, x.zero_point, weight.node, weight.scale, call.float("bias"))
        return call.graph.call_function(
            torch.ops.fictional.linear.default, (*arguments, self.relu, out.scale, out.zero_point)
        )


@attrs.frozen
class Add:
    name: str = "fictional.add"

    def refuses(self, call: KernelCall) -> Refusal | None:
        return None if call.quantization is not None else Refusal("result-read-in-float")

    def emit(self, call: KernelCall) -> Node:
        x, y, out = call.quantized("x"), call.quantized("y"), call.quantization
        arguments = (x.node, x.scale, x.zero_point, y.node, y.scale, y.zero_point)
        return call.graph.call_function(
            torch.ops.fictional.add.default, (*arguments, out.scale, out.zero_point)
        )


# What the accelerator can do: each operator once.

LINEAR = OperatorPattern(
    "linear",
    lambda x, weight, bias: F.linear(x, weight, bias),  # noqa: PLW0108  (builtins do not name parameters)
    lambda: (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)),
    (Role.ACTIVATION, Role.WEIGHT, Role.BIAS),
    Linear(),
    guards=(constant_weight(1), dimensions(1, 2), float32_activations(0)),
    quantizes_output=True,
)
PATTERNS = (
    LINEAR,
    attrs.evolve(
        LINEAR,
        name="linear-relu",
        function=lambda x, weight, bias: F.relu(F.linear(x, weight, bias)),
        kernel=Linear(relu=True),
    ),
    OperatorPattern(
        "add",
        lambda x, y: x + y,
        lambda: (torch.zeros(2, 3), torch.zeros(2, 3)),
        (Role.ACTIVATION, Role.ACTIVATION),
        Add(),
        guards=(float32_activations(0, 1),),
        quantizes_output=True,
    ),
)


def get_fictional_config() -> QuantizationConfig:
    activation = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
    weight = QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, torch.per_tensor_symmetric)
    return QuantizationConfig(activation, activation, weight, None)


class FictionalQuantizer(PatternQuantizer):
    backend_name = "fictional_accelerator"
    patterns = PATTERNS


FICTIONAL_ACCELERATOR = Backend(
    name="fictional_accelerator",
    patterns=PATTERNS,
    quantizer=lambda: FictionalQuantizer().set_global(get_fictional_config()),
    prepare=PREPARE,
    convert=CONVERT,
    lower=Pipeline((EmitInductor(),)),
    presets=(Preset("static", get_fictional_config),),
)
