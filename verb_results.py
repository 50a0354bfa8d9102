"""What came of a verb: the decisions that its model carries, and how many are for low precision."""

from __future__ import annotations

import logging

from torch.fx import GraphModule

from .ir.coverage import Coverage, coverage_of
from .ir.ledger import Decision, Ledger
from .ir.meta import BACKEND_KEY, LEDGER_KEY

__all__ = ["coverage", "decisions", "ledger_of", "log_coverage"]

_log = logging.getLogger("lowbit")


def decisions(model: GraphModule) -> tuple[Decision, ...]:
    """What became of each float operator of a model that came out of a verb, and why.

    Returns:
        One decision an operator, in the order they were first met; empty for a model no verb has seen.
    """
    return ledger_of(model).decisions


def coverage(model: GraphModule) -> Coverage:
    """How many float operators of a model that came out of a verb are in low precision, and why not the rest.

    ::

        print(coverage(prepared))  # 20 of 23 float operators quantized for x86_inductor; 3 left float: …

    Every verb logs the same line, at the level INFO of ``logging.getLogger("lowbit")``.
    """
    return coverage_of(ledger_of(model), model.meta.get(BACKEND_KEY) or "")


def log_coverage(verb: str, model: GraphModule, backend: str = "") -> None:
    """Log what :func:`coverage` says, at the level INFO."""
    if _log.isEnabledFor(logging.INFO):
        _log.info("%s: %s", verb, coverage_of(ledger_of(model), backend or model.meta.get(BACKEND_KEY) or ""))


def ledger_of(model: GraphModule) -> Ledger:
    """A copy of the ledger of ``model``, which verbs do not change; an empty one where it has none."""
    ledger: Ledger | None = model.meta.get(LEDGER_KEY)
    return Ledger() if ledger is None else ledger.copy()
