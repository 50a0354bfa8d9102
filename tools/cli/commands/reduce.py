"""``lowbit reduce``."""

from __future__ import annotations

from pathlib import Path

import click

from ...bisect import reduce_reproducer
from ...bisect.replay import read_reproducer
from ..quantizing.files import check_is_writable
from ..reproducers import REPRODUCER, open_reproducer
from ..saved_graphs import import_option
from ..terminal import Output, common_options, progress_bar

__all__ = ["reduce"]


@click.command()
@click.argument("reproducer", type=REPRODUCER)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE.zip",
    help="Where the smaller one goes; NAME-reduced.zip beside it if left out.",
)
@import_option
@common_options
def reduce(*, reproducer: Path, output: Path | None, as_json: bool) -> None:
    """Shrink a reproducer to the nodes that the failure needs.

    Nodes are left out as long as the pass fails in the same way: with the same kinds of errors and the same
    words. REPRODUCER is opened as a program is, as by lowbit replay.

    \b
    lowbit reduce reproducers/fold-quantize.zip -o small.zip

    \b
    Keys of --json:
      format, version   "lowbit-reduce", 1
      nodes             {before, after}
      trials            how often the pass was run
      output            path
    """
    target = reproducer.with_name(f"{reproducer.stem}-reduced.zip") if output is None else output
    check_is_writable(target, "output")
    with Output(as_json) as to:
        before = len(open_reproducer(reproducer, to).gm.graph.nodes)
        trials = 0
        with progress_bar() as progress:
            task = progress.add_task("leaving nodes out", total=None)

            def count() -> None:
                nonlocal trials
                trials += 1
                progress.advance(task)

            target.parent.mkdir(parents=True, exist_ok=True)
            reduce_reproducer(reproducer, target, on_trial=count)
        after = len(read_reproducer(target).gm.graph.nodes)
        data = {
            "format": "lowbit-reduce",
            "version": 1,
            "nodes": {"before": before, "after": after},
            "trials": trials,
            "output": str(target),
        }
        text = f"{before} → {after} nodes, after {trials} trials\nwrote {target}: lowbit replay {target}"
        to.result(data, lambda console: console.print(text, soft_wrap=True))
