"""The demo's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from rich.table import Table

from ...passes.instruments import PassRecord

__all__ = ["Row", "passes_table", "results_table"]


@attrs.frozen
class Row:
    """One measured quantity: of the float model, of the int8 model, and how they compare; all as text."""

    quantity: str
    float32: str
    int8: str
    comparison: str = ""


def results_table(title: str, rows: Sequence[Row]) -> Table:
    """What was measured, float beside int8."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("float32", "int8", "int8 against float32"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.quantity, row.float32, row.int8, row.comparison)
    return table


def passes_table(passes: Mapping[str, Sequence[PassRecord]]) -> Table:
    """The passes of each verb, in the order they ran, with their time and what they did to the graph."""
    table = Table(title="Passes", title_justify="left")
    table.add_column("verb")
    table.add_column("pass")
    for heading in ("ms", "nodes before", "after"):
        table.add_column(heading, justify="right")
    for verb, records in passes.items():
        for record in records:
            table.add_row(
                verb if record is records[0] else "",
                record.pass_name,
                f"{record.seconds * 1e3:.1f}",
                str(record.nodes_before),
                str(record.nodes_after) if record.changed else "unchanged",
            )
        table.add_section()
    return table
