"""Laws of the ledger: what became of each operator is said, and is so."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch
from torch.fx import Node

from ...errors import LowbitError
from ...ir.batch_norm import BATCH_NORMS
from ...ir.operators import is_float_operator
from ...ir.sharing import resolve_sharing
from ...ir.stages import Stage
from ...matchers.operator_pattern import Sharing
from ...passes import FoldBatchNorm, FuseConvBnQat, Normalize
from .operators import QUANTIZABLE
from .run import LawBroken, Run

__all__ = [
    "annotations_accepted",
    "batch_norms_told",
    "everything_decided",
    "lowering_told",
    "patterns_apply",
    "regions_told",
]


def _backend_quantizer(run: Run) -> Any:
    """The quantizer that annotated, if it is one of a backend."""
    quantizer = run.context.quantizer
    return None if getattr(quantizer, "backend_name", None) is None else quantizer


def everything_decided(run: Run) -> None:
    """With the quantizer of a backend, each float operator has one decision in the ledger."""
    if run.pass_.ensures is not Stage.ANNOTATED or _backend_quantizer(run) is None:
        return
    made = Counter(decision.node for decision in run.context.ledger.entries)
    for node in filter(is_float_operator, run.after.graph.nodes):
        if made[node.name] != 1:
            raise LawBroken(f"%{node.name} has {made[node.name]} decisions")
        if run.context.ledger.reason_of(node) == "not-annotated":
            raise LawBroken(f"the quantizer says nothing of %{node.name}")


def patterns_apply(run: Run) -> None:
    """What the backend has a pattern for is annotated, or the ledger says what is not as in the pattern."""
    quantizer = _backend_quantizer(run)
    if run.pass_.ensures is not Stage.ANNOTATED or quantizer is None:
        return
    alone = {p.operator for p in quantizer.patterns if p.size == 1 or p.sharing is Sharing.SAME_AS_INPUT}
    for node in run.after.graph.nodes:
        if node.target in alone and run.context.ledger.reason_of(node) == "no-pattern":
            raise LawBroken(f"%{node.name} stays float, as if there were no pattern for it")


def annotations_accepted(run: Run) -> None:
    """What the quantizer of a backend annotates can be prepared."""
    if run.pass_.ensures is not Stage.ANNOTATED or _backend_quantizer(run) is None:
        return
    try:
        resolve_sharing(run.after.graph)
    except LowbitError as error:
        raise LawBroken(f"what it annotates is refused: {error}") from error


_FOLDING: Final = (FoldBatchNorm.name, FuseConvBnQat.name)


def batch_norms_told(run: Run) -> None:
    """A BatchNorm that is not folded into what is before it has a reason, and one that may be true."""
    if run.pass_.name not in _FOLDING:
        return
    for node in run.after.graph.nodes:
        if node.target not in BATCH_NORMS:
            continue
        reason, source = run.context.ledger.reason_of(node), node.args[0]
        if reason is None:
            raise LawBroken(f"%{node.name} stays, and the ledger does not say why")
        if reason == "not-after-convolution" and isinstance(source, Node) and source.target in QUANTIZABLE:
            raise LawBroken(f"%{node.name} stays, as if %{source.name} were no convolution")


def regions_told(run: Run) -> None:
    """Operators in a region without gradients become the model's, or the ledger says why the region stays."""
    if run.pass_.name != Normalize.name:
        return
    for node in run.after.graph.nodes:
        if (
            node.target is torch.ops.higher_order.wrap_with_set_grad_enabled
            and node not in run.context.ledger
        ):
            raise LawBroken(f"the region that %{node.name} runs stays, and the ledger does not say why")


_UNFORESEEN: Final = ("no-kernel", "no-pattern")


def lowering_told(run: Run) -> None:
    """What the ledger says is lowered is run by a kernel in the graph, what it says is float is there."""
    if run.pass_.ensures is not Stage.LOWERED:
        return
    made = {entry.node: entry for entry in run.context.ledger.entries}
    left = {node.name for node in run.after.graph.nodes}
    for node in filter(is_float_operator, run.before.graph.nodes):
        entry = made.get(node.name)
        if entry is None:
            raise LawBroken(f"%{node.name} has no decision")
        by_compiler = entry.status == "quantized" and not entry.runs_at
        if (entry.status == "float" or by_compiler) != (node.name in left):
            raise LawBroken(f"%{node.name} is said to be {entry.status} ({entry.reason}), and is not")
        if entry.runs_at and entry.runs_at not in left:
            raise LawBroken(f"%{node.name} is said to run at %{entry.runs_at}, which is not there")
        if _backend_quantizer(run) and entry.reason in _UNFORESEEN and run.told.says_quantized(node):
            raise LawBroken(f"%{node.name} is annotated by the backend's quantizer, and no kernel takes it")
