"""The ``quantized_decomposed`` operators: quantization as it is written in a graph.

This is the interchange form that Inductor, ExecuTorch and others read. torch registers the namespace in
``torch.ao.quantization.fx._decomposed``, which Inductor imports itself; importing it is the only thing
lowbit takes from ``torch.ao``, and this module is the only place that does. Should it move,
``tests/ir/test_quantized_decomposed.py`` says so.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.ao.quantization.fx._decomposed  # pyright: ignore[reportUnusedImport]  (registers the operators)
from torch.fx import Node

__all__ = [
    "CHOOSE_QPARAMS",
    "CHOOSE_QPARAMS_OPS",
    "CHOOSE_QPARAMS_SYMMETRIC",
    "CONVERT_ELEMENT_TYPE",
    "DEQUANTIZE_OPS",
    "DEQUANTIZE_PER_CHANNEL",
    "DEQUANTIZE_PER_TENSOR",
    "DEQUANTIZE_PER_TENSOR_DYNAMIC",
    "QUANTIZE_OPS",
    "QUANTIZE_PER_CHANNEL",
    "QUANTIZE_PER_TENSOR",
    "QUANTIZE_PER_TENSOR_DYNAMIC",
    "is_dequantize",
    "is_quantize",
]

_ops = torch.ops.quantized_decomposed

QUANTIZE_PER_TENSOR: Final = _ops.quantize_per_tensor.default
"""``(input, scale: float, zero_point: int, quant_min, quant_max, dtype)``"""
DEQUANTIZE_PER_TENSOR: Final = _ops.dequantize_per_tensor.default
"""``(input, scale: float, zero_point: int, quant_min, quant_max, dtype, *, out_dtype=None)``"""
QUANTIZE_PER_TENSOR_DYNAMIC: Final = _ops.quantize_per_tensor.tensor
"""As ``QUANTIZE_PER_TENSOR``, with scale and zero point as tensors found at run time."""
DEQUANTIZE_PER_TENSOR_DYNAMIC: Final = _ops.dequantize_per_tensor.tensor
QUANTIZE_PER_CHANNEL: Final = _ops.quantize_per_channel.default
"""``(input, scales: Tensor, zero_points: Tensor, axis, quant_min, quant_max, dtype)``"""
DEQUANTIZE_PER_CHANNEL: Final = _ops.dequantize_per_channel.default
CHOOSE_QPARAMS: Final = _ops.choose_qparams.tensor
"""``(input, quant_min, quant_max, eps, dtype) -> (scale, zero_point)``"""
CHOOSE_QPARAMS_SYMMETRIC: Final = _ops.choose_qparams_symmetric.tensor
CONVERT_ELEMENT_TYPE: Final = _ops.convert_element_type.no_fuse
"""``(input, dtype)``: a cast that compilers keep."""

QUANTIZE_OPS: Final = frozenset({QUANTIZE_PER_TENSOR, QUANTIZE_PER_TENSOR_DYNAMIC, QUANTIZE_PER_CHANNEL})
DEQUANTIZE_OPS: Final = frozenset(
    {DEQUANTIZE_PER_TENSOR, DEQUANTIZE_PER_TENSOR_DYNAMIC, DEQUANTIZE_PER_CHANNEL}
)
CHOOSE_QPARAMS_OPS: Final = frozenset({CHOOSE_QPARAMS, CHOOSE_QPARAMS_SYMMETRIC})


def is_quantize(node: object) -> bool:
    """Whether ``node`` is a node that quantizes."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in QUANTIZE_OPS


def is_dequantize(node: object) -> bool:
    """Whether ``node`` is a node that dequantizes."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in DEQUANTIZE_OPS
