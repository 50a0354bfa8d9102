"""What goes wrong, as people and programs read it: text or JSON on stderr, and the exit code."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any, Final

import attrs
import click

from ...errors import LowbitError, OptionError, PassFailedError, PipelineError, UnknownNameError
from ...passes.instruments.reproduce import AGAIN
from .tracebacks import without_ours

__all__ = ["EXIT_CODES", "FOUND", "NOT_READ", "USAGE", "Failure", "describe", "in_code_of_yours"]

FOUND: Final = 1
USAGE: Final = 2
_REFUSED: Final = 3
_RAISED: Final = 4
_INTERRUPTED: Final = 130
NOT_READ: Final = 141

EXIT_CODES: Final = {
    0: "done, and nothing was found",
    FOUND: "a comparison or a check found something: graphs differ, a check of doctor failed",
    USAGE: "the command was not understood: an option, a name, a pipeline or a configuration file",
    _REFUSED: "lowbit refused the model, the data or the graph; the message says why and what to do",
    _RAISED: "code that is not lowbit's raised (or lowbit has a defect); the traceback is shown",
    _INTERRUPTED: "interrupted",
    NOT_READ: "whoever read the output stopped before its end, as head does",
}
"""What each exit code means."""

_NOTE: Final = "it comes from "
_AT: Final = "at: "
_DO: Final = "do: "


@attrs.frozen
class Failure:
    """Something that ended a command.

    Args:
        exit_code: one of :data:`EXIT_CODES`.
        kind: name of the exception's class.
        found: what was found.
        where: the places it was found at.
        hint: what to do next.
        pass_name: the pass it was found in.
        traceback: text of the traceback, where there is one to show.
    """

    exit_code: int
    kind: str
    found: str
    where: tuple[str, ...] = ()
    hint: str = ""
    pass_name: str | None = None
    traceback: str = ""

    def __str__(self) -> str:
        error = LowbitError(self.found, where=self.where, hint=self.hint)
        error.pass_name = self.pass_name
        return f"{self.traceback}error: {error}"

    def as_data(self) -> dict[str, Any]:
        """What ``--json`` writes to stderr."""
        return {
            "format": "lowbit-error",
            "version": 1,
            "exit_code": self.exit_code,
            "kind": self.kind,
            "found": self.found,
            "where": list(self.where),
            "hint": self.hint,
            "pass": self.pass_name,
            "traceback": self.traceback or None,
        }


def describe(error: BaseException, *, with_traceback: bool) -> Failure:
    """``error`` as a failure.

    lowbit's own errors have a traceback only if it is asked for. Those of the user's code always have: of
    that code alone, unless all of it is asked for.
    """
    kind = type(error).__name__
    text = "".join(traceback.format_exception(error)) if with_traceback else ""
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return Failure(_INTERRUPTED, kind, "interrupted", traceback=text)
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"{context.command_path} --help lists the options" if context is not None else ""
        return Failure(error.exit_code, kind, error.format_message(), hint=hint, traceback=text)
    if isinstance(error, PassFailedError):
        cause = error.__cause__
        return _of_lowbit(
            error, _RAISED, text or ("" if cause is None else "".join(traceback.format_exception(cause)))
        )
    if isinstance(error, LowbitError):
        code = USAGE if isinstance(error, (OptionError, PipelineError, UnknownNameError)) else _REFUSED
        return _of_lowbit(error, code, text)
    return _raised_by_others(error, in_full=with_traceback)


def in_code_of_yours(error: BaseException, who: str, where: Sequence[str] = (), hint: str = "") -> None:
    """Note on ``error`` that it comes from ``who``, which the user named: their frames are what is shown.

    Args:
        error: what was raised.
        who: what of the user's raised it.
        where: what it worked on.
        hint: what to do next.
    """
    for note in (_NOTE + who, *(_AT + place for place in where), *([_DO + hint] if hint else [])):
        error.add_note(note)


def _of_lowbit(error: LowbitError, code: int, text: str) -> Failure:
    again = [note for note in getattr(error, "__notes__", ()) if note.startswith(AGAIN)]
    hint = "; ".join(filter(None, (error.hint, *again)))
    return Failure(code, type(error).__name__, error.found, error.where, hint, error.pass_name, text)


def _raised_by_others(error: BaseException, *, in_full: bool) -> Failure:
    kind = type(error).__name__
    notes: list[str] = getattr(error, "__notes__", [])
    who, where, hint = ([n.removeprefix(p) for n in notes if n.startswith(p)] for p in (_NOTE, _AT, _DO))
    if who:
        cut = without_ours(error, lambda note: note.startswith((_NOTE, _AT, _DO)))
        text = "".join(traceback.format_exception(error)) if in_full else cut
        found = f"{who[0]} raised {kind}: {error}"
        return Failure(_RAISED, kind, found, tuple(where), "; ".join(hint), traceback=text)
    text = "".join(traceback.format_exception(error))
    hint = "if this is not from code of yours, it is a defect of lowbit: please report it"
    return Failure(_RAISED, kind, f"{kind}: {error}", hint=hint, traceback=text)
