"""oneDNN's weight packing operators, and what they give when traced.

torch has no fake implementation of them, which ``torch.export`` and ``torch.compile`` need as long as packing
is part of the graph. They are registered when a graph is lowered, not when lowbit is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.fx import Node

from ...matchers.operator_pattern import KernelCall
from ...passes.pack_weights import PACK_KEY
from .inductor_lowerings import register_lowerings

__all__ = [
    "LINEAR_PREPACK_FP16",
    "QCONV_PREPACK",
    "QLINEAR_PREPACK",
    "known_shape",
    "pack_weight",
    "register_fakes",
]

QCONV_PREPACK: Final = torch.ops.onednn.qconv_prepack.default
"""``(weight, w_scales, x_scale, x_zp, stride, padding, dilation, groups, x_shape=None) -> packed``"""
QLINEAR_PREPACK: Final = torch.ops.onednn.qlinear_prepack.default
"""``(weight, x_shape) -> packed``"""
LINEAR_PREPACK_FP16: Final = torch.ops.onednn.linear_prepack_fp16.default
"""``(weight, x_shape) -> packed``, in float16"""


def pack_weight(call: KernelCall, target: Any, shape: list[int] | None, *arguments: Any) -> Node:
    """Insert the packing of the weight of ``call``.

    Args:
        call: the place; its weight is the operand ``weight``.
        target: the packing operator.
        shape: that of the activation, as a hint for the layout; None where the run tells it.
        arguments: what the packing takes between weight and shape.
    """
    register_fakes()
    register_lowerings()
    operand = call.operands["weight"]
    weight = operand if isinstance(operand, Node) else call.quantized("weight").node
    packed = call.graph.call_function(target, (weight, *arguments, shape))
    packed.meta = {k: v for k, v in weight.meta.items() if k != "val"} | {PACK_KEY: True}
    return packed


def known_shape(source: object) -> list[int] | None:
    """The shape of what a node gives; None where it is not known before the run."""
    value = source.meta.get("val") if isinstance(source, Node) else None
    if isinstance(value, torch.Tensor) and all(isinstance(s, int) for s in value.shape):
        return list(value.shape)
    return None


def _opaque(shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    # What a packed tensor reports of itself; the compiler checks real ones against it.
    strides = (1, *(0 for _ in shape[1:]))
    return torch.empty_strided(shape, strides, dtype=dtype or like.dtype, device=like.device)


@functools.cache
def register_fakes() -> None:
    """Register the fake implementations, once in a process."""

    def qconv_prepack(weight: torch.Tensor, *_: object) -> torch.Tensor:
        # One dimension is packed as two.
        lines = (1,) if weight.dim() == 3 else ()
        return _opaque((*weight.shape[:2], *lines, *weight.shape[2:]), weight)

    def qlinear_prepack(weight: torch.Tensor, *_: object) -> torch.Tensor:
        return _opaque(weight.shape[::-1], weight)

    def linear_prepack_fp16(weight: torch.Tensor, *_: object) -> torch.Tensor:
        return _opaque(weight.shape[::-1], weight, torch.float16)

    torch.library.register_fake("onednn::qconv_prepack", qconv_prepack)
    torch.library.register_fake("onednn::qlinear_prepack", qlinear_prepack)
    torch.library.register_fake("onednn::linear_prepack_fp16", linear_prepack_fp16)
