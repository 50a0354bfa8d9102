"""Pooling: the largest integer of a window, or the sum of its integers divided by their number."""

from __future__ import annotations

from typing import Any, Final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from ...ir.schema import argument
from ...matchers.operator_pattern import KernelCall, Refusal
from .arithmetic import centered, requantize
from .elementwise import not_static
from .rule import Rule, pattern

__all__ = ["POOLING"]

_aten = torch.ops.aten


@attrs.frozen
class Maximum:
    """``max_pool2d``: the order of integers is that of what they mean."""

    name: str = "integer maximum"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the pooling stays float."""
        return not_static(call)

    def emit(self, call: KernelCall) -> Node:
        """Insert the pooling."""
        (operator,) = call.nodes[:1]
        x, output = call.quantized("x"), call.quantization
        assert output is not None
        # Pooling of 8- and 16-bit tensors is not there for every layout.
        wide = centered(call, x, at_least=torch.int32)
        largest = call.graph.call_function(_aten.max_pool2d.default, (wide, *operator.args[1:]))
        return requantize(call, [(largest, x.scale)], output)


@attrs.frozen
class Average:
    """``avg_pool2d`` and ``adaptive_avg_pool2d``: exact sums, each divided by the size of its window."""

    name: str = "integer sum over windows"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the pooling stays float."""
        refusal = not_static(call)
        if refusal is None and self._windows(call) is None:
            return Refusal("windows-differ", "their sizes are unequal, or only known when the model runs")
        return refusal

    def emit(self, call: KernelCall) -> Node:
        """Insert the pooling."""
        x, output, windows = call.quantized("x"), call.quantization, self._windows(call)
        assert output is not None
        assert windows is not None
        geometry, counts = windows
        # Sums of integers are there for int64 only. A divisor of 1 leaves the sum as it is.
        wide = centered(call, x, at_least=torch.int64)
        total = call.graph.call_function(_aten.avg_pool2d.default, (wide, *geometry, 1))
        return requantize(call, [(total, x.scale / counts)], output)

    def _windows(self, call: KernelCall) -> tuple[tuple[Any, ...], Tensor | float] | None:
        """``avg_pool2d``'s arguments between image and divisor, and the size of each window."""
        (operator,) = call.nodes[:1]
        image = operator.args[0]
        assert isinstance(image, Node)
        extents = image.meta["val"].shape[-2:]
        is_known = all(isinstance(size, int) for size in extents)
        if operator.target is _aten.adaptive_avg_pool2d.default:
            return _adaptive_windows(extents, argument(operator, "output_size")) if is_known else None
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        kernel, stride, padding, ceil_mode, counts_padding, divisor = (argument(operator, n) for n in names)
        kernel, padding, ceil_mode, counts_padding = (
            _pair(kernel),
            _pair(padding),
            bool(ceil_mode),
            bool(counts_padding),
        )
        stride = _pair(stride) or kernel
        geometry = (kernel, stride, padding, ceil_mode, counts_padding)
        if isinstance(divisor, int):
            return geometry, float(divisor)
        if not ceil_mode and (counts_padding or not any(padding)):
            return geometry, float(kernel[0] * kernel[1])
        if not is_known:
            return None
        counts = torch.ones(1, *extents, dtype=torch.float64)
        counts = F.avg_pool2d(counts, kernel, stride, padding, ceil_mode, counts_padding, divisor_override=1)
        if counts_padding:
            counts = _windows_within_padding(extents, kernel, stride, padding, counts.shape[-2:])
        return geometry, counts.reshape(counts.shape[-2:])


def _adaptive_windows(extents: Any, output_size: Any) -> tuple[tuple[Any, ...], float] | None:
    if any(size % count for size, count in zip(extents, output_size, strict=True)):
        return None
    kernel = [size // count for size, count in zip(extents, output_size, strict=True)]
    return (kernel, kernel, [0, 0], False, True), float(kernel[0] * kernel[1])


def _windows_within_padding(
    extents: Any, kernel: list[int], stride: list[int], padding: list[int], shape: Any
) -> Tensor:
    """How many positions of each window lie in the padded image; in ceil mode the last ones stick out."""
    lengths = [
        (size + p - (torch.arange(n) * s - p)).clamp(max=k).double()
        for size, k, s, p, n in zip(extents, kernel, stride, padding, shape, strict=True)
    ]
    return lengths[0][:, None] * lengths[1]


def _pair(value: Any) -> list[int]:
    # One number may stand for both dimensions.
    return [*value] * (2 if len(value) == 1 else 1)


def _max_pool2d(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def _avg_pool2d(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _adaptive_avg_pool2d(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, (1, 1))


def _image() -> tuple[Tensor, ...]:
    return (torch.zeros(1, 1, 2, 2),)


POOLING: Final = (
    Rule("max_pool2d", pattern(_max_pool2d, _image), Maximum()),
    Rule("avg_pool2d", pattern(_avg_pool2d, _image), Average()),
    Rule("adaptive_avg_pool2d", pattern(_adaptive_avg_pool2d, _image), Average()),
)
