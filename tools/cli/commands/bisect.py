"""``lowbit bisect``."""

from __future__ import annotations

from pathlib import Path

import attrs
import click
from torch.fx import GraphModule

from ....errors import GraphInputError, OptionError
from ....ir.stages import Stage, get_stage
from ....passes import Pipeline
from ...bisect import Passes, Step, verb_steps
from ...bisect import bisect as bisect_steps
from ..failures import FOUND
from ..pass_target import find_pass_target, refuse_without_effect
from ..quantizing.saved import to_quantize
from ..saved_graphs import GRAPH_FILE, import_option, read_graph
from ..terminal import BACKEND, Output, common_options, progress_bar
from ..user_checks import find_check

__all__ = ["bisect"]


@click.command()
@click.argument("graph", type=GRAPH_FILE)
@click.option(
    "--check",
    required=True,
    metavar="CHECK",
    help="What says whether a model is good: package.module:name of a function that is handed a GraphModule "
    "and returns True or False, or a command that is handed the file of a saved graph and ends with 0 or 1.",
)
@click.option("--backend", type=BACKEND, metavar="NAME", help="That of the graph if left out.")
@click.option("--preset", metavar="NAME", help="The preset that a float graph is prepared with.")
@click.option("--calibration", metavar="DATA", help="For float graphs; as in lowbit quantize.")
@click.option(
    "--left-float",
    multiple=True,
    metavar="MODULE",
    help="As in lowbit quantize.",
)
@click.option("--pipeline", metavar="PASSES", help="Passes to look through, instead of those of the verbs.")
@import_option
@common_options
def bisect(
    *,
    graph: Path,
    check: str,
    backend: str | None,
    preset: str | None,
    calibration: str | None,
    left_float: tuple[str, ...],
    pipeline: str | None,
    as_json: bool,
) -> None:
    """Find the pass that breaks a model.

    And in the pass, the rule application. GRAPH is a saved graph: float, prepared or converted. What the
    verbs would do with it is done, and the check tells the first pass after which the model is bad. The exit
    code is 1 if there is one.

    \b
    lowbit bisect graphs/prepared.lowbit --check my_checks:is_accurate
    lowbit bisect graphs/float.lowbit --calibration data.npz --check 'python check.py'

    \b
    Keys of --json:
      format, version   "lowbit-bisect", 1
      verdict           "found", "never-fails" or "fails-before"
      pass_name, index  the pass, and its position; null where none was found
      application       {rule, node, …} or null; number, applications: which, of how many
      error             what was raised, or null
      checks            how often the check ran
      confirmed         whether it was the same when tried again
      notes             [text]
    """
    say = find_check(check)
    with Output(as_json) as output:
        gm = read_graph(graph, takes=("float", "prepared", "converted"))
        if pipeline is None:
            _check_a_verb_takes_it(graph, get_stage(gm))
            steps, notes = _steps_of_verbs(gm, backend, preset, calibration, left_float)
        else:
            refuse_without_effect({"calibration": calibration}, "--pipeline calibrates nothing")
            steps, notes = _steps_of_passes(gm, pipeline, backend, preset, left_float)
        for note in notes:
            output.note(note)
        with progress_bar() as progress:
            task = progress.add_task("checking", total=None)

            def counted(model: GraphModule) -> bool:
                progress.advance(task)
                return say(model)

            found = bisect_steps(gm, steps, counted)
        data = {"format": "lowbit-bisect", "version": 1, **attrs.asdict(found)}
        advice = _advice(graph, get_stage(gm), found.error) if found.verdict == "fails-before" else ""
        text = f"{found}\n  do: {advice}" if advice else str(found)
        output.result(data, lambda console: console.print(text, soft_wrap=True))
    if found.verdict != "never-fails":
        raise click.exceptions.Exit(FOUND)


def _check_a_verb_takes_it(graph: Path, stage: Stage) -> None:
    if stage in (Stage.LOWERED, Stage.REFERENCE):
        raise GraphInputError(
            f"{graph} is at stage {stage.name}, where no verb takes it on",
            hint=f"name {_earlier(graph, 'converted', 'prepared', 'float')}, or give --pipeline",
        )


def _earlier(graph: Path, *names: str) -> str:
    files = " or ".join(str(graph.with_name(f"{name}.lowbit")) for name in names)
    return f"an earlier graph, {files} if lowbit quantize --save-graphs wrote it"


def _advice(graph: Path, stage: Stage, error: str | None) -> str:
    """What to do where the check fails at once."""
    if error is not None:
        return "see whether the check is right: it raised where it was to return True or False"
    if stage is Stage.FLOAT:
        return "the float model itself fails: see whether the check is right, or asks for too much"
    names = ("float",) if stage in (Stage.ANNOTATED, Stage.OBSERVED) else ("prepared", "float")
    return (
        f"what broke it ran before, as {graph} is at stage {stage.name}: name {_earlier(graph, *names)}; a "
        "float graph takes --calibration too"
    )


def _steps_of_verbs(
    gm: GraphModule,
    backend: str | None,
    preset: str | None,
    calibration: str | None,
    left_float: tuple[str, ...],
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """What is done, and notes on what was chosen for it."""
    if get_stage(gm) is not Stage.FLOAT:
        refuse_without_effect(
            {"preset": preset, "calibration": calibration, "left-float": left_float},
            "the graph is prepared already",
        )
        # Packed weights cannot be saved for a script.
        return verb_steps(gm, backend=backend, pack_weights=False), ()
    if calibration is None:
        raise OptionError(
            "a float graph is prepared and calibrated on the way, and there are no data",
            hint="give --calibration, or a prepared or converted graph",
        )
    wanted = to_quantize(gm, backend, preset, calibration, left_float)
    steps = verb_steps(gm, quantizer=wanted.quantizer, data=wanted.batches, pack_weights=False)
    return steps, wanted.notes


def _steps_of_passes(
    gm: GraphModule, pipeline: str, backend: str | None, preset: str | None, left_float: tuple[str, ...]
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    passes = Pipeline.parse(pipeline)
    target = find_pass_target(gm, passes, backend, preset, left_float)
    return (Passes(passes, target.quantizer, target.patterns, target.backend),), target.notes
