"""``lowbit capabilities``."""

from __future__ import annotations

import click
from rich.console import Console

from ....backends.registry import backend_names, get_backend
from ..terminal import BACKEND, Output, common_options

__all__ = ["capabilities"]


@click.command()
@click.argument("names", type=BACKEND, metavar="[BACKEND]...", nargs=-1)
@click.option("--markdown", is_flag=True, help="Print Markdown.")
@common_options
def capabilities(*, names: tuple[str, ...], markdown: bool, as_json: bool) -> None:
    """Print what backends quantize, and as what.

    All of them, or those named. A composition is named by its parts: x86_inductor+embedding.

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
            else:
                text = "\n\n".join(str(table) for table in tables.values())
            console.print(text, soft_wrap=True)

        output.result({"format": "lowbit-capabilities", "version": 1, "cells": cells}, show)
