"""The group of commands: it ends each with an exit code, and tells what went wrong as text or as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ..interrupts import imports_are_done
from .failures import EXIT_CODES, NOT_READ, describe

__all__ = ["CommandGroup"]


class CommandGroup(click.Group):
    """A click group whose commands may raise lowbit's errors, and whose help lists the exit codes."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command, and end the process with one of ``EXIT_CODES``."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            imports_are_done()
            with _current_folder_importable():
                result = super().main(
                    words,
                    prog_name,
                    complete_var,
                    standalone_mode=False,
                    windows_expand_args=windows_expand_args,
                    **extra,
                )
            sys.stdout.flush()
        except (BrokenPipeError, _NotReadError):
            # Whoever read our output has seen enough; Python would complain when it closes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(NOT_READ)
        except (Exception, KeyboardInterrupt) as error:
            if not standalone_mode:
                raise
            failure = describe(error, with_traceback="--traceback" in words)
            text = json.dumps(failure.as_data(), ensure_ascii=False) if "--json" in words else str(failure)
            click.echo(text, err=True)
            sys.exit(failure.exit_code)
        if not standalone_mode:
            return result
        # Without its standalone mode, click returns the code that Context.exit was called with.
        sys.exit(result if isinstance(result, int) else 0)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As click does it; ``--help`` prints here."""
        with _broken_pipes_told():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does it."""
        with _broken_pipes_told():
            return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes below the commands."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


class _NotReadError(Exception):
    """Nobody reads the output any more."""


@contextmanager
def _broken_pipes_told() -> Generator[None]:
    """Keep click and rich from ending the process with exit code 1, which says that something was found."""
    try:
        yield
    except BrokenPipeError as error:
        raise _NotReadError from error
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            raise _NotReadError from error
        raise


@contextmanager
def _current_folder_importable() -> Generator[None]:
    """As ``python -m`` has it, so that ``package.module:build`` finds what lies there."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
