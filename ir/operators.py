"""Float operators: what can be in low precision or stay float, and so has a decision in the ledger."""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from . import quantized_decomposed as qd
from .schema import OpOverload, operator_name

__all__ = ["is_float_operator", "is_pointwise", "is_precision_change", "maker"]

_UNTAGGED: Final = frozenset({"hardswish", "log_sigmoid", "prelu"})
"""Pointwise operators that torch does not tag as such."""
_OTHER_CHANGES: Final = (qd.CONVERT_ELEMENT_TYPE, *qd.CHOOSE_QPARAMS_OPS)


def is_precision_change(node: Node) -> bool:
    """Whether ``node`` is how low precision is written (quantize, dequantize), no operator of the model."""
    return qd.is_quantize(node) or qd.is_dequantize(node) or node.target in _OTHER_CHANGES


def maker(node: Node) -> Node:
    """The operator whose result ``node`` is, or picks one of."""
    while node.target is operator.getitem and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def is_pointwise(target: object) -> bool:
    """Whether the operator ``target`` computes each element of its result from one element of each input."""
    return isinstance(target, OpOverload) and (
        torch.Tag.pointwise in target.tags or operator_name(target)[1] in _UNTAGGED
    )


def is_float_operator(node: Node) -> bool:
    """Whether ``node`` computes a floating-point tensor for the model: of several results, one is enough.

    What picks one of several results counts too: it is where that result is quantized.
    """
    if node.op != "call_function" or is_precision_change(maker(node)):
        return False
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values)
