"""What kernels do to their result before they write it: a post-operator, then requantization."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch.fx import Node

from ...ir.meta import ID_KEY
from ...ir.quantized_decomposed import QUANTIZE_PER_TENSOR
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
    """The kernel ``target`` with ``post`` behind it, its result in the range that the graph quantizes to.

    Args:
        call: the place.
        target: the kernel.
        arguments: what it takes before the scale of its result.
        post: the post-operator, None for none.
    """
    if _fills_dtype(call):
        operator = post_arguments(call, post)
    else:
        operator = clamping_arguments(call, post)
        if operator is None:
            return _quantized_behind(call, target, arguments)
    return call.graph.call_function(target, (*arguments, *output_arguments(call), *operator))


def _quantized_behind(call: KernelCall, target: Any, arguments: tuple[Any, ...]) -> Node:
    """The kernel with a float result, and behind it what it cannot do as the graph has it.

    The compiler makes one loop of that, which is faster than one that clamps what the kernel quantized: loops
    that read 8-bit integers load a few at a time.
    """
    assert call.quantization is not None
    weighted, *behind = call.nodes
    value = weighted.meta.get("val")
    dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float32
    new = {
        weighted: call.graph.call_function(target, (*arguments, 1.0, 0, dtype, *post_arguments(call, None)))
    }
    for node in behind:
        new[node] = call.graph.node_copy(node, lambda n: new.get(n, n))
        # It goes by another name, and is part of what the place was lowered to.
        new[node].meta.pop(ID_KEY, None)
    return call.graph.call_function(
        QUANTIZE_PER_TENSOR, (new[call.nodes[-1]], *attrs.astuple(call.quantization))
    )


def _fills_dtype(call: KernelCall) -> bool:
    """Whether the result may be anything that its dtype holds, as that of a kernel may."""
    output = call.quantization
    return output is None or (output.quant_min, output.quant_max) == dtype_range(output.dtype)
