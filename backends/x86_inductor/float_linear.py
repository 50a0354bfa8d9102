"""Linears of float activations: by int8 weights, and by float16 weights."""

from __future__ import annotations

import math
from typing import Any, Final

import attrs
import torch
from torch.fx import Node

from ...matchers.operator_pattern import KernelCall, Refusal
from .cpu import has_float16
from .linear import size_arguments
from .operands import refuses_weight, weight_parameters
from .prepack import LINEAR_PREPACK_FP16, known_shape, pack_weight

__all__ = ["HalfLinear", "WeightOnlyLinear"]

_aten = torch.ops.aten
_onednn = torch.ops.onednn

_FEW_ROWS: Final = 16
"""Up to here reading the weight is what takes the time, of which int8 has a quarter."""


@attrs.frozen
class WeightOnlyLinear:
    """``aten._weight_int8pack_mm``: bfloat16 activations by an int8 weight.

    Measured with one thread on a CPU with AVX2, 768 by 768: of 8 rows it takes 0.24 ms, bfloat16 linear 0.59.
    In float32 the operator has no vectorized kernel and takes 14 ms, float32 linear 0.2. So float32, and many
    rows, are left to the compiler, which dequantizes the weight and multiplies in float.
    """

    name: str = "aten._weight_int8pack_mm"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the operands do not fit, or the kernel would be slower than float."""
        refusal = refuses_weight(call, call.quantized("weight"))
        if refusal is not None:
            return refusal
        value = _value(call.float("x"))
        if value is None or value.dtype is not torch.bfloat16:
            return Refusal(
                "kernel-slower-than-float", "the weight is int8 in memory and multiplied in float32"
            )
        if not _has_few_rows(value):
            return Refusal("kernel-slower-than-float", f"of more than {_FEW_ROWS} rows")
        return None

    def emit(self, call: KernelCall) -> Node:
        """Insert the product, in two dimensions, and the bias."""
        graph, x = call.graph, call.float("x")
        assert x is not None
        value = _value(x)
        assert value is not None
        scales, _ = weight_parameters(call)
        rows = graph.call_function(_aten.reshape.default, (x, [-1, value.shape[-1]]))
        low = graph.call_function(_aten.to.dtype, (scales, value.dtype))
        product = graph.call_function(
            _aten._weight_int8pack_mm.default, (rows, call.quantized("weight").node, low)
        )
        sizes = [*size_arguments(x, value.shape[:-1]), -1]
        result = graph.call_function(_aten.reshape.default, (product, sizes))
        bias = call.float("bias")
        return result if bias is None else graph.call_function(_aten.add.Tensor, (result, bias))


@attrs.frozen
class HalfLinear:
    """``onednn.linear_dynamic_fp16``: float32 activations by a float16 weight, added up in float32.

    On CPUs without float16 arithmetic oneDNN multiplies one number at a time: measured on one with AVX2, 100
    times as long as float32. There the operator is left to the compiler.

    Args:
        relu: with ReLU behind it.
    """

    relu: bool = False

    @property
    def name(self) -> str:
        """The name of the operator."""
        return f"onednn.linear{'_relu' if self.relu else ''}_dynamic_fp16"

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why it would not do here."""
        if not has_float16():
            return Refusal("no-float16-arithmetic", "on this CPU the kernel is far slower than float32")
        value = _value(call.float("x"))
        if value is not None and value.dtype is not torch.float32:
            return Refusal("activation-not-float32")
        return None

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and linear."""
        linear = call.node_calling(_aten.linear.default)
        packed = pack_weight(call, LINEAR_PREPACK_FP16, known_shape(linear.args[0]))
        target: Any = _onednn.linear_relu_dynamic_fp16 if self.relu else _onednn.linear_dynamic_fp16
        return call.graph.call_function(target.default, (call.float("x"), packed, call.float("bias")))


def _has_few_rows(value: torch.Tensor) -> bool:
    sizes = value.shape[:-1]
    return all(isinstance(size, int) for size in sizes) and math.prod(sizes) <= _FEW_ROWS


def _value(node: object) -> torch.Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None
