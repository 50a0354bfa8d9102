"""What ``lowbit quantize`` tells of its result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from ...ir.coverage import Coverage
from ...ir.ledger import Decision
from ...ir.reasons import REASONS
from .quantizing import QuantizeResult

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
        }
        for decision in decisions
    ]


def show_summary(console: Console, model: str, result: QuantizeResult) -> None:
    """Coverage, what was left float and why, sizes, files."""
    console.print(f"{model}, for {result.backend} with preset {result.preset}", soft_wrap=True)
    show_coverage(console, result.coverage)
    _show_left_float(console, result.decisions)
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


def _show_left_float(console: Console, decisions: Iterable[Decision]) -> None:
    """Operators that stay float, by reason: how many, a few of them, and what to do."""
    by_reason: dict[str, list[Decision]] = {}
    for decision in decisions:
        if decision.status != "quantized":
            by_reason.setdefault(decision.reason, []).append(decision)
    if by_reason:
        console.print("left float:")
    for code, left in sorted(by_reason.items(), key=lambda each: (-len(each[1]), each[0])):
        reason = REASONS.get(code)
        console.print(f"  {len(left)} {code}{f': {reason.meaning}' if reason else ''}", soft_wrap=True)
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        console.print(f"    {', '.join(map(_place, left[:_NAMED]))}{more}", soft_wrap=True)
        details = {each.detail: None for each in left}
        detail = next(iter(details))
        if len(details) == 1 and detail and (reason is None or detail != reason.meaning):
            console.print(f"    found: {detail}", soft_wrap=True)
        if reason is not None:
            console.print(f"    do: {reason.advice}", soft_wrap=True)


def _place(decision: Decision) -> str:
    """``linear_3 in head (file.py:12)``."""
    module = f" in {decision.module}" if decision.module else ""
    # Of a source line its place, without the code behind it and the folders before it.
    place = Path(decision.source.split(": ", 1)[0])
    is_the_users = decision.source and not place.is_relative_to(_TORCH)
    return f"{decision.node}{module}{f' ({place.name})' if is_the_users else ''}"


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
