"""Results from 0 to 127 that kernels write as int8: it ends where they do, so there is nothing left to clamp.

With ranges of 7 bits a kernel that writes uint8 saturates at 255, too late. One that writes int8 saturates at
127, and of numbers from 0 to 127 the bits are the same in both.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import Node

from ...ir.meta import PACK_KEY
from ...ir.quantized_decomposed import is_dequantize
from ...matchers.operator_pattern import KernelCall, QuantizedOperand
from .post_operators import PostOperator, is_normal

__all__ = ["holds_in_int8", "is_written_as_int8", "reinterpreted"]

_aten = torch.ops.aten
_LARGEST: Final = torch.iinfo(torch.int8).max

_MARGIN: Final = 1e-3
"""How far, relatively, kernels may be below the least value: they compute in float32, and err by less."""

_VIEWS: Final = frozenset({_aten.contiguous.default, _aten.slice.Tensor, _aten.view.dtype})
"""What hands on the memory that it reads, where kernels wrote it: their results are channels-last."""


def holds_in_int8(operand: QuantizedOperand) -> bool:
    """Whether the values of ``operand`` are uint8 and none is beyond int8."""
    return operand.dtype is torch.uint8 and operand.quant_max <= _LARGEST


def is_written_as_int8(call: KernelCall, post: PostOperator | None) -> bool:
    """Whether the kernel of ``call`` is to write its result as int8, to be read as uint8.

    Exact if the range ends where int8 saturates and what ``post`` gives is never quantized below 0; and
    faster if kernels read the result. A loop of the compiler goes over numbers that it reads as another
    dtype one by one, which takes longer than to clamp them.
    """
    return _saturates_as_int8(call, post) and _is_read_by_kernels_only(call.output)


def _saturates_as_int8(call: KernelCall, post: PostOperator | None) -> bool:
    output = call.quantization
    if output is None or output.dtype is not torch.uint8 or post is None:
        return False
    if (output.quant_min, output.quant_max) != (0, _LARGEST) or not is_normal(output.scale):
        return False
    # By least / scale + zero_point >= −0.5, as halves are rounded to even: −0.5 is 0 still.
    return (output.zero_point + 0.5) * output.scale + (1 + _MARGIN) * post.least >= 0


def _is_read_by_kernels_only(node: Node) -> bool:
    todo = [node]
    while todo:
        for user in todo.pop().users:
            if user.target in _VIEWS:
                todo.append(user)
            elif not _is_kernel(user) and not _was_lowered(user):
                return False
    return True


def _is_kernel(node: Node) -> bool:
    # By what they read: while patterns are replaced, something else stands for kernels that write in place.
    packed = any(PACK_KEY in source.meta for source in node.all_input_nodes)
    return packed or node.target is torch.ops.quantized.max_pool2d.default


def _was_lowered(node: Node) -> bool:
    return is_dequantize(node) and not node.users


def reinterpreted(call: KernelCall, integers: Node, dtype: torch.dtype) -> Node:
    """``integers``, all from 0 to 127, as ``dtype``, in the same memory."""
    return call.graph.call_function(_aten.view.dtype, (integers, dtype))
