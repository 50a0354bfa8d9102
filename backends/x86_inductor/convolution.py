"""What oneDNN's convolutions are called with, and the geometries they get wrong."""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import attrs
import torch
from torch.fx import Node

from ...ir.attributes import get_tensor
from ...ir.bodies import is_body
from ...ir.schema import argument
from ...matchers.operator_pattern import KernelCall, Refusal
from .operands import bias_parameter, weight_parameters
from .prepack import QCONV_PREPACK, known_shape, pack_weight

__all__ = ["ConvArguments", "conv_arguments", "per_dimension", "refuses_geometry"]

_aten = torch.ops.aten
_CONVOLUTIONS: Final = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)


@attrs.frozen
class ConvArguments:
    """Arguments of the kernels, in their order: ``head``, what they add, ``bias``, ``geometry``."""

    head: tuple[Any, ...]
    bias: Any
    geometry: tuple[Any, ...]


def conv_arguments(call: KernelCall) -> ConvArguments:
    """The arguments for the convolution of ``call``, its weight packed by a node of the graph."""
    x = call.quantized("x")
    conv = call.node_calling(*_CONVOLUTIONS)
    kernel = _kernel_size(call)
    stride, padding, dilation = (
        per_dimension(conv, name, len(kernel)) for name in ("stride", "padding", "dilation")
    )
    image, shape = x.node, known_shape(conv.args[0])
    if _is_pointwise(kernel):
        image, shape = _gather(call, image, stride), _gathered(shape, stride)
        stride = [1] * len(kernel)
    geometry = (stride, padding, dilation, argument(conv, "groups"))
    scales, zero_points = weight_parameters(call)
    packed = pack_weight(call, QCONV_PREPACK, shape, scales, x.scale, x.zero_point, *geometry)
    head = (image, x.scale, x.zero_point, packed, scales, zero_points)
    return ConvArguments(head, bias_parameter(call), geometry)


def _is_pointwise(kernel: torch.Size) -> bool:
    return all(size == 1 for size in kernel)


def _gather(call: KernelCall, image: Node, stride: list[int]) -> Node:
    """The pixels of ``image`` that a kernel of one tap reads.

    oneDNN 3.12 gathers them itself, at the same cost. Without AVX-512 its threads then write to each other's
    space, at most numbers of channels that 16 does not divide: for a batch of two or more on two or more
    threads nearly every result is wrong.
    """
    for dim, step in enumerate(stride, start=2):
        if step > 1:
            image = call.graph.call_function(_aten.slice.Tensor, (image, dim, 0, sys.maxsize, step))
    return image


def _gathered(shape: list[int] | None, stride: list[int]) -> list[int] | None:
    if shape is None:
        return None
    return [*shape[:2], *(math.ceil(size / step) for size, step in zip(shape[2:], stride, strict=True))]


def refuses_geometry(call: KernelCall) -> Refusal | None:
    """None, or why oneDNN cannot be trusted with the convolution.

    Of 3.12, found by trying some ten thousand shapes: where all taps of a window fall into the padding it
    gives wrong numbers or reads out of bounds, and on AMX it gives wrong numbers for results of width 1 (and
    some height) under a horizontal stride. Sizes that only the run tells are let pass.
    """
    conv = call.node_calling(*_CONVOLUTIONS)
    kernel = _kernel_size(call)
    if len(kernel) == 1 and is_body(call.gm):
        return Refusal("kernel-not-compiled-in-bodies")
    stride, padding, dilation = (
        per_dimension(conv, name, len(kernel)) for name in ("stride", "padding", "dilation")
    )
    *others, width = _extents(conv, kernel)
    if not _is_pointwise(kernel) and width == 1 and stride[-1] > 1 and any(size != 1 for size in others):
        return Refusal("column-under-stride")
    image = _extents(conv.args[0], kernel)
    for size, k, p, d in zip(image, kernel, padding, dilation, strict=True):
        beside = p > d * (k - 1)
        astride = k > 1 and size is not None and d > size
        if beside or astride:
            return Refusal("window-in-padding")
    return None


def _kernel_size(call: KernelCall) -> torch.Size:
    return get_tensor(call.gm, str(call.quantized("weight").node.target)).shape[2:]


def _extents(image: object, kernel: torch.Size) -> list[int | None]:
    """The extents of an image, the width last; None for what is not known before the run."""
    value = image.meta.get("val") if isinstance(image, Node) else None
    if not isinstance(value, torch.Tensor):
        return [None] * len(kernel)
    return [size if isinstance(size, int) else None for size in value.shape[2:]]


def per_dimension(node: Node, name: str, dims: int) -> list[int]:
    """The argument ``name`` of ``node``, a number for each of so many dimensions."""
    value: Any = argument(node, name)
    # One number may stand for all dimensions.
    return [*value] * (dims if len(value) == 1 else 1)
