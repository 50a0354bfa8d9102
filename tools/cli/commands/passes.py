"""``lowbit passes``."""

from __future__ import annotations

import inspect
import re
from typing import Any

import attrs
import click
from rich.console import Console

from ....ir.stages import Stage
from ....passes import Pass, pass_class, pass_names
from ..saved_graphs import import_option
from ..terminal import Output, common_options, print_table

__all__ = ["passes"]


@click.command()
@import_option
@common_options
def passes(*, as_json: bool) -> None:
    """List the passes.

    At which stages each runs, the stage it leaves, its options with their defaults, and what it does.

    \b
    Keys of --json:
      format, version   "lowbit-passes", 1
      passes            [{name, requires, ensures, options: [{name, default}], does}]
    """
    with Output(as_json) as output:
        found = [_describe(pass_class(name)) for name in pass_names()]

        def show(console: Console) -> None:
            rows = [
                (
                    each["name"],
                    " ".join(each["requires"]),
                    each["ensures"] or "",
                    ", ".join(f"{option['name']}={option['default']}" for option in each["options"]),
                    each["does"],
                )
                for each in found
            ]
            print_table(console, ("pass", "runs at", "leaves", "options", "does"), rows)

        output.result({"format": "lowbit-passes", "version": 1, "passes": found}, show)


def _describe(cls: type[Pass]) -> dict[str, Any]:
    kind: Any = cls
    fields = [field for field in attrs.fields(kind) if field.init] if attrs.has(kind) else []
    text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    # References and literals of reStructuredText, as they are read.
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
    return {
        "name": cls.name,
        "requires": [stage.name for stage in Stage if stage in cls.requires],
        "ensures": None if cls.ensures is None else cls.ensures.name,
        "options": [
            {"name": field.alias, "default": None if field.default is attrs.NOTHING else repr(field.default)}
            for field in fields
        ],
        "does": re.split(r"(?<=\.) ", text)[0],
    }
