"""What XNNPACK does not take of the operators it has: None, or a reason code."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...ir.schema import argument
from ...matchers.operator_pattern import Occurrence

__all__ = ["averages_whole_image", "joins_two", "not_grouped", "pools_without_gaps", "static_slice"]


def not_grouped(occurrence: Occurrence) -> str | None:
    """A transposed convolution has one group: channels of several cannot have scales of their own."""
    _, weight, *_ = occurrence.inputs
    per_group, result = (_value(node) for node in (weight, occurrence.output))
    if per_group is None or result is None:
        return "shape-unknown"
    return None if per_group.shape[1] == result.shape[1] else "grouped-transposed-convolution"


def pools_without_gaps(occurrence: Occurrence) -> str | None:
    """The stride of a pooling is no larger than its kernel."""
    kernel, stride = (_pair(argument(occurrence.output, name)) for name in ("kernel_size", "stride"))
    # No stride at all means that of the kernel.
    apart = bool(stride) and any(s > k for s, k in zip(stride, kernel, strict=True))
    return "stride-exceeds-kernel" if apart else None


def averages_whole_image(occurrence: Occurrence) -> str | None:
    """A mean is taken over height and width of images ``[N, C, H, W]``, and gives ``[N, C, 1, 1]``."""
    (image, *_), mean = occurrence.inputs, occurrence.output
    before, after = _value(image), _value(mean)
    if before is None or after is None:
        return "shape-unknown"
    if before.dim() != 4 or after.dim() != 4 or after.shape[2:] != (1, 1):
        return "not-the-mean-of-an-image"
    if mean.target is torch.ops.aten.mean.dim:
        dims: Any = argument(mean, "dim")
        if {dim % 4 for dim in dims or ()} != {2, 3}:
            return "not-the-mean-of-an-image"
    return None


def joins_two(occurrence: Occurrence) -> str | None:
    """A concatenation is of two tensors at least, not of one with itself."""
    return None if len(occurrence.output.all_input_nodes) > 1 else "concatenation-of-one-tensor"


def static_slice(occurrence: Occurrence) -> str | None:
    """A slice takes every element of a range, of sizes known before the run."""
    value = _value(occurrence.output)
    if value is None or not all(isinstance(size, int) for size in value.shape):
        return "dynamic-shape"
    return None if argument(occurrence.output, "step") == 1 else "strided-slice"


def _value(node: Node | None) -> torch.Tensor | None:
    value = node.meta.get("val") if node is not None else None
    return value if isinstance(value, torch.Tensor) else None


def _pair(value: Any) -> list[int]:
    return [*value] * (2 if len(value) == 1 else 1)
