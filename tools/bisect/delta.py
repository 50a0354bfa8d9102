"""Search by trying: where a row of versions turns bad, and the least that still shows something.

The second is delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input",
2002), here as a descent: whatever simpler version still shows it is taken at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

__all__ = ["first_bad", "smallest", "without_chunks"]

T = TypeVar("T")
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


def without_chunks(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """``items`` with one chunk left out: each half, each quarter, … each item."""
    size = len(items)
    while size:
        for start in range(0, len(items), size):
            yield (*items[:start], *items[start + size :])
        size //= 2
