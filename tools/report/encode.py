"""The report as data: strings and rows written once, each moment as what changed since the one before."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Final

import attrs
import torch

from ...ir.meta import ID_KEY
from ...ir.quantized_decomposed import QUANTIZE_PER_TENSOR
from ...ir.stages import Stage
from ...ir.text.short import format_target
from ...quantize_pt2e import coverage, decisions
from .numeric_error import NodeError
from .observers import Observation, Parameters, observations, parameters_of
from .recorder import Moment, Report, Run
from .rows import Row

__all__ = ["LITERAL", "encode", "encode_order"]

_QUANTIZE: Final = format_target("call_function", QUANTIZE_PER_TENSOR)

LITERAL: Final = -1
"""In an encoded order, in place of a position: what follows is a node itself."""


def encode(
    report: Report, *, title: str, with_times: bool, errors: Mapping[int, NodeError] | None
) -> dict[str, Any]:
    """What the page reads, as plain data.

    Texts are numbers into ``strings``, rows numbers into ``rows``, whose columns are the fields of
    :class:`~.rows.Row`.

    Args:
        report: what was recorded.
        title: of the page.
        with_times: whether to tell how long passes took; without, the same flow gives the same bytes.
        errors: the error of each node, by number; None if nobody asked.
    """
    return _Encoder(report, with_times).encode(title, errors)


class _Encoder:
    def __init__(self, report: Report, with_times: bool) -> None:
        self.report = report
        self.with_times = with_times
        self.strings: dict[str, int] = {"": 0}
        self.rows: dict[Row, int] = {}

    def encode(self, title: str, errors: Mapping[int, NodeError] | None) -> dict[str, Any]:
        names: dict[str, int] = {}
        runs: list[dict[str, Any]] = []
        before: Mapping[int, Row] = {}
        for run in self.report.runs:
            runs.append(self._run(run, before, names))
            before = run.moments[-1].rows
        text = self._text
        return {
            "title": title,
            "versions": f"lowbit {metadata.version('lowbit')}, torch {torch.__version__}",
            "runs": runs,
            "observations": list(_observations(self.report.runs)),
            "errors": None if errors is None else [_error(key, error) for key, error in errors.items()],
            "parameters": [[text(op), *map(text, names)] for op, names in self.report.parameters.items()],
            "kinds": [[text(path), text(kind)] for path, kind in self.report.kinds.items()],
            "rows": [self._row(row) for row in self.rows],
            "strings": list(self.strings),
        }

    def _text(self, value: str) -> int:
        return self.strings.setdefault(value, len(self.strings))

    def _run(self, run: Run, before: Mapping[int, Row], names: dict[str, int]) -> dict[str, Any]:
        moments: list[dict[str, Any]] = []
        named: dict[str, int] = {}
        for moment in run.moments:
            moments.append(self._moment(moment, before))
            before = moment.rows
            for key, row in moment.rows.items():
                named.setdefault(f"{row.body}.{row.name}" if row.body else row.name, key)
        names.update(named)
        found = coverage(run.gm)
        return {
            "verb": run.verb,
            "moments": moments,
            "decisions": list(self._decisions(run, names)),
            "coverage": {"quantized": found.quantized, "total": found.total, "line": str(found)},
        }

    def _moment(self, moment: Moment, before: Mapping[int, Row]) -> dict[str, Any]:
        changed = [(key, row) for key, row in moment.rows.items() if before.get(key) != row]
        return {
            "after": self._text(moment.after),
            "stage": moment.stage.name,
            "seconds": round(moment.seconds, 6) if self.with_times else None,
            "order": encode_order(list(before), list(moment.rows)),
            "rows": [number for key, row in changed for number in (key, self._row_number(row))],
        }

    def _row_number(self, row: Row) -> int:
        return self.rows.setdefault(row, len(self.rows))

    def _row(self, row: Row) -> list[Any]:
        return [self._field(value) for value in row]

    def _field(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return [self._field(item) for item in value]
        return self._text(value) if isinstance(value, str) else value

    def _decisions(self, run: Run, names: Mapping[str, int]) -> Iterator[list[int]]:
        for made in decisions(run.gm):
            key = names.get(made.node)
            if key is not None:
                words = (made.status, made.reason, made.detail, made.kernel)
                yield [key, *map(self._text, words), int(made.intended)]


def encode_order(before: Sequence[int], now: Sequence[int]) -> list[int]:
    """``now`` as pieces of ``before``: position and length of each, or :data:`LITERAL` and a new item."""
    position = {key: i for i, key in enumerate(before)}
    pieces: list[int] = []
    for key in now:
        at = position.get(key)
        if at is None:
            pieces += (LITERAL, key)
        elif pieces and pieces[-2] != LITERAL and pieces[-2] + pieces[-1] == at:
            pieces[-1] += 1
        else:
            pieces += (at, 1)
    return pieces


def _error(key: int, error: NodeError) -> list[Any]:
    sqnr = round(error.sqnr, 2) if math.isfinite(error.sqnr) else None
    return [key, sqnr, float(f"{error.largest:.4g}"), int(error.is_own)]


def _observations(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        yield from _described(run.observed, run.moments[0].rows, _literals(run))
    if runs and runs[-1].moments[-1].stage is Stage.OBSERVED:
        # Nobody has converted the model yet; what its observers saw so far is of interest already.
        last = runs[-1]
        seen = observations(last.gm, lambda node: last.keys[node.meta[ID_KEY]])
        yield from _described(seen, last.moments[-1].rows, {})


def _described(
    observed: Sequence[Observation], rows: Mapping[int, Row], literals: Mapping[int, Parameters]
) -> Iterator[dict[str, Any]]:
    """Observations with the sharing groups of their points, as ``resolve-sharing`` wrote them down, and with
    the parameters that come of them."""
    calls = {call for seen in observed for call in seen.calls}
    readers: dict[int, list[Row]] = {call: [] for call in sorted(calls)}
    for row in rows.values():
        for source in dict.fromkeys(row.inputs) if row.groups else ():
            if source in calls:
                readers[source].append(row)
    times = Counter(tensor for seen in observed for tensor in seen.tensors)
    for seen in observed:
        reading = [row for call in seen.calls for row in readers[call]]
        # What conversion found need not be searched for again, where it is clear whose it is.
        known = [literals[key] for key in seen.tensors if times[key] == 1 and key in literals]
        parameters = known[0] if known else parameters_of(seen)
        yield {
            **attrs.asdict(seen, filter=attrs.filters.exclude("observer")),
            "parameters": None if parameters is None else attrs.asdict(parameters),
            "group": _group(rows[seen.tensors[0]], reading),
        }


def _literals(run: Run) -> dict[int, Parameters]:
    """The parameters that a run quantizes tensors with, by tensor; without those of several."""
    found: dict[int, set[tuple[str, str]]] = {}
    for moment in run.moments:
        for row in moment.rows.values():
            if row.target == _QUANTIZE:
                found.setdefault(row.inputs[0], set()).add((row.arguments[1], row.arguments[2]))
    literals: dict[int, Parameters] = {}
    for key, pairs in found.items():
        if len(pairs) == 1:
            ((scale, zero_point),) = pairs
            number, zero = float(f"{float(scale):.7g}"), int(zero_point)
            literals[key] = Parameters((number, number), (zero, zero), 1)
    return literals


def _group(tensor: Row, readers: Sequence[Row]) -> int | None:
    """The group of ``tensor``, as its own row or those of its readers say."""
    own = re.search(r"\bout g(\d+)", tensor.groups)
    edges = (re.search(rf"%{re.escape(tensor.name)} g(\d+)", row.groups) for row in readers)
    found = own or next((edge for edge in edges if edge is not None), None)
    return None if found is None else int(found[1])
