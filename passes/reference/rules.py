"""All rules of the reference representation, in the order they are tried: larger structures first."""

from __future__ import annotations

from typing import Final

from .elementwise import ELEMENTWISE
from .movement import MOVEMENT
from .pooling import POOLING
from .rule import Rule
from .weighted import WEIGHTED

__all__ = ["RULES"]

RULES: Final[tuple[Rule, ...]] = (*WEIGHTED, *POOLING, *MOVEMENT, *ELEMENTWISE)
