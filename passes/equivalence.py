"""Whether a pass kept the numbers of a graph, and if not, where it first broke its contract.

Both graphs are run in float64. Values are compared where the graphs have a tensor in common:

- what a node reads that is in both (what it read before, and what it reads now), constants excepted, and
  values that were there before under their own name;
- what an observer reads, a constant now that was computed at every call before as well;
- what a new node says it stands for (:data:`~lowbit.ir.meta.STANDS_FOR_KEY`), for passes that rewrite so much
  that hardly a node is left;
- the results.

Behind such a point the second run goes on with the value of the first. So differences do not add up over a
deep model, and a contract is about one rewrite, not about all together. Bodies of ``cond`` and of loops are
compared so themselves, each time that they run.

What a graph says is stored in bfloat16 is not rounded in either run: a pass keeps the real function that a
graph stands for, and what is rounded where is then no matter of which of two values is next to a tie. Kernels
run as they are, and round (:attr:`.Contract.stored`). But the pass that brings bfloat16 in is checked for
what it makes of numbers: behind it, and for its check alone, what it says is stored so is rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from ..errors import ContractError
from ..ir.location import locate
from ..ir.meta import STANDS_FOR_KEY
from ..ir.oracle import run_exactly
from .contracts import Contract
from .roundings import Values, difference
from .traces import (
    BodyRun,
    Call,
    Trace,
    body_runs,
    calls_of,
    meaning_of_observers,
    overwritten,
    results_of,
    take_trace,
    trace_run,
    versions_of,
    with_open_bodies,
    written_in_place,
)

__all__ = ["Trace", "check_contract", "check_trace", "meaning_of_observers", "take_trace"]


def check_contract(
    before: GraphModule, after: GraphModule, inputs: Sequence[Any], contract: Contract
) -> None:
    """Check that ``after``, which a pass made of ``before``, computes the same as far as ``contract`` says.

    Args:
        before: the graph before the pass; a copy if the pass worked in place.
        after: the graph after it, whose nodes kept their names.
        inputs: the arguments of both.
        contract: how far values may be apart.

    Raises:
        ContractError: where they first are further apart.
    """
    check_trace(take_trace(before, inputs, meaning_of_observers(before)), after, inputs, contract)


def check_trace(before: Trace, after: GraphModule, inputs: Sequence[Any], contract: Contract) -> Trace:
    """As :func:`check_contract`, with a graph that was run before; returns the run of ``after``."""
    opened = with_open_bodies(after)
    return _check(before, opened, inputs, _Pairing.of(before, opened, contract), contract)[0]


@attrs.frozen(eq=False)
class _Pairing:
    """What a graph is, and what it has in common with what it was: the same each time that it runs.

    Args:
        calls: what its nodes are.
        writes: the names of values whose memory it writes into.
        in_common: node of the graph now → name of the node that had its value before.
        results: of the nodes that it returns.
        place: which body it is, in words; "" for the model.
    """

    calls: Mapping[str, Call]
    writes: frozenset[str]
    in_common: Mapping[Node, str]
    results: Sequence[tuple[Node, str]]
    place: str

    @property
    def is_body(self) -> bool:
        """Whether it is a body, which is run on what its caller has."""
        return bool(self.place)

    @staticmethod
    def of(before: Trace, after: GraphModule, contract: Contract, place: str = "") -> _Pairing:
        calls, writes = calls_of(after), written_in_place(after)
        in_common = _points_in_common(before, after.graph, calls, with_constants=contract.is_narrow)
        results: list[tuple[Node, str]] = []
        if len(nodes := after.graph.output_node().all_input_nodes) == len(before.results):
            results += zip(nodes, before.results, strict=True)
        _join(in_common, results)
        written = writes | before.in_place
        in_common = {n: name for n, name in in_common.items() if written.isdisjoint((n.name, name))}
        return _Pairing(calls, writes, in_common, results, place)


def _check(
    before: Trace,
    after: GraphModule,
    inputs: Sequence[Any],
    pairing: _Pairing,
    contract: Contract,
    *,
    first: Trace | None = None,
) -> tuple[Trace, Any]:
    """The run of ``after``, whose bodies are open, and what it returns.

    Args:
        before: the run before the pass.
        after: the graph after it.
        inputs: the arguments of both.
        pairing: of the two.
        contract: how far values may be apart.
        first: the first run of ``after``, if it is a body and this is another: its constants were compared.
    """
    rounds = contract.is_narrow
    calls, writes, in_common = pairing.calls, pairing.writes, pairing.in_common
    values: dict[str, Any] = {}
    passed_on: dict[str, Any] = {}
    versions: dict[str, list[int]] = {}

    def recall(node: Node) -> Any:
        """Its value before, where the same was called, of the same tensors."""
        call, old = calls[node.name], before.calls.get(node.name)
        # What a body is handed need not be what it was.
        if node.op == "placeholder" or old is None or not call.is_as(old):
            return NotImplemented
        if writes and call.constant is None:
            return NotImplemented
        if not before.overwritten.isdisjoint((node.name, *old.sources)):
            return NotImplemented
        now, then = (
            [side[name] for name in names]
            for side, names in ((passed_on, call.sources), (before.passed_on, old.sources))
        )
        is_same = len(now) == len(then) and all(map(_are_the_same, now, then))
        return before.values[node.name] if is_same else NotImplemented

    def compare(node: Node, counterpart: str) -> None:
        reads = {node.name, *(source.name for source in node.all_input_nodes)}
        if rounds and not writes.isdisjoint(reads):
            return  # memory that is written into has the roundings of all that was ever in it
        got = Values(node.name, values[node.name], calls, passed_on)
        want = Values(counterpart, before.values[counterpart], before.calls, before.passed_on)
        # Where memory is written into, casts of it are no points in common, and what reads them is rounded.
        wrong = difference(got, want, contract, of_rounded=bool(writes))
        if wrong is not None:
            raise ContractError(
                f"%{node.name}{pairing.place} is not what %{counterpart} was before the pass: {wrong}",
                where=locate(node),
                hint=f"the contract of the pass is: {contract}; dump what it changed with DiffToFolder",
            )

    def watch(node: Node, value: Any) -> Any:
        if first is not None and calls[node.name].constant is not None:
            values[node.name], passed_on[node.name] = first.values[node.name], first.passed_on[node.name]
        else:
            if rounds and node.name not in writes and not _was_stored_so(before, node):
                value = _as_stored(node, value, contract.dtype)
            values[node.name] = passed_on[node.name] = value
            counterpart = in_common.get(node)
            if counterpart is not None:
                compare(node, counterpart)
                passed_on[node.name] = before.passed_on[counterpart]
        if writes:
            versions[node.name] = versions_of(values[node.name])
        return passed_on[node.name]

    pairings: dict[tuple[str, str], _Pairing] = {}

    def run_body(
        which: BodyRun, body: GraphModule, operands: tuple[Any, ...], first: Trace | None
    ) -> tuple[Trace, Any]:
        known = before.inside.get(which)
        if known is None:  # the other branch, or a step that was not taken: the caller's result tells
            return trace_run(body, operands, before.observers, is_body=True, first=first)
        caller, name, _ = which
        if (caller, name) not in pairings:
            place = f" in the body {name}{pairing.place}"
            pairings[caller, name] = _Pairing.of(known, body, contract, place)
        return _check(known, body, operands, pairings[caller, name], contract, first=first)

    inside, enter = body_runs(run_body)
    result = run_exactly(
        after,
        *inputs,
        observers=before.observers,
        watch=watch,
        recall=recall,
        enter=enter,
        memory=before.memory,
        copies_inputs=not pairing.is_body,
    )
    # What was written to later is then what it is in the end.
    for node, counterpart in pairing.results:
        if node not in in_common:
            compare(node, counterpart)
    trace = Trace(
        values,
        passed_on,
        calls,
        results_of(after),
        before.observers,
        writes,
        overwritten(values, versions),
        before.memory,
        inside,
        rounds,
    )
    return trace, result


def _was_stored_so(before: Trace, node: Node) -> bool:
    """Whether the graph before stored ``node`` in a narrow dtype already, in which it was not rounded."""
    old = before.calls.get(node.name)
    said = pytree.tree_leaves(node.meta.get("val"))
    return old is not None and old.dtypes == tuple(getattr(leaf, "dtype", None) for leaf in said)


def _as_stored(node: Node, value: Any, dtype: torch.dtype) -> Any:
    """``value``, its tensors rounded that are of ``dtype`` in the graph."""

    def stored(value: Any, said: Any) -> Any:
        is_narrow = isinstance(said, torch.Tensor) and said.dtype is dtype
        return value.to(dtype).double() if is_narrow and isinstance(value, torch.Tensor) else value

    leaves, form = pytree.tree_flatten(value)
    said = pytree.tree_leaves(node.meta.get("val"))
    if len(said) != len(leaves):
        return value
    return pytree.tree_unflatten(map(stored, leaves, said), form)


def _are_the_same(one: Any, other: Any) -> bool:
    """Whether the two are one value, or the same to the bit, as a weight is that is stored quantized."""
    if one is other or not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return one is other
    if one.layout is not torch.strided or one.dtype is not other.dtype or one.shape != other.shape:
        return False
    if one.dtype is torch.float64:
        one, other = one.view(torch.int64), other.view(torch.int64)  # 0 is not -0, and NaN is NaN
    return not one.is_floating_point() and torch.equal(one, other)


def _points_in_common(
    before: Trace, graph: Graph, calls: Mapping[str, Call], *, with_constants: bool
) -> dict[Node, str]:
    """Node of the graph now → name of the node that had its value before.

    What a node reads now has the value of what it read before, of whatever name: of one that is new, or that
    calls something else now, as a convolution does with a BatchNorm folded into it. Where a pass rounds
    constants, each is that of before but for its own rounding: they are points as well.
    """
    found: dict[Node, str] = {}
    observed: dict[Node, str] = {}
    for node in graph.nodes:
        old = before.calls.get(node.name)
        if old is not None and old.called == (node.op, node.target):
            if node.op == "placeholder":
                found.setdefault(node, node.name)
            sources = list(zip(node.all_input_nodes, old.sources, strict=False))
            if len(node.all_input_nodes) == len(old.sources):
                # What was there before, as it is now, is not what was read: the node reads other things.
                kept = [(n, name) for n, name in sources if n.name == name or _is_new(before, calls, n.name)]
                _join(found, kept)
                if node.op == "call_module":
                    constants = [(n, name) for n, name in sources if n.op == "get_attr"]
                    _join(observed, [(n, name) for n, name in constants if _is_computed(before, name)])
        stands_for = node.meta.get(STANDS_FOR_KEY)
        if stands_for in before.values:
            found.setdefault(node, stands_for)
    # Constants are what passes rewrite; what is computed of them tells.
    found = {
        n: name
        for n, name in found.items()
        if (n.op != "get_attr" and _is_computed(before, name))
        or (with_constants and n.op == "get_attr" and not _is_computed(before, name))
    }
    bodies = {n for n in found if isinstance(calls[n.name].constant, GraphModule)}
    found = {n: name for n, name in found.items() if n not in bodies}
    # But a weight that is observed is what it was when it was computed at every call: compared before it is
    # quantized, the roundings of the constant take none of its integers to the other side of half a step.
    return {**observed, **found}


def _is_new(before: Trace, calls: Mapping[str, Call], name: str) -> bool:
    """Whether there was no node ``name`` before that called the same with the same constants."""
    call, old = calls[name], before.calls.get(name)
    if old is None or not call.is_as(old) or call.sources != old.sources:
        return True
    pairs = ((calls[source], before.calls[source]) for source in call.sources)
    return any(now.constant is not then.constant for now, then in pairs)


def _is_computed(before: Trace, name: str) -> bool:
    return before.calls[name].called[0] != "get_attr"


def _join(found: dict[Node, str], pairs: Iterable[tuple[Node, str]]) -> None:
    for node, name in pairs:
        found.setdefault(node, name)
