"""``lowbit costly``."""

from __future__ import annotations

from pathlib import Path

import attrs
import click
from rich.console import Console
from torch.fx import GraphModule

from ....errors import GraphInputError
from ....ir.stages import Stage, get_stage
from ...bisect import CostlyOperators, costly_operators
from ..failures import FOUND
from ..quantizing.saved import to_quantize
from ..saved_graphs import GRAPH_FILE, import_option, read_graph
from ..terminal import BACKEND, Output, common_options, progress_bar
from ..user_checks import find_metric

__all__ = ["costly"]


@click.command()
@click.argument("graph", type=GRAPH_FILE)
@click.option(
    "--metric",
    required=True,
    metavar="METRIC",
    help="package.module:name of a function that is handed a GraphModule and returns a number: how good the "
    "model is. More is better.",
)
@click.option(
    "--tolerance",
    required=True,
    type=click.FloatRange(min=0),
    metavar="X",
    help="How much lower than that of the float model the metric may be.",
)
@click.option("--calibration", required=True, metavar="DATA", help="As in lowbit quantize.")
@click.option("--backend", type=BACKEND, metavar="NAME", help="As in lowbit quantize.")
@click.option("--preset", metavar="NAME", help="As in lowbit quantize.")
@import_option
@common_options
def costly(
    *,
    graph: Path,
    metric: str,
    tolerance: float,
    calibration: str,
    backend: str | None,
    preset: str | None,
    as_json: bool,
) -> None:
    """Find the operators that cost the accuracy.

    GRAPH is a saved float graph. Each operator is left float alone, the best of them together, and of these
    no more than are needed to bring the metric back. That takes a calibration and a run of the metric an
    operator. The exit code is 1 if there are any.

    \b
    lowbit costly graphs/float.lowbit --calibration data.npz --metric my_checks:accuracy --tolerance 0.01

    \b
    Keys of --json:
      format, version     "lowbit-costly", 1
      operators           [{nodes, target, module, source, alone}]; alone: the metric with it alone float
      float_metric, quantized_metric, recovered_metric
      quantized, trials   operators that are quantized in all; models that were measured
      left_float          their modules, for --left-float of lowbit quantize; none inside another of them
    """
    measure = find_metric(metric)
    with Output(as_json) as output:
        gm = read_graph(graph, takes=("float",))
        if get_stage(gm) is not Stage.FLOAT:
            raise GraphInputError(
                f"{graph} is at stage {get_stage(gm).name}, and it is the float graph that is quantized anew",
                hint=f"name {graph.with_name('float.lowbit')}, if lowbit quantize --save-graphs wrote it",
            )
        wanted = to_quantize(gm, backend, preset, calibration)
        for note in wanted.notes:
            output.note(note)
        with progress_bar() as progress:
            task = progress.add_task("measuring", total=None)

            def counted(model: GraphModule) -> float:
                progress.advance(task)
                return measure(model)

            with wanted.told:
                found = costly_operators(gm, wanted.quantizer, wanted.batches, counted, tolerance=tolerance)
        modules = _modules(found)
        data = {"format": "lowbit-costly", "version": 1, **attrs.asdict(found), "left_float": modules}
        output.result(data, lambda console: _show(console, found, modules))
    if found.operators:
        raise click.exceptions.Exit(FOUND)


def _modules(found: CostlyOperators) -> list[str]:
    """The modules to leave float: what is inside another of them is left float with it."""
    modules = dict.fromkeys(each.module for each in found.operators if each.module)
    return [name for name in modules if not any(name.startswith(f"{other}.") for other in modules)]


def _show(console: Console, found: CostlyOperators, modules: list[str]) -> None:
    console.print(str(found), soft_wrap=True)
    if found.operators and len(found.operators) == found.quantized:
        text = "allow more with --tolerance, or try another --preset: so, none of it can stay quantized"
        console.print(f"  do: {text}", soft_wrap=True)
    elif modules:
        options = " ".join(f"--left-float {module}" for module in modules)
        console.print(f"  do: lowbit quantize … {options}", soft_wrap=True)
