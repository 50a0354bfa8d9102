"""Numeric verification between passes: each pass's contract, on the user's own graph and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from torch.fx import GraphModule

from ...ir.oracle import Observers
from ...ir.snapshot import Snapshot, changed_attributes
from ..base import Pass
from ..contracts import contract_of
from ..equivalence import Trace, check_trace, meaning_of_observers, take_trace
from .base import Change

__all__ = ["VerifyNumeric"]


@attrs.define
class VerifyNumeric:
    """Runs the graph in float64 before and after each pass that changes it, and compares.

    ::

        prepare_pt2e(exported, quantizer, instruments=[VerifyNumeric(example_inputs)])

    Costs about one run of the model in float64 for each such pass, and keeps the values of all nodes, in
    loops of every step. A batch of one or two is enough.

    Args:
        inputs: the arguments of the model, as a tuple.

    Raises (from the verb that runs the passes):
        ContractError: a pass changed numbers by more than its contract allows; it names the pass and the
            first node where it did, in bodies of ``cond`` and of loops too.
    """

    inputs: Sequence[Any]
    _trace: Trace | None = attrs.field(default=None, init=False)
    _graph: GraphModule | None = attrs.field(default=None, init=False)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Run the graph, unless it has been run after the pass before."""
        observers = meaning_of_observers(gm)
        known = self._trace if self._graph is gm else None
        # Without observers the graph means the same either way.
        if known is None or (observers is Observers.QUANTIZE and known.observers is not observers):
            self._graph = gm
            self._trace = take_trace(gm, self.inputs, observers)

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Run the graph again and compare, if the pass changed what is computed."""
        if _computes_the_same(change.before, change.after):
            return
        contract = contract_of(pass_)
        trace, self._trace = self._trace, None
        assert trace is not None
        if contract is not None:
            trace = check_trace(trace, gm, self.inputs, contract)
            self._trace = None if trace.is_rounded else trace


def _computes_the_same(before: Snapshot, after: Snapshot) -> bool:
    """Whether only annotations and the like differ."""
    if before is after or len(before.records) != len(after.records):
        return before is after
    pairs = zip(before.records.items(), after.records.items(), strict=True)
    calls = all(
        one is other and old.target is new.target and old.args is new.args and old.kwargs is new.kwargs
        for (one, old), (other, new) in pairs
    )
    return calls and not any(True for _ in changed_attributes(before, after))
