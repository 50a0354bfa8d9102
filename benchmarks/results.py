"""How the benchmarks show what they measured: tables of Markdown, printed, and kept in RESULTS.md."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import click
import torch

RESULTS = Path(__file__).with_name("RESULTS.md")

write_option = click.option(
    "--write", is_flag=True, help=f"Put the results into benchmarks/{RESULTS.name} too."
)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned: the first to the left, the others to the right."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    rule = [f"{'-' * (widths[0])}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    aligned = [
        [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])


def environment() -> str:
    """The versions and the instructions for int8 that the figures belong to."""
    versions = [f"torch {torch.__version__}"]
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions.append(f"torchao {metadata.version('torchao')}")
    can = torch.cpu.get_capabilities()
    instructions = [name for name in ("avx2", "avx_vnni", "avx512_vnni", "amx_int8") if can.get(name)]
    return f"{', '.join(versions)}; {', '.join(instructions) or can['architecture']}"


def report(title: str, text: str, *, write: bool) -> None:
    """Print a section, and with ``write`` put it into RESULTS.md in place of the one of the same title."""
    section = f"## {title}\n\n{text}\n\n{environment()}\n"
    click.echo(section)
    if not write:
        return
    old = (
        RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n\nWritten by `make bench`.\n"
    )
    head, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    kept = {each.splitlines()[0]: each.strip() + "\n" for each in sections}
    kept[f"## {title}"] = section
    RESULTS.write_text("\n".join([head.strip() + "\n", *kept.values()]), encoding="utf-8")
