"""``lowbit diff``."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from ....ir.graph_diff import diff as diff_of
from ....ir.snapshot import take_snapshot
from ....ir.stages import get_stage
from ....passes.instruments.diff_to_json import diff_as_data
from ....passes.instruments.render_diff import DIFF_LEGEND, STAT_LEGEND, render_diff, render_stat
from ..failures import FOUND
from ..saved_graphs import GRAPH_FILE, import_option, read_graph
from ..terminal import Output, common_options

__all__ = ["diff"]


_HELP: Final = f"""Print how two saved graphs differ.

The exit code is 1 if B differs from A. Nodes are recognized by what they do and where they come from, also
when they are called something else or stand elsewhere; names alone are no difference.

\b
Line by line:
{indent(DIFF_LEGEND, "  ")}
With --stat:
{indent(STAT_LEGEND, "  ")}

\b
Keys of --json:
  format, version   "lowbit-diff", 1
  same              whether there is no difference
  stages            of A and B
  diff              {{counts, nodes, attributes}}, as diff in pass-diff.schema.json
"""


@click.command(help=_HELP)
@click.argument("before", metavar="A", type=GRAPH_FILE)
@click.argument("after", metavar="B", type=GRAPH_FILE)
@click.option("--stat", is_flag=True, help="Print how much changed by module, rather than each node.")
@import_option
@common_options
def diff(*, before: Path, after: Path, stat: bool, as_json: bool) -> None:
    """Print how two saved graphs differ; the help has the legend that is printed."""
    with Output(as_json) as output:
        first, second = read_graph(before), read_graph(after)
        found = diff_of(take_snapshot(first), take_snapshot(second))
        stages = [get_stage(gm).name for gm in (first, second)]

        def show(console: Console) -> None:
            if stages[0] != stages[1]:
                console.print(f"stage: {stages[0]} → {stages[1]}")
            if found:
                console.print(render_stat(found) if stat else render_diff(found))
            if found and stat:
                console.print(Text(STAT_LEGEND, style="dim"), soft_wrap=not console.is_terminal)

        same = not found and stages[0] == stages[1]
        data = {
            "format": "lowbit-diff",
            "version": 1,
            "same": same,
            "stages": stages,
            "diff": diff_as_data(found),
        }
        output.result(data, show)
    if not same:
        raise click.exceptions.Exit(FOUND)
