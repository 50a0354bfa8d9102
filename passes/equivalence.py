"""Whether a pass kept the numbers of a graph, and if not, where it first broke its contract.

Both graphs are run in float64. Values are compared where the graphs have a tensor in common:

- what a node reads that is in both (what it read before, and what it reads now), constants excepted, and
  values that were there before under their own name;
- what an observer reads, a constant now that was computed at every call before as well;
- what a new node says it stands for (:data:`~lowbit.ir.meta.STANDS_FOR_KEY`), for passes that rewrite so much
  that hardly a node is left;
- the results.

Behind such a point the second run goes on with the value of the first. So differences do not add up over a
deep model, and a contract is about one rewrite, not about all together.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs
import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..errors import ContractError
from ..ir.aliasing import is_write
from ..ir.attributes import find_attribute
from ..ir.clone import clone_graph_module
from ..ir.location import locate
from ..ir.meta import QAT_KEY, STANDS_FOR_KEY
from ..ir.oracle import Memory, Observers, run_exactly, version_of, written_targets
from ..ir.schema import OpOverload, signature
from ..ir.stages import Stage, get_stage
from ..ir.train_eval import switch_to_evaluation
from .bf16_plan import written_values
from .contracts import Contract

__all__ = ["Trace", "check_contract", "check_trace", "meaning_of_observers", "take_trace"]

_FLOAT64_ROUNDING: Final = 2.0**-40
"""Sums in another order differ by this much of the largest value at most, with 2^12 terms."""


@attrs.frozen(eq=False)
class _Call:
    """What a node was.

    Args:
        called: operation and target.
        literals: its arguments as text, complete, each tensor as its position among ``sources``.
        sources: the names of the nodes it read.
        constant: the tensor that a ``get_attr`` read, if nothing writes to it.
        state: the tensors of the module that was called.
    """

    called: tuple[str, Any]
    literals: str
    sources: tuple[str, ...]
    constant: Any = None
    state: tuple[torch.Tensor, ...] = ()

    def is_as(self, other: _Call) -> bool:
        """Whether the same is called, of whatever sources."""
        if self.constant is not None or other.constant is not None:
            return self.constant is other.constant
        if len(self.state) != len(other.state) or not all(map(operator.is_, self.state, other.state)):
            return False  # an observer that has seen other data
        return self.called == other.called and self.literals == other.literals


@attrs.frozen(eq=False)
class Trace:
    """One run of a graph.

    Args:
        values: what each node computed, by name.
        passed_on: what the nodes behind it read: the value of a run before, at the points in common.
        calls: what each node was.
        results: the names of the nodes that the graph returns.
        observers: what observers meant.
        in_place: the names of values whose memory operators write into.
        overwritten: the names of values that are others now than when they were read.
        memory: what was quantized, and is not to be again.
    """

    values: Mapping[str, Any]
    passed_on: Mapping[str, Any]
    calls: Mapping[str, _Call]
    results: tuple[str, ...]
    observers: Observers
    in_place: frozenset[str]
    overwritten: frozenset[str]
    memory: Memory


def take_trace(gm: GraphModule, inputs: Sequence[Any], observers: Observers) -> Trace:
    """Run ``gm`` on ``inputs`` in float64, and keep what was computed.

    What conversion writes of a graph in training is that graph in evaluation.
    """
    if observers is Observers.QUANTIZE and gm.meta.get(QAT_KEY):
        gm = clone_graph_module(gm)
        switch_to_evaluation(gm)
    values: dict[str, Any] = {}
    versions: dict[str, list[int]] = {}
    writes, memory = _written_in_place(gm), Memory()

    def watch(node: Node, value: Any) -> Any:
        values[node.name] = value
        if writes:
            versions[node.name] = _versions(value)
        return value

    run_exactly(gm, *inputs, observers=observers, watch=watch, memory=memory)
    return Trace(
        values, values, _calls(gm), _results(gm), observers, writes, _overwritten(values, versions), memory
    )


def _versions(value: Any) -> list[int]:
    """How often each of the tensors in ``value`` was written to."""
    return [version_of(leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _overwritten(values: Mapping[str, Any], versions: Mapping[str, list[int]]) -> frozenset[str]:
    return frozenset(name for name, old in versions.items() if _versions(values[name]) != old)


def _calls(gm: GraphModule) -> dict[str, _Call]:
    calls: dict[str, _Call] = {}
    written = written_targets(gm.graph)
    for node in gm.graph.nodes:
        sources = node.all_input_nodes
        position = {source: f"<{i}>" for i, source in enumerate(sources)}
        arguments = map_arg(_complete(node), lambda source, position=position: position[source])
        is_constant = node.op == "get_attr" and str(node.target) not in written
        constant = find_attribute(gm, str(node.target)) if is_constant else None
        names = tuple(source.name for source in sources)
        module: Any = find_attribute(gm, str(node.target)) if node.op == "call_module" else None
        state = () if module is None else (*module.parameters(), *module.buffers())
        literals = repr(arguments) if module is None else f"{arguments!r} {module.extra_repr()}"
        calls[node.name] = _Call((node.op, node.target), literals, names, constant, state)
    return calls


def _complete(node: Node) -> Any:
    """The arguments of ``node``, by name and with defaults where it calls an operator."""
    if not isinstance(node.target, OpOverload):
        return node.args, node.kwargs
    known = signature(node.target)
    given = {**dict(zip(known.positional, node.args, strict=False)), **node.kwargs}
    names = (*known.positional, *known.keyword_only)
    return [given.get(name, known.defaults.get(name)) for name in names]


def _results(gm: GraphModule) -> tuple[str, ...]:
    return tuple(node.name for node in gm.graph.output_node().all_input_nodes)


def _written_in_place(gm: GraphModule) -> frozenset[str]:
    """The names of values whose memory is written into, as which none can be passed on."""
    if not any(map(is_write, gm.graph.nodes)):
        return frozenset()
    return frozenset(node.name for node in filter(written_values(gm.graph), gm.graph.nodes))


def meaning_of_observers(gm: GraphModule) -> Observers:
    """What observers mean in ``gm`` to a pass that runs on it: once they are there, the quantized model."""
    return Observers.QUANTIZE if get_stage(gm) is Stage.OBSERVED else Observers.IDENTITY


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
    calls, writes = _calls(after), _written_in_place(after)
    in_common = _points_in_common(before, after.graph)
    results: list[tuple[Node, str]] = []
    if len(nodes := after.graph.output_node().all_input_nodes) == len(before.results):
        results += zip(nodes, before.results, strict=True)
    _join(in_common, results)
    written = writes | before.in_place
    in_common = {n: name for n, name in in_common.items() if written.isdisjoint((n.name, name))}
    values: dict[str, Any] = {}
    passed_on: dict[str, Any] = {}
    versions: dict[str, list[int]] = {}

    def recall(node: Node) -> Any:
        """Its value before, where the same was called, of the same tensors."""
        call, old = calls[node.name], before.calls.get(node.name)
        if old is None or not call.is_as(old) or (writes and call.constant is None):
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
        if contract.dtype is not torch.float32 and not writes.isdisjoint(reads):
            return  # memory that is written into has the roundings of all that was ever in it
        want = before.values[counterpart]
        difference = _difference(node, values[node.name], want, passed_on, contract)
        if difference is not None:
            raise ContractError(
                f"%{node.name} is not what %{counterpart} was before the pass: {difference}",
                where=locate(node),
                hint=f"the contract of the pass is: {contract}; dump what it changed with DiffToFolder",
            )

    def watch(node: Node, value: Any) -> Any:
        if node.name not in writes and contract.dtype is not torch.float32:
            value = _as_stored(node, value, contract.dtype)
        values[node.name] = passed_on[node.name] = value
        if writes:
            versions[node.name] = _versions(value)
        counterpart = in_common.get(node)
        if counterpart is not None:
            compare(node, counterpart)
            passed_on[node.name] = before.passed_on[counterpart]
        return passed_on[node.name]

    run_exactly(after, *inputs, observers=before.observers, watch=watch, recall=recall, memory=before.memory)
    # What was written to later is then what it is in the end.
    for node, counterpart in results:
        if node not in in_common:
            compare(node, counterpart)
    return Trace(
        values,
        passed_on,
        calls,
        _results(after),
        before.observers,
        writes,
        _overwritten(values, versions),
        before.memory,
    )


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


def _points_in_common(before: Trace, graph: Graph) -> dict[Node, str]:
    """Node of the graph now → name of the node that had its value before."""
    found: dict[Node, str] = {}
    observed: dict[Node, str] = {}
    for node in graph.nodes:
        old = before.calls.get(node.name)
        if old is not None and old.called == (node.op, node.target):
            sources = list(zip(node.all_input_nodes, old.sources, strict=False))
            if len(node.all_input_nodes) == len(old.sources):
                # What was there under its own name is not what was read before: the node reads other things.
                kept = [(n, name) for n, name in sources if n.name == name or n.name not in before.calls]
                _join(found, kept)
                if node.op == "call_module":
                    constants = [(n, name) for n, name in sources if n.op == "get_attr"]
                    _join(observed, [(n, name) for n, name in constants if _is_computed(before, name)])
        stands_for = node.meta.get(STANDS_FOR_KEY)
        if stands_for in before.values:
            found.setdefault(node, stands_for)
    # Constants are what passes rewrite; what is computed of them tells.
    found = {n: name for n, name in found.items() if n.op != "get_attr" and _is_computed(before, name)}
    # But a weight that is observed is what it was when it was computed at every call: compared before it is
    # quantized, the roundings of the constant take none of its integers to the other side of half a step.
    return {**observed, **found}


def _is_computed(before: Trace, name: str) -> bool:
    return before.calls[name].called[0] != "get_attr"


def _join(found: dict[Node, str], pairs: Iterable[tuple[Node, str]]) -> None:
    for node, name in pairs:
        found.setdefault(node, name)


def _difference(
    node: Node, value: Any, expected: Any, values: Mapping[str, Any], contract: Contract
) -> str | None:
    """What is wrong with ``value``, a tensor or several, or None."""
    got, want = pytree.tree_leaves(value), pytree.tree_leaves(expected)
    if len(got) != len(want):
        return f"{len(got)} values in place of {len(want)}"
    pairs = zip(got, want, strict=True)
    found = (_leaf_difference(node, one, other, values, contract) for one, other in pairs if one is not other)
    return next((difference for difference in found if difference is not None), None)


def _leaf_difference(
    node: Node, got: Any, want: Any, values: Mapping[str, Any], contract: Contract
) -> str | None:
    """What is wrong with ``got``, or None."""
    if not isinstance(got, torch.Tensor) or not isinstance(want, torch.Tensor):
        return None if got == want else f"{got!r} in place of {want!r}"
    if got.is_floating_point() and want.is_floating_point():
        got, want = got.double(), want.double()  # constants are of any dtype
    if got.shape != want.shape or got.dtype is not want.dtype:
        return f"{got.dtype} {tuple(got.shape)} in place of {want.dtype} {tuple(want.shape)}"
    if not got.numel() or torch.equal(got, want):
        return None
    apart = (got.double() - want.double()).abs()
    if not got.is_floating_point():
        allowed, unit = float(contract.steps), " steps"
    else:
        magnitude = _magnitude(node, want, values)
        # Two roundings of r each make a little more: (1 + r)^2 = 1 + 2 r + r^2.
        allowed = magnitude * (contract.tolerance * (1 + contract.tolerance) + _FLOAT64_ROUNDING)
        unit = ""
        # Where both are infinite, or both no number, nothing is wrong.
        apart = apart.where((got != want) & ~(got.isnan() & want.isnan()), 0.0)
    largest = float(apart.nan_to_num(nan=torch.inf).max())
    return None if largest <= allowed else f"it is {largest:.3g}{unit} off, {allowed:.3g} allowed"


def _magnitude(node: Node, want: torch.Tensor, values: Mapping[str, Any]) -> float:
    """The size of what is summed to the value of ``node``: its roundings are relative to that.

    What stands behind a sum (a clamp, say) may leave little of it, and has the roundings of all of it.
    """
    largest = _largest(want)
    while node.target not in _PRODUCTS:
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if len(sources) != 1 or not isinstance(values.get(sources[0].name), torch.Tensor):
            return largest
        (node,) = sources
        largest = max(largest, _largest(values[node.name]))
    x, weight, *bias = (values[source.name] for source in node.args[:3] if isinstance(source, Node))
    weight = weight.double()
    terms = weight.abs().flatten(1).sum(1).max() if weight.dim() > 1 else weight.abs().sum()
    return max(largest, _largest(x) * float(terms) + sum(map(_largest, bias)))


def _largest(value: torch.Tensor) -> float:
    finite = value[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


_PRODUCTS: Final = frozenset(
    {
        torch.ops.aten.linear.default,
        torch.ops.aten.conv1d.default,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv3d.default,
    }
)
