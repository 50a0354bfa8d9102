"""What ``lowbit quantize`` tells of its result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from ...ir.coverage import Coverage
from ...ir.ledger import Decision
from .quantizing import QuantizeResult
from .terminal import print_table

__all__ = ["coverage_as_data", "decisions_as_data", "show_decisions", "show_summary", "summary_as_data"]

_MOST: Final = 20
"""Operators that are listed; of more, the rest is counted."""

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
        "notes": list(result.notes),
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
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(f"coverage: {result.coverage}", soft_wrap=True)
    show_decisions(console, [d for d in result.decisions if d.status != "quantized"])
    before, after = result.weight_bytes
    ratio = f", {before / after:.2f} times smaller" if 0 < after < before else ""
    console.print(f"weights: {_size(before)} → {_size(after)}{ratio}", soft_wrap=True)
    for option, path in result.files.items():
        size = f", {_size(path.stat().st_size)}" if path.is_file() else "/"
        console.print(f"wrote {path}{size}: {_how_to_use(option, result)}", soft_wrap=True)


def _how_to_use(option: str, result: QuantizeResult) -> str:
    is_lowered_here = option == "output" and result.lowered is not None
    return _HOW_TO_USE[option] + f' and lower_pt2e(…, "{result.backend}")' * is_lowered_here


def show_decisions(console: Console, decisions: list[Decision]) -> None:
    """Operators that stay float, with the reason of each."""
    if not decisions:
        return
    rows = [(f"  {d.node}", d.module, _why(d), _short(d.source)) for d in decisions[:_MOST]]
    print_table(console, ("left float", "in module", "why", "source"), rows)
    if len(decisions) > _MOST:
        console.print(f"… and {len(decisions) - _MOST} more: --json has them all", soft_wrap=True)


def _why(decision: Decision) -> str:
    return f"{decision.reason}: {decision.detail}" if decision.detail else decision.reason


def _short(source: str) -> str:
    """``file.py:12`` of a source line, which has the code behind it and folders before it."""
    place = source.split(": ", 1)[0]
    return Path(place).name


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
