"""``lowbit demo``."""

from __future__ import annotations

from pathlib import Path

import attrs
import click
import torch
from rich.console import Console

from ...demo.run import SUBJECTS, run_demo
from ..terminal import Output, common_options, messages, out

__all__ = ["demo"]


@click.command()
@click.option(
    "--model",
    type=click.Choice(list(SUBJECTS)),
    default="digits",
    show_default=True,
    help="digits: a small ResNet, trained first on scikit-learn's digits. resnet18: ResNet-18 for images of "
    "224 by 224, with seeded random weights.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the weights and of the data.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads that torch computes with.",
)
@click.option(
    "--diffs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/demo-diffs"),
    show_default=True,
    help="Folder for the diff that each pass made.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out/report.html"),
    show_default=True,
    help="File for the report: passes, graphs, decisions and observers on one page.",
)
@common_options
def demo(*, model: str, seed: int, threads: int, diffs: Path, report: Path, as_json: bool) -> None:
    """Quantize an example, and show what that gains.

    Exports the model for X86, inserts observers, calibrates, converts, lowers to int8 kernels and compiles;
    then prints accuracy, size and latency of float32 and int8, and what each pass did.

    \b
    Keys of --json:
      format, version     "lowbit-demo", 1
      model, seed, threads
      rows                [{quantity, float32, int8, comparison}], as text
      diffs, report       paths
    """
    torch.set_num_threads(threads)
    with Output(as_json) as output:
        rows = run_demo(
            model, seed=seed, diffs=diffs, report=report, console=messages() if as_json else out()
        )
        data = {
            "format": "lowbit-demo",
            "version": 1,
            "model": model,
            "seed": seed,
            "threads": threads,
            "rows": [attrs.asdict(row) for row in rows],
            "diffs": str(diffs),
            "report": str(report),
        }

        def show(_: Console) -> None:
            """All was shown as it came."""

        output.result(data, show)
