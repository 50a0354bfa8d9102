"""What ``lowbit quantize`` tells of its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from rich.console import Console

from ...ir.coverage import Coverage
from ...ir.ledger import Decision
from ..explain import OperatorExplanation, explain
from ..explain.explanation import by_advice
from .quantizing import QuantizeResult
from .wording import in_command

__all__ = ["coverage_as_data", "decisions_as_data", "show_coverage", "show_summary", "summary_as_data"]

_NAMED: Final = 3
"""Operators that are named of each reason; of more, the rest is counted."""

_TORCH: Final = Path(torch.__file__).parent

_HOW_TO_USE: Final = {
    "output": "the converted program: import lowbit, then torch.export.load(path).module()",
    "package": "the compiled program, for torch._inductor.aoti_load_package(path)",
    "save-graphs": "the graph at each stage, for lowbit explain, diff, opt and bisect",
    "report": "the report, for a browser",
    "diffs": "what each pass changed, for an editor",
}


def summary_as_data(result: QuantizeResult) -> dict[str, Any]:
    """The summary as what JSON can hold."""
    before, after = result.weight_bytes
    return {
        "backend": result.backend,
        "preset": result.preset,
        "coverage": coverage_as_data(result.coverage),
        "weight_bytes": {"float": before, "quantized": after},
        "files": {option: str(path) for option, path in result.files.items()},
    }


def coverage_as_data(found: Coverage) -> dict[str, Any]:
    """Coverage as what JSON can hold."""
    return {
        "quantized": found.quantized,
        "float": found.total - found.quantized,
        "share": found.share,
        "left_float": [list(pair) for pair in found.left_float],
        "not_lowered": found.not_lowered,
        "backend": found.backend,
    }


def decisions_as_data(decisions: Iterable[Decision]) -> list[dict[str, Any]]:
    """Decisions as what JSON can hold."""
    return [
        {
            "node": decision.node,
            "target": decision.target,
            "status": decision.status,
            "reason": decision.reason,
            "detail": decision.detail,
            "module": decision.module,
            "source": decision.source,
            "kernel": decision.kernel or None,
            "nearest": [attrs.asdict(miss) for miss in (decision.nearest,) if miss is not None],
        }
        for decision in decisions
    ]


def show_summary(console: Console, model: str, result: QuantizeResult) -> None:
    """Coverage, what was left float and why, sizes, files."""
    console.print(f"{model}, for {result.backend} with preset {result.preset}", soft_wrap=True)
    show_coverage(console, result.coverage)
    _show_left_float(console, explain(result.final).operators if result.decisions else ())
    before, after = result.weight_bytes
    ratio = f", {before / after:.2f} times smaller" if 0 < after < before else ""
    console.print(f"weights: {_size(before)} → {_size(after)}{ratio}", soft_wrap=True)
    for option, path in result.files.items():
        size = f", {_size(path.stat().st_size)}" if path.is_file() else "/"
        console.print(f"wrote {path}{size}: {_how_to_use(option, result)}", soft_wrap=True)
    if not result.files:
        console.print("wrote nothing: --output FILE.pt2 writes the quantized program", soft_wrap=True)


def show_coverage(console: Console, found: Coverage) -> None:
    """One line."""
    console.print(f"coverage: {found}", soft_wrap=True)


def _how_to_use(option: str, result: QuantizeResult) -> str:
    is_lowered_here = option == "output" and result.lowered is not None
    return _HOW_TO_USE[option] + f' and lower_pt2e(…, "{result.backend}")' * is_lowered_here


def _show_left_float(console: Console, operators: Iterable[OperatorExplanation]) -> None:
    """Operators that stay float, by reason: how many, a few of them, and what to do."""
    left_float = [each for each in operators if each.status != "quantized"]
    decides = Counter(cause.node for each in left_float for cause in each.because)
    by_reason: dict[str, list[OperatorExplanation]] = {}
    # Those that keep others float come first, as not all are named.
    for each in sorted(left_float, key=lambda each: -decides[each.node]):
        by_reason.setdefault(each.reason, []).append(each)
    if by_reason:
        console.print("left float:")
    for code, left in sorted(by_reason.items(), key=lambda each: (-len(each[1]), each[0])):
        meaning = left[0].meaning
        console.print(f"  {len(left)} {code}{f': {meaning}' if meaning else ''}", soft_wrap=True)
        for advice, about in by_advice(left).items():
            console.print(f"    {_some([_place(each) for each in about], ', ')}", soft_wrap=True)
            for label, said in (
                ("because", list(dict.fromkeys(_cause(each) for each in about if each.because))),
                ("found", list(dict.fromkeys(each.more for each in about if each.more))),
                (
                    "nearest",
                    [f"%{each.node} is almost {miss}" for each in about for miss in each.other_nearest],
                ),
            ):
                if said and (label != "found" or len(said) == 1):
                    console.print(f"    {label}: {_some(said, '; ')}", soft_wrap=True)
            if advice:
                console.print(f"    do: {in_command(advice)}", soft_wrap=True)


def _some(texts: list[str], between: str) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return f"{between.join(texts[:_NAMED])}{more}"


def _cause(each: OperatorExplanation) -> str:
    """Who decides, without the way there, which is another for each operator."""
    return str(attrs.evolve(each.because[0], through=()))


def _place(each: OperatorExplanation) -> str:
    """``linear_3 in head (file.py:12)``."""
    module = f" in {each.module}" if each.module else ""
    # Of a source line its place, without the code behind it and the folders before it.
    place = Path(each.source.split(": ", 1)[0])
    is_the_users = each.source and not place.is_relative_to(_TORCH)
    return f"{each.node}{module}{f' ({place.name})' if is_the_users else ''}"


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
