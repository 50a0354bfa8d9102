"""The page: data, style and behaviour in one file that needs no server and no network."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...errors import GraphInputError
from ...ir.stages import Stage
from .encode import encode
from .numeric_error import NodeError, node_errors
from .recorder import Report

__all__ = ["write_report"]

_PARTS: Final = Path(__file__).parent / "page"
_SCRIPTS: Final = (
    "data.js",
    "history.js",
    "outline.js",
    "overlays.js",
    "drawing.js",
    "strip.js",
    "grid.js",
    "panel.js",
    "node.js",
    "search.js",
    "keyboard.js",
    "main.js",
)
"""In the order in which they need each other."""


def write_report(
    path: str | os.PathLike[str],
    report: Report,
    *,
    title: str = "Quantization report",
    inputs: Sequence[Any] | None = None,
    with_times: bool = True,
) -> Path:
    """Write what ``report`` recorded as one HTML file.

    It shows the passes in a strip, the graph after each, a line a node, two moments of it side by side, and
    of each node where it comes from, what was decided about it, what its observer saw. Press ``?`` in it.

    Args:
        path: the file; folders are made.
        report: an instrument that was handed to the verbs.
        title: of the page, the name of the model for example.
        inputs: the arguments of the model. With them the page also shows how far the converted model is from
            the float one at each node: both run once in float64.
        with_times: whether to tell how long passes took. Without, the same flow gives the same bytes.

    Returns:
        ``path``.

    Raises:
        GraphInputError: no pass was recorded; or ``inputs`` were given, and not both ``prepare_pt2e`` and
            ``convert_pt2e`` were.
    """
    if not report.runs:
        raise GraphInputError(
            "the report has seen no pass",
            hint="hand it to the verbs: prepare_pt2e(exported, quantizer, instruments=[report])",
        )
    errors = None if inputs is None else _errors(report, inputs)
    data = encode(report, title=title, with_times=with_times, errors=errors)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(title, data), encoding="utf-8", newline="\n")
    return path


def _errors(report: Report, inputs: Sequence[Any]) -> dict[int, NodeError]:
    pairs = list(zip(report.runs, report.runs[1:], strict=False))
    for prepared, converted in reversed(pairs):
        stages = (prepared.moments[-1].stage, converted.moments[0].stage, converted.moments[-1].stage)
        if stages == (Stage.OBSERVED, Stage.OBSERVED, Stage.QDQ):
            # The two number the same nodes alike, and a node of one is known to the other by its id.
            return node_errors(prepared.gm, converted.gm, inputs, converted.key_of)
    raise GraphInputError(
        "the report was asked for errors, but did not see a model being prepared and then converted",
        hint="hand it to both prepare_pt2e and convert_pt2e, or leave inputs=None",
    )


def _page(title: str, data: dict[str, Any]) -> str:
    # Imported here, since only who writes a report needs it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_PARTS, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        title=title, versions=data["versions"], data=_as_script(data), scripts=_SCRIPTS
    )


def _as_script(data: dict[str, Any]) -> str:
    """``data`` as JSON that may stand in a script element: no text in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
