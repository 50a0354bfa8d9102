"""The unary operators that oneDNN's kernels apply to their result before they write it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from ...ir.schema import argument
from ...matchers.operator_pattern import KernelCall

__all__ = [
    "AFTER_CONVOLUTION",
    "AFTER_LINEAR",
    "PostArguments",
    "PostOperator",
    "clamping_arguments",
    "is_normal",
    "post_arguments",
]

_aten = torch.ops.aten

# Most take no scalars; an empty list would do as well, but torch.export.save cannot write one.
_NO_SCALARS: Final = (0.0,)

PostArguments = tuple[str, list[float], str]
"""What the kernels take of a post-operator: name, scalars, algorithm."""


def _no_scalars(call: KernelCall) -> tuple[float, ...]:
    return _NO_SCALARS


def _bounds_of_hardtanh(call: KernelCall) -> tuple[float, ...]:
    clamp = call.node_calling(_aten.hardtanh.default)
    return _number(argument(clamp, "min_val")), _number(argument(clamp, "max_val"))


def _slope(call: KernelCall) -> tuple[float, ...]:
    return (_number(argument(call.node_calling(_aten.leaky_relu.default), "negative_slope")),)


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@attrs.frozen
class PostOperator:
    """One unary operator behind a convolution or linear.

    Args:
        name: what patterns with it are called after.
        function: the torch function.
        attribute: oneDNN's name of it.
        scalars: its numbers, read from the call that was matched.
        algorithm: oneDNN's name of the variant.
        least: what no result of it is below.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    attribute: str
    scalars: Callable[[KernelCall], tuple[float, ...]] = _no_scalars
    algorithm: str = ""
    least: float = -math.inf

    def arguments(self, call: KernelCall) -> PostArguments:
        """What the kernels take of it."""
        return self.attribute, list(self.scalars(call)), self.algorithm

    def after(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function that applies this to the result of ``function``, and takes what it takes."""

        @functools.wraps(function)
        def both(*tensors: Tensor) -> Tensor:
            return self.function(function(*tensors))

        return both


AFTER_CONVOLUTION: Final = (
    PostOperator("relu", F.relu, "relu", least=0.0),
    PostOperator("hardtanh", F.hardtanh, "hardtanh", _bounds_of_hardtanh),
    PostOperator("hardswish", F.hardswish, "hardswish", least=-0.375),
    PostOperator("silu", F.silu, "swish", least=-0.2784646),
)
"""What the convolution takes."""

AFTER_LINEAR: Final = (
    *AFTER_CONVOLUTION,
    PostOperator("leaky_relu", F.leaky_relu, "leaky_relu", _slope),
    PostOperator("gelu", F.gelu, "gelu", algorithm="none"),
    PostOperator("gelu-tanh", _gelu_tanh, "gelu", algorithm="tanh"),
    PostOperator("tanh", torch.tanh, "tanh"),
)
"""What the linear takes."""


def post_arguments(call: KernelCall, post: PostOperator | None) -> PostArguments:
    """What the kernels take of ``post``, None for nothing behind them."""
    return ("none", [*_NO_SCALARS], "") if post is None else post.arguments(call)


def clamping_arguments(call: KernelCall, post: PostOperator | None) -> PostArguments | None:
    """What the kernels take of ``post`` and the clamp to the range that the graph quantizes to, as one.

    None where no operator is exactly both. To clamp real numbers to what the ends of the range stand for,
    ``(q − zero_point) · scale``, is to clamp the integers: float errors are far below half a step, so an end
    is rounded to itself, and what lies between the ends is not touched.
    """
    output, bounds = call.quantization, _bounds(call, post)
    if output is None or bounds is None:
        return None
    ends = [(q - output.zero_point) * output.scale for q in (output.quant_min, output.quant_max)]
    low, high = max(bounds[0], ends[0]), min(bounds[1], ends[1])
    if low > high or not is_normal(output.scale) or not all(map(is_normal, ends)):
        return None
    return "hardtanh", [low, high], ""


def _bounds(call: KernelCall, post: PostOperator | None) -> tuple[float, float] | None:
    """What ``post`` clamps to, where clamping is all it does."""
    name, scalars, _ = post_arguments(call, post)
    if name == "hardtanh":
        low, high = scalars
        return low, high
    return {"none": (-math.inf, math.inf), "relu": (0.0, math.inf)}.get(name)


def is_normal(value: float) -> bool:
    """Whether float32 holds ``value`` to its full precision."""
    float32 = torch.finfo(torch.float32)
    return value == 0 or float32.tiny <= abs(value) <= float32.max
