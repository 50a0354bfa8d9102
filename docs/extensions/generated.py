"""The parts of the reference that are written from what the code declares, as Markdown."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from lowbit import Stage, passes
from lowbit.ir.reasons import REASONS
from lowbit.passes import Pass, pass_class, pass_names
from lowbit.passes.instruments.diff_to_json import SCHEMA

__all__ = ["DIRECTIVES", "diff_schema_table", "passes_table", "reasons_table"]


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    first = list(heading)
    lines = [first, ["---"] * len(first), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def passes_table() -> str:
    """The registered passes of lowbit itself: name, stages, options, and the first line of the docstring."""
    return table(("pass", "runs at", "leaves", "options", "what it does"), map(_pass_row, _own_passes()))


def _own_passes() -> Iterator[type[Pass]]:
    exported = [getattr(passes, name) for name in passes.__all__]
    yield from (cls for name in pass_names() if (cls := pass_class(name)) in exported)


def _pass_row(cls: type[Pass]) -> tuple[str, ...]:
    fields = [field for field in attrs.fields(cls) if field.init]
    options = ", ".join(f"`{field.alias}={field.default!r}`" for field in fields)
    requires = ", ".join(stage.name for stage in Stage if stage in cls.requires)
    ensures = "the same" if cls.ensures is None else cls.ensures.name
    summary = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")
    return f"{{py:class}}`{cls.name} <lowbit.passes.{cls.__name__}>`", requires, ensures, options, summary


def reasons_table() -> str:
    """The reason codes of the ledger: meaning, and what to do."""
    rows = ((f"`{code}`", reason.meaning, reason.advice) for code, reason in REASONS.items())
    return table(("code", "what it means", "what to do"), rows)


def diff_schema_table() -> str:
    """The schema of a line of JSON that ``DiffToJson`` writes: a table an object."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    parts = {"a line": schema, **schema["$defs"]}
    return "\n".join(
        f"## {name}\n\n{table(('key', 'value', 'meaning'), _keys(part))}"
        for name, part in parts.items()
        if "properties" in part
    )


def _keys(part: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key, value in part["properties"].items():
        yield f"`{key}`", _kind(value), value.get("description", "")


def _kind(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return value["$ref"].rpartition("/")[2]
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(each)}`" for each in value["enum"])
    if "anyOf" in value:
        return " or ".join(map(_kind, value["anyOf"]))
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    text = " or ".join(kinds)
    return f"{text} of {_kind(value['items'])}" if "items" in value else text


DIRECTIVES = {"passes": passes_table, "reasons": reasons_table, "diff-schema": diff_schema_table}
"""The directives that put them into a page."""
