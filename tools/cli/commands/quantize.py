"""``lowbit quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, get_args

import click
from rich.console import Console

from ....errors import LowbitError
from ..quantizing import OPTION_NAMES, make_options, quantize, read_config
from ..quantizing.options import Verification, option_of
from ..summary import decisions_as_data, show_summary, summary_as_data
from ..terminal import BACKEND, Output, common_options, progress_bar

__all__ = ["quantize_command"]

_FILE: Final = click.Path(path_type=Path)


@click.command("quantize")
@click.argument("model", required=False)
@click.option(
    "--backend", type=BACKEND, metavar="NAME", help="Who runs it; Inductor on this CPU if left out."
)
@click.option("--preset", metavar="NAME", help="One of the backend's presets: lowbit backends lists them.")
@click.option(
    "--calibration",
    metavar="DATA",
    help="A .npz file (an array for each argument of forward, samples along the first axis), a .pt file (a "
    "tensor or a dict of them likewise, or a list of batches), or package.module:name of batches or of a "
    "function that returns them.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N", help="Samples in a batch, for files of samples."
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Take N batches; all if left out.")
@click.option(
    "--left-float",
    multiple=True,
    metavar="MODULE",
    help="Leave a module float, by its dotted name (layer1.0.conv1). May be repeated.",
)
@click.option(
    "--verify",
    type=click.Choice(get_args(Verification)),
    help="numeric: run the model in float64 after each pass, to see that it still computes the same.",
)
@click.option(
    "--strict",
    is_flag=True,
    default=None,
    help="Fail where there would be a warning, and where an operator that was to have a kernel gets none.",
)
@click.option("--output", "-o", type=_FILE, metavar="FILE.pt2", help="Write the converted program.")
@click.option(
    "--package",
    type=_FILE,
    metavar="FILE.pt2",
    help="Compile the lowered program with AOTInductor, and write what runs without lowbit.",
)
@click.option("--report", type=_FILE, metavar="FILE.html", help="Write the report, one page.")
@click.option("--diffs", type=_FILE, metavar="FOLDER", help="Write what each pass changed, a file a pass.")
@click.option(
    "--reproducers",
    type=_FILE,
    metavar="FOLDER",
    help="Where a pass fails, write what it takes to run it again, for lowbit replay and reduce. The weights "
    "are in it.",
)
@click.option(
    "--save-graphs",
    type=_FILE,
    metavar="FOLDER",
    help="Write the graph at each stage, for lowbit explain, diff, opt and bisect: float.lowbit, "
    "prepared.lowbit, converted.lowbit, lowered.lowbit.",
)
@click.option(
    "--config",
    type=_FILE,
    metavar="FILE.toml",
    help="Take options from a file, under the names they have here; those given here win. Of a "
    "pyproject.toml it is the table [tool.lowbit.quantize].",
)
@common_options
def quantize_command(*, config: Path | None, as_json: bool, **given: Any) -> None:
    """Quantize a model, and write the result.

    MODEL is exported, calibrated, converted and lowered. It is package.module:name of a function of yours
    that returns a torch.nn.Module, a pair (module, example inputs) or an ExportedProgram; the current folder
    is importable. Or it is a .pt2 file that torch.export.save wrote of the float program.

    \b
    lowbit quantize my_model:build --calibration data.npz --output int8.pt2
    lowbit quantize float.pt2 --calibration my_data:batches --package run.pt2

    Where nothing of it is quantized there is a warning, and with --strict an error (exit code 3).

    What --output writes, torch.export.load reads: then lower_pt2e and torch.compile run it in int8, or, for
    XNNPACK, ExecuTorch takes it. What --package writes, torch._inductor.aoti_load_package runs.

    \b
    Keys of --json:
      format, version   "lowbit-quantize", 1
      model, backend, preset
      coverage          {quantized, float, share, left_float: [[reason, count]], not_lowered, backend}
      operators         [{node, target, status, reason, detail, module, source, kernel, nearest}]
      weight_bytes      {float, quantized}
      files             {option: path}
      notes, warnings   [text]
    """
    in_file: dict[str, Any] = {} if config is None else read_config(config)
    values = dict(in_file)
    for name in OPTION_NAMES:
        value = given[name.replace("-", "_")]
        if value is not None and value != ():
            values[name] = value
            in_file.pop(name, None)
    options = make_options(values)
    with Output(as_json) as output:
        try:
            with progress_bar() as progress:
                result = quantize(options, progress=progress)
        except LowbitError as error:
            option = option_of(error)
            if option in in_file:
                error.where = (f"{option} in {config}", *error.where)
            raise
        for note in result.notes:
            output.note(note)
        data = {
            "format": "lowbit-quantize",
            "version": 1,
            "model": options.model,
            **summary_as_data(result),
            "operators": decisions_as_data(result.decisions),
        }

        def show(console: Console) -> None:
            show_summary(console, options.model, result)

        output.result(data, show)
