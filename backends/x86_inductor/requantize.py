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
from .cpu import writes_bfloat16
from .int8_results import reinterpreted
from .post_operators import PostOperator, clamping_arguments, post_arguments

__all__ = ["in_range", "output_arguments", "with_post_operator"]


def output_arguments(call: KernelCall, in_int8: bool = False) -> tuple[float, int, torch.dtype]:
    """Scale, zero point and dtype of what the kernel writes; :func:`in_range` makes the result of it.

    Args:
        call: the place.
        in_int8: whether the kernel writes as int8 what the graph has as uint8.
    """
    output = call.quantization
    if output is not None:
        return output.scale, output.zero_point, torch.int8 if in_int8 else output.dtype
    return 1.0, 0, _written_for(_float_dtype(call.output))


def in_range(call: KernelCall, result: Node, in_int8: bool = False) -> Node:
    """``result`` of a kernel in the range that the graph quantizes to, and in its dtype.

    Args:
        call: the place.
        result: what the kernel writes.
        in_int8: as for :func:`output_arguments`.
    """
    output = call.quantization
    if output is None:
        return _in_dtype(call, result, _float_dtype(call.output))
    if _fills_dtype(call):
        return result
    if in_int8:
        return reinterpreted(call, result, output.dtype)
    return call.graph.call_function(
        torch.ops.aten.clamp.default, (result, output.quant_min, output.quant_max)
    )


def with_post_operator(
    call: KernelCall,
    target: Any,
    arguments: tuple[Any, ...],
    post: PostOperator | None,
    in_int8: bool = False,
) -> Node:
    """The kernel ``target`` with ``post`` behind it, its result in the range that the graph quantizes to.

    Args:
        call: the place.
        target: the kernel.
        arguments: what it takes before the scale of its result.
        post: the post-operator, None for none.
        in_int8: as for :func:`output_arguments`, where no post-operator clamps.
    """
    clamping = None if _fills_dtype(call) else clamping_arguments(call, post)
    if clamping is not None:
        return call.graph.call_function(target, (*arguments, *output_arguments(call), *clamping))
    if not in_int8 and not _fills_dtype(call):
        return _quantized_behind(call, target, arguments)
    output = (*output_arguments(call, in_int8), *post_arguments(call, post))
    return in_range(call, call.graph.call_function(target, (*arguments, *output)), in_int8)


def _quantized_behind(call: KernelCall, target: Any, arguments: tuple[Any, ...]) -> Node:
    """The kernel with a float result, and behind it what it cannot do as the graph has it.

    The compiler makes one loop of that, which is faster than one that clamps what the kernel quantized: loops
    that read 8-bit integers load a few at a time.
    """
    assert call.quantization is not None
    weighted, *behind = call.nodes
    dtype = _float_dtype(weighted)
    output = (1.0, 0, _written_for(dtype), *post_arguments(call, None))
    new = {weighted: _in_dtype(call, call.graph.call_function(target, (*arguments, *output)), dtype)}
    for node in behind:
        new[node] = call.graph.node_copy(node, lambda n: new.get(n, n))
        # It goes by another name, and is part of what the place was lowered to.
        new[node].meta.pop(ID_KEY, None)
    return call.graph.call_function(
        QUANTIZE_PER_TENSOR, (new[call.nodes[-1]], *attrs.astuple(call.quantization))
    )


def _float_dtype(node: Node) -> torch.dtype:
    """The dtype that the result of ``node`` has in the graph."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else torch.float32


def _written_for(dtype: torch.dtype) -> torch.dtype:
    """What a kernel writes where the graph has ``dtype``."""
    return torch.float32 if dtype is torch.bfloat16 and not writes_bfloat16() else dtype


def _in_dtype(call: KernelCall, result: Node, dtype: torch.dtype) -> Node:
    """``result`` as ``dtype``, where the kernel writes another for it."""
    if _written_for(dtype) is dtype:
        return result
    return call.graph.call_function(torch.ops.aten.to.dtype, (result, dtype))


def _fills_dtype(call: KernelCall) -> bool:
    """Whether the result may be anything that its dtype holds, as that of a kernel may."""
    output = call.quantization
    return output is None or (output.quant_min, output.quant_max) == dtype_range(output.dtype)
