"""Conditions on an occurrence beyond its structure, shared by backends: None, or a reason code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..ir.attributes import is_constant
from ..matchers.operator_pattern import Guard, Occurrence

__all__ = ["constant_weight", "dimensions", "float32_activations", "same_shape"]


def constant_weight(position: int) -> Guard:
    """The input at ``position`` is a parameter or buffer that nothing writes to."""

    def guard(occurrence: Occurrence) -> str | None:
        node = occurrence.inputs[position]
        return None if node is not None and is_constant(node) else "weight-not-constant"

    return guard


def float32_activations(*positions: int, or_bfloat16: bool = False) -> Guard:
    """The inputs at ``positions`` are float32 tensors (bfloat16 too, if that will do), if the graph knows."""
    taken = (torch.float32, torch.bfloat16) if or_bfloat16 else (torch.float32,)

    def guard(occurrence: Occurrence) -> str | None:
        for position in positions:
            value = _value(occurrence.inputs[position])
            if value is not None and value.dtype not in taken:
                return "activation-not-float32"
        return None

    return guard


def dimensions(position: int, count: int) -> Guard:
    """The input at ``position`` has ``count`` dimensions, as far as the graph says."""

    def guard(occurrence: Occurrence) -> str | None:
        value = _value(occurrence.inputs[position])
        return None if value is None or value.dim() == count else f"not-{count}-dimensional"

    return guard


def same_shape(position: int) -> Guard:
    """The input at ``position`` has the shape of the result: it is added without broadcasting.

    Without shapes in the graph, and of sizes that need not be equal at every run, the answer is no.
    """

    def guard(occurrence: Occurrence) -> str | None:
        added, result = _value(occurrence.inputs[position]), _value(occurrence.output)
        if added is None or result is None or not _equal(added.shape, result.shape):
            return "operands-broadcast"
        return None

    return guard


def _value(node: Node | None) -> torch.Tensor | None:
    value = node.meta.get("val") if node is not None else None
    return value if isinstance(value, torch.Tensor) else None


def _equal(first: Sequence[int], second: Sequence[int]) -> bool:
    # Comparing symbolic sizes outright would make a guess and put it down as a condition of the graph.
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(statically_known_true(a == b) for a, b in pairs)
