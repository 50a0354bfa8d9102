"""Where output goes: results to stdout, as text or one JSON document; all else to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TextIO, TypeVar

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from ...backends.registry import backend_names
from ...errors import LowbitWarning

__all__ = ["BACKEND", "Output", "common_options", "messages", "out", "print_table", "progress_bar"]

F = TypeVar("F", bound=Callable[..., Any])

_UNFOLDED: Final = 100_000
"""Columns of what is no terminal: lines that another program reads are not folded."""


class _BackendName(click.ParamType):
    """The name of a backend. It is looked up later, when modules of the user's may have registered theirs."""

    name = "backend"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin so."""
        return [CompletionItem(name) for name in backend_names() if name.startswith(incomplete)]


BACKEND: Final = _BackendName()
"""The type of options and arguments that name a backend."""


def common_options(command: F) -> F:
    """Give a command ``--json`` (its argument ``as_json``) and ``--traceback``."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else."),
        click.option(
            "--traceback", is_flag=True, expose_value=False, help="Show the traceback of lowbit's errors too."
        ),
    )
    for option in options:
        command = option(command)
    return command


def out() -> Console:
    """stdout: coloured and folded on a terminal, plain elsewhere."""
    return _console(sys.stdout)


def messages() -> Console:
    """stderr."""
    return _console(sys.stderr)


def print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print rows in columns: folded to the width of a terminal, a line each elsewhere."""
    if not console.is_terminal:
        lines = [[str(cell) for cell in row] for row in (headings, *rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for row in lines:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            console.print(line.rstrip(), soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def progress_bar() -> Progress:
    """A progress bar on stderr, gone when it is done; nothing where stderr is no terminal."""
    console = messages()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class Output:
    """The output of one command.

    ::

        with Output(as_json) as output:
            …
            output.note("…")
            output.result({"format": "lowbit-…", "version": 1, …}, show=lambda console: …)

    While it is open, lowbit's warnings, and what it logs as such, are told in a line on stderr each, as notes
    are; for JSON they are collected, and end the document. What other code and other programs print then goes
    to stderr, so that stdout holds one document.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._document = ""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Output:
        self._stack.enter_context(_warnings_told(self._warn))
        self._stack.enter_context(_log_told(self._warn))
        if self.as_json:
            self._stack.enter_context(_stdout_to_stderr())
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        sys.stdout.write(self._document)

    def result(self, data: dict[str, Any], show: Callable[[Console], None]) -> None:
        """The result: ``data``, to be written as JSON when all is done, or what ``show`` prints."""
        if self.as_json:
            document = {**data, "notes": self.notes, "warnings": self.warnings}
            self._document = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        else:
            show(out())

    def note(self, text: str) -> None:
        """Tell what was chosen, changed or left out that was not asked for."""
        self.notes.append(text)
        self._tell(f"note: {text}")

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self._tell(f"warning: {text}")

    def _tell(self, text: str) -> None:
        if not self.as_json:
            messages().print(text, soft_wrap=True)


def _console(file: TextIO) -> Console:
    width = None if file.isatty() else _UNFOLDED
    return Console(file=file, width=width, highlight=False, markup=False)


@contextlib.contextmanager
def _stdout_to_stderr() -> Generator[None]:
    """For Python, and for other programs that are started and code that is not Python's."""
    if sys.stdout is not sys.__stdout__:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    sys.stdout.flush()
    stdout, stderr = sys.stdout.fileno(), sys.stderr.fileno()
    kept = os.dup(stdout)
    os.dup2(stderr, stdout)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, stdout)
        os.close(kept)


@contextlib.contextmanager
def _log_told(tell: Callable[[str], None]) -> Generator[None]:
    """Tell what lowbit logs as warnings, which nobody else set up a place for."""
    handler = _Teller(tell)
    logger = logging.getLogger("lowbit")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Teller(logging.Handler):
    """Hands the text of warnings on."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


@contextlib.contextmanager
def _warnings_told(tell: Callable[[str], None]) -> Generator[None]:
    """Tell lowbit's warnings, all of them, without the place in lowbit that raised them; others as ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", LowbitWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, LowbitWarning):
                tell(str(message))
            else:
                others(message, category, *place)

        warnings.showwarning = show
        yield
