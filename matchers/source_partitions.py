"""Operators grouped by the module or function of the user's model that they come from.

What PyTorch's tutorials call source partitions. ``torch.fx.passes.utils.source_matcher_utils`` finds no
functions in graphs of non-strict export, and takes two calls of one module for one partition. Here strict and
non-strict export give the same answer, because only what both record is read: ``nn_module_stack`` and
``torch_fn``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeAlias

import attrs
import torch
from torch.fx import Graph, Node

from ..ir.location import module_stack

__all__ = ["SourcePartition", "get_source_partitions"]

Source: TypeAlias = type[torch.nn.Module] | Callable[..., Any]

# Export records the tensor methods that Python's operators become.
_METHODS: Final = {
    operator.truediv: "div",
    operator.iadd: "add_",
    operator.isub: "sub_",
    operator.imul: "mul_",
    operator.itruediv: "div_",
}


@attrs.frozen(eq=False)
class SourcePartition:
    """The operators that one call of a module or function became.

    Args:
        nodes: the operators, in graph order.
        source: the module class or function they come from.
        input_nodes: the nodes outside that they read, without ``params``, in the order they are read.
        output_nodes: those of ``nodes`` that are read outside, in graph order.
        params: the parameters and buffers that they read, in the order they are read.
    """

    nodes: list[Node]
    source: Source
    input_nodes: list[Node]
    output_nodes: list[Node]
    params: list[Node]


def get_source_partitions(
    graph: Graph, wanted_sources: Sequence[Source]
) -> dict[Source, list[SourcePartition]]:
    """The calls of ``wanted_sources`` in an exported graph.

    Args:
        graph: a graph with the metadata of ``torch.export``.
        wanted_sources: classes of modules, found by their exact type, the innermost if they are nested; and
            functions (``F.conv2d``, ``torch.add``, ``operator.add``), found where the model itself calls
            them, not within a module of ``torch.nn``.

    Returns:
        The partitions of each wanted source that occurs, in graph order.
    """
    classes = {f"{s.__module__}.{s.__qualname__}": s for s in wanted_sources if isinstance(s, type)}
    functions = {_recorded_name(s): s for s in wanted_sources if not isinstance(s, type)}
    found: dict[Source, dict[Hashable, list[Node]]] = {source: {} for source in wanted_sources}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        call = _module_call(node, classes) or _function_call(node, functions)
        if call is not None:
            source, identity = call
            found[source].setdefault(identity, []).append(node)
    return {
        source: [_partition(source, nodes) for nodes in calls.values()]
        for source, calls in found.items()
        if calls
    }


def _recorded_name(function: Callable[..., Any]) -> str:
    """How ``torch_fn`` writes ``function``: its type and its name."""
    if getattr(function, "__module__", None) == operator.add.__module__:
        return f"method_descriptor.{_METHODS.get(function, function.__name__)}"
    return f"{type(function).__name__}.{function.__name__}"


def _module_call(node: Node, classes: dict[str, type]) -> tuple[Source, Hashable] | None:
    stack = reversed(module_stack(node.meta))
    return next(((classes[m.kind], m.call) for m in stack if m.kind in classes), None)


def _function_call(node: Node, functions: dict[str, Callable[..., Any]]) -> tuple[Source, Hashable] | None:
    call = node.meta.get("torch_fn")
    if call is None or call[1] not in functions:
        return None
    stack = module_stack(node.meta)
    inside_torch = bool(stack) and stack[-1].kind.startswith("torch.nn.")
    return None if inside_torch else (functions[call[1]], call)


def _partition(source: Source, nodes: list[Node]) -> SourcePartition:
    inside = set(nodes)
    read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    return SourcePartition(
        nodes=nodes,
        source=source,
        input_nodes=[node for node in read if node.op != "get_attr"],
        output_nodes=[node for node in nodes if not inside.issuperset(node.users)],
        params=[node for node in read if node.op == "get_attr"],
    )
