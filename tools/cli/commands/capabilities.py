"""``lowbit capabilities``."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from ....backends.capabilities import Capabilities
from ....backends.registry import backend_names, get_backend
from ..terminal import BACKEND, Output, common_options, print_table

__all__ = ["capabilities"]


@click.command()
@click.argument("names", type=BACKEND, metavar="[BACKEND]...", nargs=-1)
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@common_options
def capabilities(*, names: tuple[str, ...], markdown: bool, as_json: bool) -> None:
    """Print what backends quantize, and as what.

    All of them, or those named. A composition is named by its parts: x86_inductor+embedding. On a terminal,
    what stays float is left out; elsewhere it is a line a pattern, with a column a preset.

    \b
    Keys of --json:
      format, version   "lowbit-capabilities", 1
      cells             [{backend, pattern, preset, mode, training, supported, dtypes, lowering}]
    """
    with Output(as_json) as output:
        tables = {name: get_backend(name).capabilities() for name in names or backend_names()}
        cells = [
            {
                "backend": cell.backend,
                "pattern": cell.pattern,
                "preset": cell.preset,
                "mode": cell.mode.value,
                "training": cell.is_qat,
                "supported": cell.supported,
                "dtypes": cell.dtypes,
                "lowering": cell.lowering,
            }
            for table in tables.values()
            for cell in table
        ]

        def show(console: Console) -> None:
            if markdown:
                text = "\n\n".join(f"## {name}\n\n{table.markdown()}" for name, table in tables.items())
            elif console.is_terminal:
                for name, table in tables.items():
                    _show_folded(console, name, table)
                return
            else:
                text = "\n\n".join(str(table) for table in tables.values())
            console.print(text, soft_wrap=True)

        output.result({"format": "lowbit-capabilities", "version": 1, "cells": cells}, show)


def _show_folded(console: Console, name: str, table: Capabilities) -> None:
    """A table as a terminal has room for it: what the same presets quantize alike, by what it runs as."""
    presets: dict[tuple[str, str, str], list[str]] = {}
    for cell in table:
        if cell.supported:
            presets.setdefault((cell.dtypes, cell.lowering, cell.pattern), []).append(cell.preset)
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (dtypes, lowering, pattern), names in presets.items():
        groups.setdefault((", ".join(names), dtypes), {}).setdefault(lowering, []).append(pattern)
    for (names, dtypes), rows in groups.items():
        console.print(Text(f"{name}, {names}: {dtypes}", style="bold"))
        print_table(console, ("runs as", "patterns"), [(kernel, ", ".join(p)) for kernel, p in rows.items()])
        console.print()
