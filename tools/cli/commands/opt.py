"""``lowbit opt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.text import Text
from torch.fx import GraphModule

from ....errors import GraphInputError, OptionError
from ....ir.coverage import coverage_of
from ....ir.ledger import Ledger
from ....ir.meta import BACKEND_KEY, LEDGER_KEY
from ....ir.stages import get_stage
from ....ir.text import save_graph
from ....ir.text.files import check_graph_path
from ....passes import Pass, PassContext, PassManager, Pipeline
from ....passes.instruments import Change, PrintChanges, Reproducer, TraceChanges, Verify
from ....passes.instruments.diff_to_json import change_as_data
from ..pass_target import find_pass_target
from ..quantizing.files import check_is_folder, check_is_writable, written_whole
from ..quantizing.watch import Watch
from ..saved_graphs import GRAPH_FILE, import_option, read_graph
from ..summary import coverage_as_data, show_coverage
from ..terminal import BACKEND, Output, common_options, progress_bar

__all__ = ["opt"]


@attrs.frozen
class _Collect:
    """An instrument that keeps what each pass did."""

    changes: list[tuple[Pass, Change]] = attrs.Factory(list)
    data: list[dict[str, Any]] = attrs.Factory(list)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Nothing to do."""

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Keep it."""
        self.changes.append((pass_, change))
        self.data.append(change_as_data(change.index, pass_, gm, change))


@click.command()
@click.argument("pipeline")
@click.argument("graph", type=GRAPH_FILE)
@click.option("--stat", is_flag=True, help="Print how much changed by module, rather than each node.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Write the graph that results."
)
@click.option(
    "--backend",
    type=BACKEND,
    metavar="NAME",
    help="Whose quantizer annotates and whose patterns are lowered; that of the graph, or else Inductor "
    "on this CPU, if left out.",
)
@click.option("--preset", metavar="NAME", help="The preset that the pass annotate takes.")
@click.option(
    "--reproducers",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where a pass fails, write what it takes to run it again, for lowbit replay and reduce.",
)
@import_option
@common_options
def opt(
    *,
    pipeline: str,
    graph: Path,
    stat: bool,
    output: Path | None,
    backend: str | None,
    preset: str | None,
    reproducers: Path | None,
    as_json: bool,
) -> None:
    """Run passes on a saved graph, and print what changed.

    PIPELINE is passes with commas between them, options in braces; lowbit passes lists them. GRAPH is what
    save_graph or lowbit quantize --save-graphs wrote.

    \b
    lowbit opt normalize,fold-batch-norm graphs/float.lowbit --stat
    lowbit opt 'duplicate-dequantize, fold-quantize' graph.lowbit -o folded.lowbit

    \b
    Keys of --json:
      format, version   "lowbit-opt", 1
      pipeline          as text
      stage             of the graph that results
      passes            [{index, pass, stage, node_count, diff}], each as pass-diff.schema.json says
      coverage          as of lowbit quantize, null where nothing was decided yet
      output            path or null
      notes             [text]
    """
    passes = Pipeline.parse(pipeline)
    if output is not None:
        check_is_writable(output, "output")
        _check_graph_path(output)
    if reproducers is not None:
        check_is_folder(reproducers, "reproducers")
    with Output(as_json) as to:
        gm = read_graph(graph)
        target = find_pass_target(gm, passes, backend, preset)
        for note in target.notes:
            to.note(note)
        context = PassContext(
            quantizer=target.quantizer,
            ledger=gm.meta.get(LEDGER_KEY, Ledger()).copy(),
            patterns=target.patterns,
            backend=target.backend,
        )
        collect = _Collect()
        reproducer = () if reproducers is None else (Reproducer(reproducers),)
        with progress_bar() as progress, Watch(progress).passes("running", passes) as each:
            manager = PassManager((Verify(), TraceChanges(), collect, *reproducer, each))
            result = manager.run(gm, passes, context)
        result.meta[LEDGER_KEY] = context.ledger
        if target.backend is not None:
            result.meta[BACKEND_KEY] = target.backend
        if output is not None:
            with written_whole(output) as draft:
                save_graph(result, draft)

        found = coverage_of(context.ledger, target.backend or "")
        covered = found if found.total else None

        def show(console: Console) -> None:
            printer = PrintChanges(console, stat)
            for pass_, change in collect.changes:
                if change.changed:
                    printer.after(pass_, result, change)
                else:
                    console.print(Text(f"{change.index:02} {pass_.name}: nothing changed", style="dim"))
            if covered is not None:
                show_coverage(console, covered)
            if output is not None:
                console.print(f"wrote {output}", soft_wrap=True)

        data = {
            "format": "lowbit-opt",
            "version": 1,
            "pipeline": str(passes),
            "stage": get_stage(result).name,
            "passes": collect.data,
            "coverage": None if covered is None else coverage_as_data(covered),
            "output": None if output is None else str(output),
        }
        to.result(data, show)


def _check_graph_path(output: Path) -> None:
    try:
        check_graph_path(output)
    except GraphInputError as error:
        raise OptionError(f"--output: {error.found}", hint=error.hint) from error
