"""What each operator of a graph reads when the model is to use bfloat16 (a step of ``propagate-bf16``)."""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable
from typing import Final

import torch
from torch.fx import Graph, Node

from ..ir import quantized_decomposed as qd
from ..ir.aliasing import is_write
from ..ir.operators import is_pointwise
from ..ir.schema import OpOverload, argument, operator_name, signature
from .bf16_operators import COMPUTE_IN_BFLOAT16, MOVE_VALUES, PROMOTE, RECURRENT, STAY_FLOAT32

__all__ = ["ASSERT_METADATA", "Rule", "make_plan"]

_aten = torch.ops.aten

ASSERT_METADATA: Final = _aten._assert_tensor_metadata.default
"""``(input, size, stride, dtype, *, device, layout)``: ``torch.export`` puts it before conversions."""


class Rule(enum.Enum):
    """What becomes of the floating-point inputs of an operator."""

    AS_GIVEN = "as given"
    """They are read as they are; torch's type promotion gives the dtype of the result."""
    BFLOAT16 = "bfloat16"
    """They are cast to bfloat16."""
    FLOAT32 = "float32"
    """They are cast to float32."""
    SAME = "same"
    """They are cast to one dtype: that of the tensor written into, else the widest."""
    EXPORTED = "exported"
    """They are cast to the dtypes that the model was exported with."""


_AS_GIVEN: Final = (
    qd.QUANTIZE_OPS | qd.DEQUANTIZE_OPS | qd.CHOOSE_QPARAMS_OPS | {qd.CONVERT_ELEMENT_TYPE, ASSERT_METADATA}
)


def make_plan(graph: Graph, is_written: Callable[[Node], bool]) -> dict[Node, Rule]:
    """The rule of every call in ``graph``.

    One sweep from the outputs up, since two things depend on who reads a result. An operator that moves
    values reads bfloat16 when all its readers do. And a convolution or linear from dequantize to quantize,
    with the pointwise operators behind it, stays as it is: a kernel computes it from integers to integers,
    and never stores the floats.
    """
    rules: dict[Node, Rule] = {}
    requantized: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op not in {"call_function", "call_module"}:
            continue
        if _is_requantized(node, requantized):
            requantized.add(node)
        rules[node] = _rule(node, rules, node in requantized, is_written)
    return rules


def _rule(
    node: Node, rules: dict[Node, Rule], is_requantized: bool, is_written: Callable[[Node], bool]
) -> Rule:
    target = node.target
    if target is operator.getitem or target in _AS_GIVEN:
        return Rule.AS_GIVEN
    if not isinstance(target, OpOverload) or _must_stay(node, target):
        return Rule.EXPORTED
    name = operator_name(target)[1]
    if name in COMPUTE_IN_BFLOAT16 and not is_write(node):
        return Rule.AS_GIVEN if is_requantized else Rule.BFLOAT16
    if name in STAY_FLOAT32 and not is_write(node):
        return Rule.FLOAT32
    if name in MOVE_VALUES and not is_written(node) and target is not _aten.view.dtype:
        read_as_bfloat16 = node.users and all(rules.get(user) is Rule.BFLOAT16 for user in node.users)
        return Rule.BFLOAT16 if read_as_bfloat16 else Rule.AS_GIVEN
    # Not all that is pointwise promotes: PReLU, which torch does not tag so, takes one dtype.
    promotes = torch.Tag.pointwise in target.tags or name in PROMOTE
    return Rule.AS_GIVEN if promotes else Rule.SAME


def _must_stay(node: Node, target: OpOverload) -> bool:
    namespace, name, _ = operator_name(target)
    if namespace not in {"aten", "prims"} or name in RECURRENT:
        return True
    # A tensor that was sent through float16 and back: what reads it is quantized, to float16.
    return any(source.target is qd.CONVERT_ELEMENT_TYPE for source in node.all_input_nodes)


def _is_requantized(node: Node, requantized: set[Node]) -> bool:
    """Whether the result of ``node`` is only ever seen quantized, and a kernel may compute it so."""
    target = node.target
    if not isinstance(target, OpOverload) or not node.users:
        return False
    readers = tuple(node.users)
    if not all(reader.target is qd.QUANTIZE_PER_TENSOR for reader in readers) and not (
        len(readers) == 1 and readers[0] in requantized and is_pointwise(readers[0].target)
    ):
        return False
    if operator_name(target)[1] in COMPUTE_IN_BFLOAT16:
        with_weight = "weight" in signature(target).positional
        return with_weight and all(map(qd.is_dequantize, (node.args[0], argument(node, "weight"))))
    computed = sum(not qd.is_dequantize(n) and n.op != "get_attr" for n in node.all_input_nodes)
    return is_pointwise(target) and computed == 1
