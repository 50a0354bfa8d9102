"""What oneDNN's convolutions are called with, and the geometries they get wrong."""

from __future__ import annotations

from typing import Any, Final

import attrs
import torch
from torch.fx import Node

from ...ir.attributes import get_tensor
from ...ir.schema import argument
from ...matchers.operator_pattern import KernelCall, Refusal
from .prepack import QCONV_PREPACK, pack_weight

__all__ = ["ConvArguments", "conv_arguments", "refuses_geometry"]

_CONV: Final = torch.ops.aten.conv2d.default


@attrs.frozen
class ConvArguments:
    """Arguments of the kernels, in their order: ``head``, what they add, ``bias``, ``geometry``."""

    head: tuple[Any, ...]
    bias: Any
    geometry: tuple[Any, ...]


def conv_arguments(call: KernelCall) -> ConvArguments:
    """The arguments for the convolution of ``call``, its weight packed by a node of the graph."""
    x, weight = call.quantized("x"), call.quantized("weight")
    conv = call.node_calling(_CONV)
    geometry = (*(_pair(conv, name) for name in ("stride", "padding", "dilation")), argument(conv, "groups"))
    packed = pack_weight(call, QCONV_PREPACK, conv, weight.scale, x.scale, x.zero_point, *geometry)
    head = (x.node, x.scale, x.zero_point, packed, weight.scale, weight.zero_point)
    return ConvArguments(head, call.operands["bias"], geometry)


def refuses_geometry(call: KernelCall) -> Refusal | None:
    """None, or why oneDNN cannot be trusted with the convolution.

    Of 3.12, found by trying some ten thousand shapes: where all taps of a window fall into the padding it
    gives wrong numbers or reads out of bounds, and on AMX it gives wrong numbers for results of width 1 (and
    some height) under a horizontal stride. Sizes that only the run tells are let pass.
    """
    conv = call.node_calling(_CONV)
    height, width = _extents(conv)
    if width == 1 and height != 1 and _pair(conv, "stride")[1] > 1:
        return Refusal("column-under-stride")
    kernel = get_tensor(call.gm, str(call.quantized("weight").node.target)).shape[2:]
    image, padding, dilation = _extents(conv.args[0]), _pair(conv, "padding"), _pair(conv, "dilation")
    for size, k, p, d in zip(image, kernel, padding, dilation, strict=True):
        beside = p > d * (k - 1)
        astride = k > 1 and size is not None and d > size
        if beside or astride:
            return Refusal("window-in-padding")
    return None


def _extents(image: object) -> tuple[int | None, int | None]:
    """Height and width of an image; None for what is not known before the run."""
    value = image.meta.get("val") if isinstance(image, Node) else None
    if not isinstance(value, torch.Tensor):
        return None, None
    height, width = (size if isinstance(size, int) else None for size in value.shape[2:])
    return height, width


def _pair(conv: Node, name: str) -> list[int]:
    value: Any = argument(conv, name)
    # One number may stand for both dimensions.
    return [*value] * (2 if len(value) == 1 else 1)
