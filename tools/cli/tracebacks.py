"""Tracebacks as the user whose code raised wants them: without the frames that led there."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Final

__all__ = ["innermost_line", "without_ours"]

_OURS: Final = ("lowbit", "click", "importlib")
_PLUMBING: Final = ("torch.nn.modules.module", "torch.utils._contextlib")


def without_ours(error: BaseException, is_hidden: Callable[[str], bool]) -> str:
    """The traceback of ``error`` and of what it came from, without frames of this program and of calls.

    Args:
        error: what was raised.
        is_hidden: tells the notes on it that are left out.
    """
    found = traceback.TracebackException.from_exception(error)
    _leave_out(found, error, is_hidden)
    return "".join(found.format())


def innermost_line(error: BaseException) -> str:
    """``file:line: code`` of the innermost frame that is neither this program's nor torch's, or ""."""
    found = traceback.TracebackException.from_exception(error)
    for summary, module in reversed(list(zip(found.stack, _modules(error), strict=False))):
        is_file = not summary.filename.startswith("<")
        if is_file and not _is_of(module, (*_OURS, "torch")):
            return f"{summary.filename}:{summary.lineno}: {summary.line}"
    return ""


def _leave_out(
    found: traceback.TracebackException, error: BaseException, is_hidden: Callable[[str], bool]
) -> None:
    kept = [
        summary
        for summary, module in zip(found.stack, _modules(error), strict=False)
        if not _is_of(module, (*_OURS, *_PLUMBING))
    ]
    found.stack[:] = kept
    notes: list[str] = getattr(found, "__notes__", None) or []
    found.__notes__ = [note for note in notes if not is_hidden(note)]
    for told, raised in ((found.__cause__, error.__cause__), (found.__context__, error.__context__)):
        if told is not None and raised is not None:
            _leave_out(told, raised, is_hidden)


def _modules(error: BaseException) -> list[str]:
    """The name of the module of each frame: by files, whatever lies in this repository would be ours.

    Of a stack there may be fewer: ``sys.tracebacklimit`` cuts it.
    """
    frames = traceback.walk_tb(error.__traceback__)
    return [_name(frame.f_globals) for frame, _ in frames]


def _name(names: dict[str, Any]) -> str:
    return str(names.get("__name__") or "")


def _is_of(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)
