"""Explanations: what became of an operator and why, and why two tensors share a scale."""

from ...ir.gone import Gone
from ...ir.near_miss import NearMiss
from .because import Because
from .explanation import Explanation, OperatorExplanation
from .operators import explain
from .sharing import SharingExplanation, why_shared
from .tensors import TensorExplanation

__all__ = [
    "Because",
    "Explanation",
    "Gone",
    "NearMiss",
    "OperatorExplanation",
    "SharingExplanation",
    "TensorExplanation",
    "explain",
    "why_shared",
]
