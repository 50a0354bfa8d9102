"""Diffs for the terminal, in colour, and in summary: how much changed in which module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...ir.graph_diff import GraphDiff, NodeChange
from ...ir.location import module_path

__all__ = ["DIFF_LEGEND", "STAT_LEGEND", "render_diff", "render_stat"]

_ATTRIBUTES: Final = "attributes: weights, observers, nested graphs"

DIFF_LEGEND: Final = f"+ added   - removed   - and + changed   > moved   @ {_ATTRIBUTES}"
"""What the signs of :func:`render_diff` mean."""

STAT_LEGEND: Final = f"""\
+ added   - removed   ~ changed   > moved
changed: retargeted (calls another operator), rewired (reads other nodes), edited (other
         numbers among its arguments), annotated (other specs, sharing group or kernel)
{_ATTRIBUTES}"""
"""What the signs and words of :func:`render_stat` mean, of two graphs: names are not compared there."""

_STYLES: Final = {"+": "green", "-": "red", ">": "cyan", "@": "yellow"}
# As many signs as fit beside the names; with more changes a sign stands for several of them.
_MOST_SIGNS: Final = 40


def render_diff(diff: GraphDiff) -> Group:
    """The diff line by line: added green, removed red, moved cyan, attributes yellow."""
    lines: list[Text] = []
    for line in diff.lines:
        text = Text(line, overflow="fold")
        text.stylize(_STYLES.get(line.lstrip()[:1], ""))
        lines.append(text)
    return Group(*lines)


def render_stat(diff: GraphDiff) -> Group:
    """How many nodes changed, by the module that made them, with a bar; in what respect; and in all."""
    table = Table.grid(padding=(0, 1))
    modules = dict(_by_module(diff))
    most = max((len(signs) for signs in modules.values()), default=0)
    for module, signs in modules.items():
        bar = Text()
        for sign in "+-~>":
            count = signs.count(sign)
            shown = count if most <= _MOST_SIGNS else -(-count * _MOST_SIGNS // most)
            bar.append(sign * shown, _STYLES.get(sign, "yellow"))
        table.add_row(f" {module or '(top)'}", "|", Text(str(len(signs)), justify="right"), bar)
    counts = ", ".join(f"{count} {aspect}" for aspect, count in diff.counts.items())
    attributes = f"{len(diff.attributes)} attributes" if diff.attributes else ""
    summary = Text(f" {', '.join(part for part in (counts, attributes) if part) or 'nothing changed'}")
    if not modules:
        return Group(summary)
    return Group(
        table, summary, Text(f" {_counted(len(diff.nodes), 'node')} in {_counted(len(modules), 'module')}")
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _by_module(diff: GraphDiff) -> Iterator[tuple[str, str]]:
    """Each module with a sign a change, in the order of the graph."""
    modules: dict[str, list[str]] = {}
    for change in diff.nodes:
        modules.setdefault(_module(change), []).append(_sign(change))
    for name, signs in modules.items():
        yield name, "".join(signs)


def _module(change: NodeChange) -> str:
    # A node that a pass made may say less of where it comes from than what it was made from.
    return module_path(change.node.meta)


def _sign(change: NodeChange) -> str:
    return {"added": "+", "removed": "-", "moved": ">"}.get(change.aspects[0], "~")
