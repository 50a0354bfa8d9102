"""Pass classes by name, so that a pipeline's text can be read back."""

from __future__ import annotations

import difflib
import re
from typing import Final, TypeVar

from ..errors import PipelineError, UnknownNameError
from .base import Pass

__all__ = ["PASS_NAME", "pass_class", "pass_names", "register_pass", "unknown_name"]

PASS_NAME: Final = "[a-z0-9]+(?:-[a-z0-9]+)*"
"""What names of passes look like, as a regular expression: kebab-case."""

_MOST: Final = 30
"""Names that an error lists, where none is near."""

_classes: dict[str, type[Pass]] = {}

P = TypeVar("P", bound=Pass)


def register_pass(cls: type[P]) -> type[P]:
    """Class decorator: make a pass known by its ``name``.

    Raises:
        PipelineError: another class has that name, or it is not kebab-case.
    """
    if re.fullmatch(PASS_NAME, cls.name) is None:
        raise PipelineError(
            f"the pass name {cls.name!r} would not be read back from a pipeline's text",
            hint="name passes in kebab-case: lower-case words and digits, joined by hyphens",
        )
    known = _classes.get(cls.name)
    # The same class defined again (a module reloaded, a notebook cell run twice) replaces itself.
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise PipelineError(
            f"the pass name {cls.name!r} is taken by {known.__module__}.{known.__qualname__}",
            hint="give the new pass a name of its own",
        )
    _classes[cls.name] = cls
    return cls


def pass_names() -> tuple[str, ...]:
    """The names of all registered passes, sorted."""
    return tuple(sorted(_classes))


def pass_class(name: str) -> type[Pass]:
    """The pass class of that name.

    Raises:
        UnknownNameError: there is none; the hint has the nearest names.
    """
    try:
        return _classes[name]
    except KeyError:
        raise unknown_name("pass", name, pass_names()) from None


def unknown_name(kind: str, name: str, known: tuple[str, ...]) -> UnknownNameError:
    """The error for a name that is not among ``known``."""
    # A part of a name is near it, however short: x86 of x86_inductor.
    begun = [each for each in known if len(name) > 1 and each.startswith(name)]
    near = list(dict.fromkeys([*begun, *difflib.get_close_matches(name, known, n=3, cutoff=0.5)]))[:3]
    if near:
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?"
    else:
        more = f" and {len(known) - _MOST} more" if len(known) > _MOST else ""
        hint = f"known: {', '.join(known[:_MOST])}{more}" if known else "there is none at all"
    return UnknownNameError(f"there is no {kind} named {name!r}", hint=hint)
