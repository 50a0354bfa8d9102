"""The command line: ``lowbit``."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from rich.console import Console

from ..backends.registry import backend_names, get_backend
from ..errors import LowbitError
from .demo.run import SUBJECTS, run_demo

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lowbit", prog_name="lowbit")
def main() -> None:
    """Quantize PyTorch models with compiler passes on FX graphs."""


@main.command()
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
def demo(*, model: str, seed: int, threads: int, diffs: Path, report: Path) -> None:
    """Quantize a model for X86, and show what it cost and what it gained.

    Exports the model, inserts observers, calibrates, converts, lowers to int8 kernels and compiles; then
    prints accuracy, size and latency of float32 and int8, and what each pass did.
    """
    torch.set_num_threads(threads)
    try:
        run_demo(model, seed=seed, diffs=diffs, report=report, console=Console())
    except LowbitError as error:
        raise click.ClickException(str(error)) from error


@main.command()
def backends() -> None:
    """List the backends, those that installed packages offer among them."""
    for name in backend_names():
        click.echo(name)


@main.command()
@click.argument("names", metavar="[BACKEND]...", nargs=-1)
@click.option("--markdown", is_flag=True, help="Print Markdown.")
def capabilities(*, names: tuple[str, ...], markdown: bool) -> None:
    """Print what backends quantize, and what that runs as: all of them, or those named.

    A composition is named by its parts: x86_inductor+embedding.
    """
    try:
        tables = {name: get_backend(name).capabilities() for name in names or backend_names()}
    except LowbitError as error:
        raise click.ClickException(str(error)) from error
    if markdown:
        click.echo("\n\n".join(f"## {name}\n\n{table.markdown()}" for name, table in tables.items()))
    else:
        click.echo("\n\n".join(str(table) for table in tables.values()))
