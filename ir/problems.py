"""Problems that are found together and reported together."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import attrs
from torch.fx import Node

from ..errors import LowbitError
from .location import locate

__all__ = ["Problem", "combine", "places"]

_MOST_PLACES = 4


@attrs.frozen
class Problem:
    """One thing that is wrong with a graph.

    Args:
        found: what was found.
        where: the places, as :class:`~lowbit.errors.LowbitError` takes them.
        hint: what to do about it.
        position: where in the graph it begins; reports are sorted by it.
    """

    found: str
    where: tuple[str, ...]
    hint: str
    position: int


def places(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The locations of ``nodes``, each once, in the order given; of many, the first few and a count."""
    distinct = list(dict.fromkeys(nodes))
    shown = tuple(place for node in distinct[:_MOST_PLACES] for place in locate(node))
    left_out = len(distinct) - _MOST_PLACES
    return (*shown, f"and {left_out} more nodes") if left_out > 0 else shown


def combine(problems: Sequence[Problem], error_type: type[LowbitError], summary: str) -> LowbitError:
    """One error that says all of ``problems``, in graph order.

    Args:
        problems: at least one.
        error_type: the type of the error.
        summary: what the problems are about; follows their count in the headline.
    """
    if len(problems) == 1:
        (problem,) = problems
        return error_type(problem.found, where=problem.where, hint=problem.hint)
    lines = [f"{len(problems)} problems {summary}"]
    for number, problem in enumerate(sorted(problems, key=lambda p: p.position), start=1):
        text = str(error_type(problem.found, where=problem.where, hint=problem.hint))
        lines.append(f"{number}. {textwrap.indent(text, '   ').lstrip()}")
    return error_type("\n".join(lines))
