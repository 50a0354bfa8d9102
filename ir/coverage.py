"""How much of a model runs in low precision, and why the rest does not."""

from __future__ import annotations

from collections import Counter

import attrs

from .ledger import Ledger

__all__ = ["Coverage", "coverage_of"]


@attrs.frozen
class Coverage:
    """Counts of decisions; ``str()`` of it is a line.

    Args:
        quantized: operators in low precision.
        left_float: ``(reason code, operators)`` of the others, the most frequent reason first.
        not_lowered: how many of those were annotated to read low precision.
        backend: the backend that the model is for, "" where none is known.
    """

    quantized: int
    left_float: tuple[tuple[str, int], ...]
    not_lowered: int = 0
    backend: str = ""

    @property
    def total(self) -> int:
        """The number of float operators of the model: that of its decisions."""
        return self.quantized + sum(count for _, count in self.left_float)

    @property
    def share(self) -> float:
        """The share of operators in low precision; 0.0 of a model without float operators."""
        return self.quantized / self.total if self.total else 0.0

    def __str__(self) -> str:
        whose = f" for {self.backend}" if self.backend else ""
        line = f"{self.quantized} of {self.total} float operators quantized{whose}"
        left = ", ".join(f"{reason} {count}" for reason, count in self.left_float)
        return f"{line}; {self.total - self.quantized} left float: {left}" if left else line


def coverage_of(ledger: Ledger, backend: str = "") -> Coverage:
    """Count the decisions of ``ledger``, each of them once."""
    entries = ledger.entries
    left = [entry for entry in entries if entry.status == "float"]
    reasons = Counter(entry.reason for entry in left)
    return Coverage(
        quantized=len(entries) - len(left),
        left_float=tuple(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
        not_lowered=sum(entry.intended for entry in left),
        backend=backend,
    )
