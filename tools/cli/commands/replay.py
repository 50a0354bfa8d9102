"""``lowbit replay``."""

from __future__ import annotations

import traceback
from pathlib import Path

import click
from rich.console import Console

from ....errors import LowbitError, PassFailedError
from ....passes.pipeline import format_pass
from ..failures import FOUND
from ..reproducers import REPRODUCER, open_reproducer
from ..saved_graphs import import_option
from ..terminal import Output, common_options

__all__ = ["replay"]


@click.command()
@click.argument("reproducer", type=REPRODUCER)
@import_option
@common_options
def replay(*, reproducer: Path, as_json: bool) -> None:
    """Run the pass that failed once more.

    REPRODUCER is a file that lowbit quantize --reproducers, lowbit opt --reproducers or the instrument
    Reproducer wrote. It is opened as a program is: do not replay what you would not run. The exit code is 1
    if the pass fails, with the error that it raised.

    \b
    lowbit replay reproducers/fold-quantize.zip

    \b
    Keys of --json:
      format, version   "lowbit-replay", 1
      pass              as pipelines write it
      nodes             of the graph
      fails             whether the pass raised
      error             {kind, found, where, hint, traceback} or null
    """
    with Output(as_json) as output:
        found = open_reproducer(reproducer, output)
        error = found.failure()
        data = {
            "format": "lowbit-replay",
            "version": 1,
            "pass": format_pass(found.pass_),
            "nodes": len(found.gm.graph.nodes),
            "fails": error is not None,
            "error": None if error is None else _as_data(error),
        }

        def show(console: Console) -> None:
            where = f"the pass {data['pass']}, on {data['nodes']} nodes"
            if error is None:
                console.print(f"{where}, does not fail", soft_wrap=True)
            else:
                console.print(f"{where}, fails:\n{_trace(error)}{error}", soft_wrap=True)

        output.result(data, show)
    if error is not None:
        raise click.exceptions.Exit(FOUND)


def _as_data(error: Exception) -> dict[str, object]:
    is_ours = isinstance(error, LowbitError)
    return {
        "kind": type(error).__name__,
        "found": error.found if is_ours else str(error),
        "where": list(error.where) if is_ours else [],
        "hint": error.hint if is_ours else "",
        "traceback": _trace(error) or None,
    }


def _trace(error: Exception) -> str:
    """The traceback of what a pass raised that is no error of lowbit's."""
    cause = error.__cause__ if isinstance(error, PassFailedError) else None
    return "" if cause is None else "".join(traceback.format_exception(cause))
