"""What kernels do to their result before they write it: a post-operator, then requantization."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...ir.specs import dtype_range
from ...matchers.operator_pattern import KernelCall
from .post_operators import PostOperator, clamping_arguments, post_arguments

__all__ = ["clamped", "output_arguments", "with_post_operator"]


def output_arguments(call: KernelCall) -> tuple[float, int, torch.dtype]:
    """Scale, zero point and dtype of the result: of one that stays float, the dtype it has in the graph."""
    output = call.quantization
    if output is not None:
        return output.scale, output.zero_point, output.dtype
    value = call.output.meta.get("val")
    dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float32
    return 1.0, 0, dtype


def clamped(call: KernelCall, result: Node) -> Node:
    """``result`` of a kernel in the range that the graph quantizes to."""
    output = call.quantization
    if output is None or _fills_dtype(call):
        return result
    return call.graph.call_function(
        torch.ops.aten.clamp.default, (result, output.quant_min, output.quant_max)
    )


def with_post_operator(
    call: KernelCall, target: Any, arguments: tuple[Any, ...], post: PostOperator | None
) -> Node:
    """The kernel ``target`` with ``post`` behind it, its result in the range that the graph quantizes to."""
    clamping = None if _fills_dtype(call) else clamping_arguments(call, post)
    if clamping is not None:
        return call.graph.call_function(target, (*arguments, *clamping))
    return clamped(call, call.graph.call_function(target, (*arguments, *post_arguments(call, post))))


def _fills_dtype(call: KernelCall) -> bool:
    """Whether the result may be anything that its dtype holds, as that of a kernel may."""
    output = call.quantization
    return output is None or (output.quant_min, output.quant_max) == dtype_range(output.dtype)
