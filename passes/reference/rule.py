"""What a reference rule is, and how the places it applies to are found in a Q/DQ graph."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch.fx import Graph, Node

from ...matchers.capture import capture
from ...matchers.operator_pattern import Kernel
from ...matchers.subgraph import SubgraphMatcherWithNameNodeMap

__all__ = ["Find", "Found", "Rule", "calls", "pattern"]


@attrs.frozen(eq=False)
class Found:
    """Float operators that a rule may stand in for.

    Args:
        operators: the operators, in graph order.
        tensors: what they read, by name: dequantize nodes, float nodes, None for an absent bias.
        quantize: the quantize they are, where there is no operator at all.
    """

    operators: tuple[Node, ...]
    tensors: Mapping[str, Node | None]
    quantize: Node | None = None


Find = Callable[[Graph], Iterator[Found]]
"""Finds the occurrences of a structure in a graph; what they read need not be quantized."""


@attrs.frozen(eq=False)
class Rule:
    """One quantized operator as integer arithmetic.

    Args:
        name: kebab-case, unique among the rules.
        find: the structure, as a pattern.
        kernel: the guards (``refuses``) and the integer arithmetic (``emit``).
        leaves_float: whether it also applies where the result is read in float: the accumulator stays
            integer, and is scaled to a float tensor.
    """

    name: str
    find: Find
    kernel: Kernel
    leaves_float: bool = False


def pattern(function: Callable[..., Any], example_inputs: Callable[[], tuple[Any, ...]]) -> Find:
    """The occurrences of a torch function; the names of its parameters name the tensors.

    Literals (stride, padding, …) are the kernel's to read.
    """
    names = tuple(inspect.signature(function).parameters)

    @functools.cache
    def matcher() -> SubgraphMatcherWithNameNodeMap:
        # Exported once in a process, when a model first asks.
        return SubgraphMatcherWithNameNodeMap(capture(function, example_inputs()))

    def find(graph: Graph) -> Iterator[Found]:
        for match in matcher().match(graph):
            yield Found(match.nodes, dict(zip(names, match.placeholder_nodes, strict=True)))

    return find


def calls(*targets: Any) -> Find:
    """The calls of operators that take any number of tensors; these are named after their nodes."""

    def find(graph: Graph) -> Iterator[Found]:
        for target in targets:
            for node in graph.find_nodes(op="call_function", target=target):
                sources = [source for source in node.all_input_nodes if _may_be_float(source)]
                yield Found((node,), {source.name: source for source in sources})

    return find


def _may_be_float(node: Node) -> bool:
    """Whether ``node`` may be a float tensor: sizes and indices are none."""
    value = node.meta.get("val")
    return value is None or (isinstance(value, torch.Tensor) and value.is_floating_point())
