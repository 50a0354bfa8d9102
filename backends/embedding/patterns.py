"""The look-up of rows, in int8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...matchers.operator_pattern import Mode, Occurrence, OperatorPattern, Role
from ..guards import constant_weight
from .kernel import RowsOfIntegers

__all__ = ["PATTERNS"]


def _embedding(weight: Tensor, indices: Tensor) -> Tensor:
    return F.embedding(indices, weight)


def _of_no_more_than_float32(occurrence: Occurrence) -> str | None:
    """The table has a dtype that quantize operators take."""
    table = occurrence.inputs[0]
    value = table.meta.get("val") if table is not None else None
    return "weight-is-float64" if isinstance(value, torch.Tensor) and value.dtype is torch.float64 else None


def _example_inputs() -> tuple[Tensor, ...]:
    return torch.zeros(5, 4), torch.zeros(2, 3, dtype=torch.int64)


PATTERNS: tuple[OperatorPattern, ...] = (
    OperatorPattern(
        "embedding",
        _embedding,
        _example_inputs,
        (Role.WEIGHT, Role.INDEX),
        RowsOfIntegers(),
        guards=(constant_weight(0), _of_no_more_than_float32),
        modes=(Mode.WEIGHT_ONLY,),
    ),
)
