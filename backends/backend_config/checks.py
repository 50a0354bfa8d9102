"""What users hand in, checked where it arrives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import SpecError
from ...passes.registry import unknown_name

__all__ = ["known_keys", "pairs_of"]


def known_keys(what: str, given: object, known: Iterable[str]) -> None:
    """See that ``given`` is a dictionary with no other keys than ``known``.

    Raises:
        SpecError: it is no dictionary.
        UnknownNameError: it has another key; the hint has the nearest.
    """
    if not isinstance(given, Mapping):
        raise SpecError(f"{what} was expected, and {given!r} came", hint="pass what to_dict() returns")
    known = tuple(known)
    for key in given:
        if key not in known:
            raise unknown_name(f"key of {what}", str(key), known)


def pairs_of(what: str, given: object, length: int) -> list[tuple[Any, ...]]:
    """``given`` as a list of tuples of ``length``.

    Raises:
        SpecError: it is none.
    """
    if isinstance(given, (list, tuple)):
        rows = [tuple(row) for row in given if isinstance(row, (list, tuple)) and len(row) == length]
        if len(rows) == len(given):
            return rows
    raise SpecError(
        f"{what} is {given!r}", hint=f"it is a list of tuples of {length}, as to_dict() returns it"
    )
