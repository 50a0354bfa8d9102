"""The parts of the reference that are written from what the code declares, as Markdown."""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import click
from lowbit import Stage, passes
from lowbit.backends import get_backend
from lowbit.backends.pipelines import CONVERT, PREPARE, PREPARE_QAT
from lowbit.ir.reasons import REASONS
from lowbit.passes import Pass, Pipeline, pass_class, pass_names
from lowbit.passes.instruments.diff_to_json import SCHEMA
from lowbit.tools.cli import main

__all__ = ["DIRECTIVES", "commands", "diff_schema_table", "flow", "passes_table", "reasons"]


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    first = list(heading)
    lines = [first, ["---"] * len(first), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def passes_table() -> str:
    """The passes of lowbit itself: name, stages, options, and the first line of the docstring."""
    return table(("pass", "stage", "what it does"), map(_pass_row, _own_passes()))


def _own_passes() -> Iterator[type[Pass]]:
    exported = [getattr(passes, name) for name in passes.__all__]
    yield from (cls for name in pass_names() if (cls := pass_class(name)) in exported)


def _pass_row(cls: type[Pass]) -> tuple[str, ...]:
    stages = ", ".join(stage.name for stage in Stage if stage in cls.requires)
    if cls.ensures is not None:
        stages += f" →\N{NO-BREAK SPACE}{cls.ensures.name}"
    options = [f"`{field.alias}={field.default!r}`" for field in attrs.fields(cls) if field.init]
    summary = _markdown((inspect.getdoc(cls) or "").split("\n\n")[0])
    summary += f" Options: {', '.join(options)}." if options else ""
    return f"{{py:class}}`{cls.name} <lowbit.passes.{cls.__name__}>`", stages, summary


def _markdown(text: str) -> str:
    """A paragraph of a docstring as Markdown."""
    text = re.sub(r":\w+:`(?:~[\w.]*\.)?([\w.]*)`", r"`\1`", text.replace("\n", " "))
    return text.replace("``", "`")


def flow() -> str:
    """The stages, and between them the verbs with the passes they run, as HTML."""
    lower = get_backend("x86_inductor").lower
    assert lower is not None
    observed = [("prepare_pt2e", PREPARE), ("prepare_qat_pt2e", PREPARE_QAT)]
    steps = [
        (Stage.FLOAT, observed),
        (Stage.OBSERVED, [("calibrate", None), ("convert_pt2e", CONVERT)]),
        (Stage.QDQ, [("lower_pt2e", lower)]),
    ]
    lines = ['<ol class="flow">', _stage("nn.Module", "torch.export.export")]
    for stage, verbs in steps:
        lines += [_stage(stage.name), '<li class="verbs"><ul>']
        lines += [f"<li>{_verb(name, pipeline)}</li>" for name, pipeline in verbs]
        lines += ["</ul></li>"]
    return "\n".join([*lines, _stage(Stage.LOWERED.name), "</ol>"])


def _stage(name: str, then: str = "") -> str:
    following = f'<li class="verbs"><ul><li><code>{then}</code></li></ul></li>' if then else ""
    return f'<li class="stage">{name}</li>{following}'


def _verb(name: str, pipeline: Pipeline | None) -> str:
    passes = [] if pipeline is None else [f"<span>{html.escape(name)}</span>" for name in pipeline.names]
    return " ".join([f"<code>{name}</code>", *passes])


def reasons() -> str:
    """The reason codes of the ledger: meaning, and what to do."""
    return "\n\n".join(
        f"`{code}`\n: {reason.meaning[0].upper()}{reason.meaning[1:]}.\n  *Do:* {reason.advice}."
        for code, reason in REASONS.items()
    )


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


def commands() -> str:
    """The help of every command."""
    context = click.Context(main, info_name="lowbit", max_content_width=88, **main.context_settings)
    parts = [_help("lowbit", context)]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        inner = click.Context(command, context, info_name=name, max_content_width=88)
        parts.append(_help(f"lowbit {name}", inner))
    return "\n".join(parts)


def _help(title: str, context: click.Context) -> str:
    return f"## {title}\n\n```text\n{context.get_help()}\n```\n"


DIRECTIVES = {
    "commands": commands,
    "flow": flow,
    "passes": passes_table,
    "reasons": reasons,
    "diff-schema": diff_schema_table,
}
"""The directives that put them into a page."""
