"""Conditions on a match beyond its structure, shared by backends. Each returns None or a reason code."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..ir.attributes import is_constant
from ..matchers.match import Match
from ..matchers.operator_pattern import Guard

__all__ = ["constant_weight", "float32_activations", "same_shape"]


def constant_weight(position: int) -> Guard:
    """The input at ``position`` is a parameter or buffer that nothing writes to."""

    def guard(match: Match) -> str | None:
        node = match.placeholder_nodes[position]
        return None if node is not None and is_constant(node) else "weight-not-constant"

    return guard


def float32_activations(*positions: int) -> Guard:
    """The inputs at ``positions`` are float32 tensors, as far as the graph says."""

    def guard(match: Match) -> str | None:
        for position in positions:
            node = match.placeholder_nodes[position]
            value = node.meta.get("val") if node is not None else None
            if isinstance(value, torch.Tensor) and value.dtype is not torch.float32:
                return "activation-not-float32"
        return None

    return guard


def same_shape(position: int) -> Guard:
    """The input at ``position`` has the shape of the result: it is added without broadcasting.

    Without shapes in the graph the answer is no.
    """

    def guard(match: Match) -> str | None:
        values = [
            node.meta.get("val") if isinstance(node, Node) else None
            for node in (match.placeholder_nodes[position], match.anchor)
        ]
        shapes = [value.shape for value in values if isinstance(value, torch.Tensor)]
        return None if len(shapes) == 2 and shapes[0] == shapes[1] else "operands-broadcast"

    return guard
