"""``lowbit explain``."""

from __future__ import annotations

from pathlib import Path

import attrs
import click
from rich.console import Console

from ....errors import GraphInputError, OptionError
from ....ir.stages import Stage, get_stage
from ....quantize_pt2e import decisions
from ...explain import explain as explain_model
from ...explain import why_shared
from ..saved_graphs import GRAPH_FILE, import_option, read_graph
from ..summary import coverage_as_data
from ..terminal import Output, common_options
from ..wording import in_command

__all__ = ["explain"]


@click.command()
@click.argument("graph", type=GRAPH_FILE)
@click.argument("about", required=False)
@click.option(
    "--shared",
    nargs=2,
    metavar="A B",
    help="Say why two tensors of a prepared graph share one scale, or why they do not: names of nodes, or "
    "edges such as 'relu -> conv2d'.",
)
@import_option
@common_options
def explain(*, graph: Path, about: str | None, shared: tuple[str, str] | None, as_json: bool) -> None:
    """Say what was quantized and what was not, and why.

    GRAPH is what save_graph or lowbit quantize --save-graphs wrote of a prepared, converted or lowered model.
    ABOUT is a node, a module (layer1.0.conv1) or a source line (model.py:42); without it, the whole model.

    \b
    lowbit explain graphs/lowered.lowbit
    lowbit explain graphs/lowered.lowbit layer1.0.conv1
    lowbit explain graphs/prepared.lowbit --shared relu cat

    \b
    Keys of --json:
      format, version   "lowbit-explain", 1
      about             text or null
      coverage          {quantized, float, share, left_float: [[reason, count]], not_lowered, backend}
      operators         [{node, target, status, reason, meaning, advice, …}]
      gone              [{node, why, into, by, module, source}]: what ABOUT names and a pass took out; why:
                        "folded", "identity" or "unread"; into: what stands for it now
      sharing           {a, b, shares, chain, why_not, group}, with --shared alone
    """
    if about is not None and shared is not None:
        raise OptionError(
            "both ABOUT and --shared were given", hint="ask about one part, or about two tensors"
        )
    with Output(as_json) as output:
        gm = read_graph(graph, takes=("prepared", "converted", "lowered"))
        stage = get_stage(gm)
        if shared is not None and stage not in (Stage.ANNOTATED, Stage.OBSERVED):
            raise GraphInputError(
                f"{graph} is at stage {stage.name}, and what shares a scale is known of prepared graphs",
                hint=f"name {graph.with_name('prepared.lowbit')}, if lowbit quantize --save-graphs wrote it",
            )
        if shared is None and not decisions(gm):
            raise _undecided(graph, stage)
        head = {"format": "lowbit-explain", "version": 1, "about": about}
        if shared is not None:
            sharing = why_shared(gm, *shared)
            output.result(
                {**head, "sharing": attrs.asdict(sharing)}, lambda console: _print(console, sharing)
            )
            return
        explanation = explain_model(gm, about)
        operators = [attrs.evolve(each, advice=in_command(each.advice)) for each in explanation.operators]
        data = attrs.asdict(attrs.evolve(explanation, operators=tuple(operators)))
        data["coverage"] = coverage_as_data(explanation.coverage)
        output.result({**head, **data, "about": about}, lambda console: _print(console, explanation))


def _undecided(graph: Path, stage: Stage) -> GraphInputError:
    if stage is Stage.FLOAT:
        others = ", ".join(str(graph.with_name(f"{name}.lowbit")) for name in ("prepared", "lowered"))
        return GraphInputError(
            f"{graph} is a float graph, about which nothing was decided yet",
            hint=f"name one that it became: {others}, if lowbit quantize --save-graphs wrote them",
        )
    return GraphInputError(
        f"{graph} is at stage {stage.name}, and does not hold what was decided",
        hint="quantize with lowbit quantize --save-graphs, or save what a verb returned with save_graph: "
        "programs that went through a .pt2 file lost it",
    )


def _print(console: Console, text: object) -> None:
    console.print(in_command(str(text)), soft_wrap=True)
