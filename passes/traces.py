"""One run of a graph in float64: what each node was called with, and what it computed."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..ir.aliasing import written_memory
from ..ir.attributes import find_attribute
from ..ir.clone import clone_graph_module
from ..ir.meta import QAT_KEY
from ..ir.open_bodies import open_bodies
from ..ir.oracle import Enter, Memory, Observers, run_exactly, version_of, written_targets
from ..ir.schema import HigherOrderOperator, OpOverload, signature
from ..ir.stages import Stage, get_stage
from ..ir.train_eval import switch_to_evaluation

__all__ = [
    "BodyRun",
    "Call",
    "Read",
    "RunBody",
    "Trace",
    "body_runs",
    "calls_of",
    "meaning_of_observers",
    "overwritten",
    "results_of",
    "take_trace",
    "trace_run",
    "versions_of",
    "with_open_bodies",
    "written_in_place",
]

BodyRun: TypeAlias = tuple[str, str, int]
"""A run of a body: the call, the body's name, and how often that call had run it before."""
RunBody: TypeAlias = Callable[[BodyRun, GraphModule, tuple[Any, ...], "Trace | None"], "tuple[Trace, Any]"]
"""Runs a body on what it is handed, after its first run, if this is not that; returns the run and its
results."""


@attrs.frozen
class Read:
    """An argument that is the result of a node: the ``index``-th of its call's sources."""

    index: int

    def __repr__(self) -> str:
        return f"<{self.index}>"


@attrs.frozen(eq=False)
class Call:
    """What a node was.

    Args:
        called: operation and target.
        arguments: its arguments, complete, with a :class:`Read` for each node.
        literals: ``arguments`` as text, with what a module that is called says of itself.
        sources: the names of the nodes it read.
        dtypes: of its results, as the graph says; None for what is no tensor.
        constant: the tensor that a ``get_attr`` read, if nothing writes to it.
        state: the tensors of the module that was called.
    """

    called: tuple[str, Any]
    arguments: Any
    literals: str
    sources: tuple[str, ...]
    dtypes: tuple[torch.dtype | None, ...] = ()
    constant: Any = None
    state: tuple[torch.Tensor, ...] = ()

    def is_as(self, other: Call) -> bool:
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
        inside: the runs of bodies of ``cond`` and the like.
        is_rounded: whether values were rounded to the narrow dtype that they are stored in, as they are where
            a pass is checked that brings it in. Passes are compared with runs that are not.
    """

    values: Mapping[str, Any]
    passed_on: Mapping[str, Any]
    calls: Mapping[str, Call]
    results: tuple[str, ...]
    observers: Observers
    in_place: frozenset[str]
    overwritten: frozenset[str]
    memory: Memory
    inside: Mapping[BodyRun, Trace] = attrs.field(factory=dict[BodyRun, "Trace"])
    is_rounded: bool = False


def take_trace(gm: GraphModule, inputs: Sequence[Any], observers: Observers) -> Trace:
    """Run ``gm`` on ``inputs`` in float64, and keep what was computed.

    What conversion writes of a graph in training is that graph in evaluation.
    """
    if observers is Observers.QUANTIZE and gm.meta.get(QAT_KEY):
        gm = clone_graph_module(gm)
        switch_to_evaluation(gm)
    return trace_run(with_open_bodies(gm), inputs, observers)[0]


def trace_run(
    gm: GraphModule,
    inputs: Sequence[Any],
    observers: Observers,
    *,
    is_body: bool = False,
    first: Trace | None = None,
) -> tuple[Trace, Any]:
    """As :func:`take_trace`, of a graph whose bodies are open; with what it returns.

    Args:
        gm: the graph.
        inputs: its arguments.
        observers: what observers mean.
        is_body: whether it is a body, whose inputs are another graph's.
        first: the first run of ``gm``, if this is another: its constants are those, and what is made of them.
    """
    values: dict[str, Any] = {}
    versions: dict[str, list[int]] = {}
    calls = calls_of(gm) if first is None else first.calls
    writes = written_in_place(gm) if first is None else first.in_place
    memory = Memory() if first is None else first.memory

    def watch(node: Node, value: Any) -> Any:
        values[node.name] = value
        if writes:
            versions[node.name] = versions_of(value)
        return value

    def recall(node: Node) -> Any:
        if first is None or calls[node.name].constant is None:
            return NotImplemented
        return first.passed_on[node.name]

    def run_body(
        _: BodyRun, body: GraphModule, operands: tuple[Any, ...], first: Trace | None
    ) -> tuple[Trace, Any]:
        return trace_run(body, operands, observers, is_body=True, first=first)

    inside, enter = body_runs(run_body)
    result = run_exactly(
        gm,
        *inputs,
        observers=observers,
        watch=watch,
        recall=recall,
        enter=enter,
        memory=memory,
        copies_inputs=not is_body,
    )
    written = overwritten(values, versions)
    return Trace(values, values, calls, results_of(gm), observers, writes, written, memory, inside), result


def with_open_bodies(gm: GraphModule) -> GraphModule:
    """``gm``; if it runs bodies, a copy where these have their weights as attributes, as passes see them."""
    if not any(isinstance(node.target, HigherOrderOperator) for node in gm.graph.nodes):
        return gm
    copy = clone_graph_module(gm)
    open_bodies(copy)
    return copy


def body_runs(run: RunBody) -> tuple[dict[BodyRun, Trace], Enter]:
    """Where the runs of a graph's bodies will be, and how the oracle enters one: by ``run``."""
    found: dict[BodyRun, Trace] = {}
    count: Counter[tuple[str, str]] = Counter()

    def enter(caller: Node, name: str, body: GraphModule, operands: tuple[Any, ...]) -> Any:
        which = (caller.name, name, count[caller.name, name])
        count[caller.name, name] += 1
        found[which], result = run(which, body, operands, found.get((caller.name, name, 0)))
        return result

    return found, enter


def meaning_of_observers(gm: GraphModule) -> Observers:
    """What observers mean in ``gm`` to a pass that runs on it: once they are there, the quantized model."""
    return Observers.QUANTIZE if get_stage(gm) is Stage.OBSERVED else Observers.IDENTITY


def versions_of(value: Any) -> list[int]:
    """How often each of the tensors in ``value`` was written to."""
    return [version_of(leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def overwritten(values: Mapping[str, Any], versions: Mapping[str, list[int]]) -> frozenset[str]:
    """The names of values that were written to since they had ``versions``."""
    return frozenset(name for name, old in versions.items() if versions_of(values[name]) != old)


def calls_of(gm: GraphModule) -> dict[str, Call]:
    """What each node of ``gm`` is, by name."""
    calls: dict[str, Call] = {}
    written = written_targets(gm.graph)
    for node in gm.graph.nodes:
        sources = node.all_input_nodes
        position: dict[Node, Any] = {source: Read(i) for i, source in enumerate(sources)}
        arguments = map_arg(_complete(node), lambda source, position=position: position[source])
        is_constant = node.op == "get_attr" and str(node.target) not in written
        constant = find_attribute(gm, str(node.target)) if is_constant else None
        names = tuple(source.name for source in sources)
        module: Any = find_attribute(gm, str(node.target)) if node.op == "call_module" else None
        state = () if module is None else (*module.parameters(), *module.buffers())
        literals = repr(arguments) if module is None else f"{arguments!r} {module.extra_repr()}"
        dtypes = tuple(getattr(leaf, "dtype", None) for leaf in pytree.tree_leaves(node.meta.get("val")))
        calls[node.name] = Call((node.op, node.target), arguments, literals, names, dtypes, constant, state)
    return calls


def _complete(node: Node) -> Any:
    """The arguments of ``node``, by name and with defaults where it calls an operator."""
    if not isinstance(node.target, OpOverload):
        return node.args, node.kwargs
    known = signature(node.target)
    given = {**dict(zip(known.positional, node.args, strict=False)), **node.kwargs}
    names = (*known.positional, *known.keyword_only)
    return [given.get(name, known.defaults.get(name)) for name in names]


def results_of(gm: GraphModule) -> tuple[str, ...]:
    """The names of the nodes that ``gm`` returns."""
    return tuple(node.name for node in gm.graph.output_node().all_input_nodes)


def written_in_place(gm: GraphModule) -> frozenset[str]:
    """The names of values whose memory is written into, as which none can be passed on."""
    return frozenset(node.name for node in filter(written_memory(gm.graph), gm.graph.nodes))
