"""Search by trying: where a row of versions turns bad, and the least that still shows something.

The second is delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input",
2002), here as a descent: whatever simpler version still shows it is taken at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

__all__ = ["first_bad", "smallest", "smallest_part"]

H = TypeVar("H", bound=Hashable)


def first_bad(last: int, is_bad: Callable[[int], bool]) -> int:
    """The ``i`` of 1 … ``last`` where ``is_bad(i)`` and not ``is_bad(i - 1)``, by binary search.

    0 is taken to be good and ``last`` to be bad. Where versions turn bad several times, it is one of them.
    """
    good, bad = 0, last
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_bad(middle):
            bad = middle
        else:
            good = middle
    return bad


def smallest(value: H, simpler: Callable[[H], Iterable[H]], holds: Callable[[H], bool]) -> H:
    """A value that ``holds``, as no simpler one does that is tried.

    Args:
        value: one that holds.
        simpler: values a little simpler than another, the simplest first.
        holds: whether a value shows what is looked for.
    """
    tried = {value}
    while True:
        for candidate in simpler(value):
            if candidate not in tried:
                tried.add(candidate)
                if holds(candidate):
                    value = candidate
                    break
        else:
            return value


def smallest_part(items: tuple[H, ...], holds: Callable[[tuple[H, ...]], bool]) -> tuple[H, ...]:
    """A part of ``items`` that ``holds``, and does so no more without any one of them.

    Left out are all, each half, each quarter, … each item. After what could be left out, the search goes on
    with what was behind it, in chunks of the same size; item by item it goes round until nothing more can go.
    Where an item is needed no matter what else is there, it takes about 3 · n trials at most.

    Args:
        items: all of them; they hold.
        holds: whether a part shows what is looked for. It is asked once of each.
    """
    holds = functools.cache(holds)
    size = len(items)
    while size:
        before = items
        start = 0
        while start < len(items):
            fewer = (*items[:start], *items[start + size :])
            if holds(fewer):
                items = fewer
            else:
                start += size
        if size > 1:
            size //= 2
        elif items == before:
            size = 0
    return items
