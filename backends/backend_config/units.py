"""An exported graph in the handbook's units: calls of modules, of functions and of tensor methods.

``torch.export`` writes operators; configs name what the operators come from. A call of a module class that a
config names is one unit, whatever operators it became. Any other operator is a unit of its own: a call of a
function, or, inside a module of ``torch.nn`` that no config names, a part of that module.

Functions and methods are told apart by the ATen operator that they export as and by the name that export
records, so ``torch.relu``, ``F.relu`` and ``Tensor.relu_`` are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, Final, Literal, TypeAlias

import attrs
import torch
from torch import nn
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from ...ir.canonical_operators import written_name
from ...ir.location import ModuleCall, module_stack
from ...ir.schema import OpOverload, argument, operator_name, signature
from ..selection import operator_of_function

__all__ = ["Key", "Unit", "describe_key", "key_of", "read_units", "reread"]

Key: TypeAlias = tuple[Literal["module", "function"], str]
"""What a unit is a call of: the qualified name of a module class, or the name of a function."""

_WEIGHTS: Final = frozenset({"weight", "w_ih", "w_hh"})
_BIASES: Final = frozenset({"bias", "b_ih", "b_hh"})


def key_of(kind: type[nn.Module] | Callable[..., Any] | str) -> Key:
    """The key of a module class, a torch function, or a tensor method by its name.

    Raises:
        UnknownNameError: a function that is not torch's.
    """
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return "module", f"{kind.__module__}.{kind.__qualname__}"
    return "function", kind.rstrip("_") if isinstance(kind, str) else operator_of_function(kind)


def describe_key(key: Key) -> str:
    """A short name for people: ``Conv2d``, ``linear``."""
    return key[1].rpartition(".")[2]


@attrs.frozen(eq=False)
class Unit:
    """One call of a module, function or tensor method.

    Args:
        keys: what it is a call of; the first is its name.
        module: dotted name of the module called, or of the one that the function is called in.
        scope: dotted name of the module that it is called in.
        scope_key: the key of the class of that module, for functions.
        nodes: its operators, in graph order.
        activations: ``(producer, operator)`` of each tensor that it reads, in order of its arguments.
        weights: likewise, of its weights.
        biases: likewise, of its biases.
    """

    keys: tuple[Key, ...]
    module: str
    scope: str
    scope_key: Key | None
    nodes: tuple[Node, ...]
    activations: tuple[tuple[Node, Node], ...]
    weights: tuple[tuple[Node, Node], ...]
    biases: tuple[tuple[Node, Node], ...]

    @property
    def outputs(self) -> list[Node]:
        """Those of its operators that are read outside, in graph order."""
        inside = set(self.nodes)
        return [node for node in self.nodes if not inside.issuperset(node.users)]


def read_units(graph: Graph, classes: Set[Key]) -> list[Unit]:
    """The units of a canonical graph, ordered by their last operators.

    Args:
        graph: a graph with the metadata of ``torch.export``.
        classes: the module classes that are units, by their keys; where they are nested, the outermost is.
    """
    calls: dict[str, tuple[list[ModuleCall], list[Node]]] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        stack = module_stack(node.meta)
        depth = next((i for i, call in enumerate(stack) if ("module", call.kind) in classes), None)
        if depth is None:
            calls[f"operator {node.name}"] = (stack, [node])
        else:
            calls.setdefault(f"module {stack[depth].call}", (stack[: depth + 1], []))[1].append(node)
    order = {node: i for i, node in enumerate(graph.nodes)}
    units = [
        _module_unit(stack, nodes) if name.startswith("module") else _function_unit(stack, nodes[0])
        for name, (stack, nodes) in calls.items()
    ]
    return sorted(units, key=lambda unit: order[unit.nodes[-1]])


def _module_unit(stack: list[ModuleCall], nodes: list[Node]) -> Unit:
    *_, scope, called = [ModuleCall("", "", ""), *stack]
    activations, weights, biases = _inputs(nodes, called.path)
    return Unit(
        keys=(("module", called.kind),),
        module=called.path,
        scope=scope.path,
        scope_key=None,
        nodes=tuple(nodes),
        activations=activations,
        weights=weights,
        biases=biases,
    )


def _function_unit(stack: list[ModuleCall], node: Node) -> Unit:
    scope = stack[-1] if stack else ModuleCall("", "", "")
    inside_torch = scope.kind.startswith("torch.nn.")
    keys: list[Key] = [("module", scope.kind)] if inside_torch else [("function", n) for n in _names(node)]
    activations, weights, biases = _inputs([node], scope.path if inside_torch else None)
    return Unit(
        keys=tuple(keys),
        module=scope.path,
        scope=scope.path.rpartition(".")[0] if inside_torch else scope.path,
        scope_key=None if inside_torch or not scope.kind else ("module", scope.kind),
        nodes=(node,),
        activations=activations,
        weights=weights,
        biases=biases,
    )


def reread(unit: Unit) -> Unit:
    """``unit`` with the tensors that its operators read now, in a graph that was changed around them."""
    activations, weights, biases = _inputs(unit.nodes, unit.module if unit.keys[0][0] == "module" else None)
    return attrs.evolve(unit, activations=activations, weights=weights, biases=biases)


def _names(node: Node) -> Iterator[str]:
    """What the function of ``node`` is called: by its operator, and as export recorded it."""
    called = operator_name(node.target)[1] if isinstance(node.target, OpOverload) else str(node.target)
    operator = called.rstrip("_")
    recorded: tuple[str, str] | None = node.meta.get("torch_fn")
    name = operator if recorded is None else recorded[1].rpartition(".")[2].rstrip("_")
    # Of an operator with several names, the one that was written says more.
    names = (operator, name) if written_name(node) is None else (name, operator)
    yield from dict.fromkeys(names)


_Edges: TypeAlias = tuple[tuple[Node, Node], ...]


def _inputs(nodes: Sequence[Node], module: str | None) -> tuple[_Edges, _Edges, _Edges]:
    """The edges into ``nodes``: activations, weights, biases.

    Other parameters of ``module`` are none of these, and neither are those of BatchNorm: it is folded, or
    runs in float. The parameters that functions read are activations like any other tensor.
    """
    inside = set(nodes)
    activations: list[tuple[Node, Node]] = []
    weights: dict[tuple[Node, Node], None] = {}
    biases: dict[tuple[Node, Node], None] = {}
    for node in nodes:
        is_norm = node.target is torch.ops.aten.batch_norm.default
        for name, value in _arguments(node).items():
            for leaf in pytree.tree_leaves(value):
                if not isinstance(leaf, Node) or leaf in inside:
                    continue
                own = leaf.op == "get_attr" and (module is not None or is_norm)
                tensor = leaf.meta.get("val")
                # The parameters of an LSTM come in one list.
                rank = tensor.dim() if own and name == "params" and tensor is not None else 0
                if is_norm and own:
                    continue
                if name in _WEIGHTS or rank > 1:
                    weights[leaf, node] = None
                elif name in _BIASES or rank == 1:
                    biases[leaf, node] = None
                elif not own:
                    activations.append((leaf, node))
    return tuple(activations), tuple(weights), tuple(biases)


def _arguments(node: Node) -> Mapping[str, Any]:
    if isinstance(node.target, OpOverload):
        known = signature(node.target)
        return {name: argument(node, name) for name in (*known.positional, *known.keyword_only)}
    return {str(i): value for i, value in enumerate((*node.args, *node.kwargs.values()))}
