"""Explanations: what became of an operator and why, and why two tensors share a scale."""

from .because import Because
from .explanation import Explanation, OperatorExplanation
from .folded import FoldedExplanation
from .operators import explain
from .sharing import SharingExplanation, why_shared
from .tensors import TensorExplanation

__all__ = [
    "Because",
    "Explanation",
    "FoldedExplanation",
    "OperatorExplanation",
    "SharingExplanation",
    "TensorExplanation",
    "explain",
    "why_shared",
]
