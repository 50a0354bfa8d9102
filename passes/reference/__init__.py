"""The reference representation: quantized operators as integer arithmetic, one rule family a file."""

from .representation import ReferenceRepresentation
from .rules import RULES

__all__ = ["RULES", "ReferenceRepresentation"]
