"""A pattern made ready for matching: its outputs, its names, and the order to look for them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument
from torch.utils import _pytree as pytree

from ..errors import PatternError
from ..ir.attributes import get_attribute
from ..ir.clone import clone_graph_module
from .operands import Operand, operands

__all__ = ["Pattern", "Sink", "is_leaf", "read_pattern"]


@attrs.frozen(eq=False)
class Sink:
    """An output of a pattern that no other part of the pattern reads.

    Args:
        node: the output.
        path: how to reach it from the sinks before it: a node they lead to, then one user after another up to
            ``node``. Empty for the anchor.
    """

    node: Node
    path: tuple[Node, ...]


@attrs.frozen(eq=False)
class Pattern:
    """The graph of a pattern, and what matching needs to know of it.

    Args:
        graph: placeholders, operators and the outputs proper; read-only.
        placeholders: the inputs that are read, in their order.
        outputs: the operators whose results the pattern returns.
        names: name → node of ``graph``.
        sinks: where to match from; the first is the anchor, and all nodes lead to one of them.
        operands: operator of ``graph`` → its arguments.
    """

    graph: Graph
    placeholders: tuple[Node, ...]
    outputs: tuple[Node, ...]
    names: Mapping[str, Node]
    sinks: tuple[Sink, ...]
    operands: Mapping[Node, list[tuple[Operand, Argument]]]

    @property
    def is_closed(self) -> bool:
        """Whether results leave the pattern at its end only: no other part of it reads an output."""
        return set(self.outputs) == {self.anchor}

    @property
    def anchor(self) -> Node:
        """The operator that candidates are recognized by."""
        return self.sinks[0].node


def is_leaf(node: Node) -> bool:
    """Whether ``node`` is an input of a pattern: a tensor handed in, or a parameter of its own."""
    return node.op in ("placeholder", "get_attr")


def read_pattern(gm: GraphModule) -> Pattern:
    """Read a canonical pattern as :func:`~lowbit.matchers.capture.capture` returns it; ``gm`` is not changed.

    Raises:
        PatternError: there is no way to match ``gm``: it has no operator at its output, parts of it are
            unconnected, it calls modules, or it names what none of its outputs depend on.
    """
    graph = clone_graph_module(gm).graph
    output = graph.output_node()
    returned, names = _split_names(output.args[0], gm)
    output.args = (tuple(returned),)
    live = _ancestors(output)
    # Checks that export puts in have no result; they would pass for users of what they check.
    for node in reversed(graph.nodes):
        if node not in live and node.op != "placeholder":
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op == "get_attr" and not isinstance(get_attribute(gm, str(node.target)), torch.Tensor):
            raise PatternError(
                f"the pattern reads {node.target!r}, which is not a tensor",
                hint="leave control flow out of patterns: match what stands before and after it",
            )
        if node.op in ("call_module", "call_method"):
            raise PatternError(
                f"the pattern has a {node.op} of {node.target!r}",
                hint="pass a torch function and example inputs, or a module exported by torch.export",
            )
    for name, node in names.items():
        if node not in live:
            raise PatternError(
                f"the pattern names %{node.name} {name!r}, but no output depends on it",
                hint="return it as an output too, or drop the name",
            )
    return Pattern(
        graph=graph,
        placeholders=tuple(n for n in graph.find_nodes(op="placeholder") if n.users),
        outputs=tuple(returned),
        names=names,
        sinks=_find_sinks(returned, output),
        operands={node: operands(node) for node in graph.nodes if node.op == "call_function"},
    )


def _split_names(returned: Any, gm: GraphModule) -> tuple[list[Node], dict[str, Node]]:
    """The operators returned, and the names that the last returned value gives when it is a dict."""
    # A module made by export returns a flat list, and keeps the form it had apart.
    spec = getattr(gm, "_out_spec", None)
    if spec is not None:
        returned = pytree.tree_unflatten(returned, spec)
    names: dict[str, Any] = {}
    if isinstance(returned, (tuple, list)) and len(returned) > 1 and isinstance(returned[-1], dict):
        *returned, names = returned
    for name, node in names.items():
        if not isinstance(node, Node):
            raise PatternError(
                f"the pattern gives the name {name!r} to {node!r}, which is not a tensor",
                hint="name only tensors that the pattern takes or computes",
            )
    operators = [
        leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Node) and not is_leaf(leaf)
    ]
    return operators, names


def _find_sinks(returned: Sequence[Node], output: Node) -> tuple[Sink, ...]:
    waiting = list(dict.fromkeys(n for n in returned if set(n.users) == {output}))
    if not waiting:
        raise PatternError(
            "the pattern has no operator to look for: it returns its inputs, or nothing",
            hint="return the result of the last operator",
        )
    sinks = [Sink(waiting.pop(0), ())]
    reached = _ancestors(sinks[0].node)
    while waiting:
        for node in waiting:
            if path := _path(node, reached):
                break
        else:
            raise PatternError(
                f"the pattern falls apart: %{waiting[0].name} shares nothing with %{sinks[0].node.name}",
                hint="make a pattern of each part",
            )
        waiting.remove(node)
        sinks.append(Sink(node, path))
        reached |= _ancestors(node)
    return tuple(sinks)


def _ancestors(node: Node) -> set[Node]:
    found = {node}
    stack = [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found


def _path(sink: Node, reached: set[Node]) -> tuple[Node, ...]:
    """The shortest way from a node of ``reached`` to ``sink``, best one that starts at an operator; or ()."""
    paths: list[tuple[Node, ...]] = [(sink,)]
    ends: list[tuple[Node, ...]] = []
    seen = {sink}
    for path in paths:
        for source in path[0].all_input_nodes:
            if source in reached:
                ends.append((source, *path))
            elif source not in seen:
                seen.add(source)
                paths.append((source, *path))
    # Inputs have many users, and each of them would be a candidate.
    return min(ends, key=lambda path: is_leaf(path[0]), default=())
