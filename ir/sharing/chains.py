"""Chains: how points hang together, as one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ..location import describe_point
from ..specs import EdgeOrNode

__all__ = ["Step", "chain"]

Step: TypeAlias = "tuple[str, EdgeOrNode | str]"
"""A verb and what it leads to: a point, or the text of something that is none."""


def chain(start: EdgeOrNode, steps: Iterable[Step]) -> str:
    """The sentence ``START verb NEXT, which verb NEXT, …``."""
    clauses = [f"{verb} {to if isinstance(to, str) else describe_point(to)}" for verb, to in steps]
    return " ".join([describe_point(start), ", which ".join(clauses)]) if clauses else describe_point(start)
