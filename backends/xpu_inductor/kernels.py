"""The oneDNN kernels as Intel GPUs have them: called as on CPUs, with int8 activations."""

from __future__ import annotations

import attrs
import torch
from torch.fx import Node

from ...ir.attributes import get_tensor
from ...matchers.operator_pattern import KernelCall, Refusal
from ..x86_inductor.accumulator import memory_of
from ..x86_inductor.convolution import refuses_geometry
from ..x86_inductor.kernels import QConv, QConvAdd, QLinear

__all__ = ["GpuKernel"]


@attrs.frozen
class GpuKernel:
    """A oneDNN kernel on an Intel GPU.

    Args:
        kernel: how the operator is called, which is the same on every device.
    """

    kernel: QConv | QConvAdd | QLinear

    @property
    def name(self) -> str:
        """The name of the operator."""
        return self.kernel.name

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None, or why the operands do not fit."""
        refusal = _refuses_operands(call)
        if refusal is None and not isinstance(self.kernel, QLinear):
            refusal = refuses_geometry(call)
        if refusal is None and isinstance(self.kernel, QConvAdd):
            refusal = _refuses_accumulator(call)
        return refusal

    def emit(self, call: KernelCall) -> Node:
        """Insert packing and kernel."""
        return self.kernel.emit(call)


def _refuses_operands(call: KernelCall) -> Refusal | None:
    x, weight = call.quantized("x"), call.quantized("weight")
    if x.dtype is not torch.int8:
        return Refusal("activation-not-int8")
    if weight.dtype is not torch.int8 or weight.axis != 0:
        return Refusal("weight-not-int8-per-output-channel")
    if weight.zero_point.op != "get_attr" or get_tensor(call.gm, weight.zero_point.target).any():
        return Refusal("weight-not-symmetric")
    return None


def _refuses_accumulator(call: KernelCall) -> Refusal | None:
    x, other = call.quantized("x"), call.quantized("other")
    if memory_of(x.node) is memory_of(other.node):
        return Refusal("accumulator-is-input")
    if call.quantization is None:
        return Refusal("sum-read-in-float")
    return None if other.dtype is call.quantization.dtype else Refusal("accumulator-dtype-differs")
