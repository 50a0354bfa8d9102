"""Capture of torch functions as ATen patterns, by the same export as the models they are looked for in."""

from __future__ import annotations

import functools
import operator
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch._ops import OpOverload  # the class of every ATen operator has no public name
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Target
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from ..ir.aliasing import aliased_inputs, find_aliases, written_inputs
from ..ir.canonical_operators import canonical_call
from ..ir.clone import clone_graph_module
from ..ir.location import locate
from ..ir.schema import complete_arguments

__all__ = ["canonical_pattern", "capture"]

# Export is not made for several threads at once, so the lock is held over it, not only over the cache.
_lock = threading.RLock()
_captured: weakref.WeakKeyDictionary[Callable[..., Any], dict[Hashable, GraphModule]] = (
    weakref.WeakKeyDictionary()
)


class _Call(torch.nn.Module):
    """The module around a function that ``torch.export`` asks for."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def capture(function: Callable[..., Any], example_inputs: tuple[Any, ...]) -> GraphModule:
    """The canonical ATen graph of ``function``, exported once in a process for each form of the inputs.

    Args:
        function: takes tensors; returns ``output``, ``(output, …)`` or ``(output, …, {"name": tensor, …})``,
            whose dict gives names to tensors of the pattern.
        example_inputs: tensors of any shapes and dtypes that ``function`` accepts, with any values. Arguments
            that are not tensors become literals of the graph.

    Returns:
        A graph module shared by all who ask for it: read it, never change it.

    Raises:
        CaptureError: ``function`` is a module, or does not export with these inputs.
    """
    if isinstance(function, torch.nn.Module):
        raise CaptureError(
            f"{type(function).__name__} is a module, and a module may change after it was captured",
            hint="pass a function, or torch.export.export(module, inputs).module()",
        )
    form = _form(example_inputs)
    with _lock:
        try:
            graphs = _captured.setdefault(function, {})
        except TypeError:
            # What cannot be hashed or weakly referenced has no identity to be remembered by.
            graphs = {}
        if form not in graphs:
            graphs[form] = canonical_pattern(_export(function, example_inputs))
        return graphs[form]


def _form(example_inputs: tuple[Any, ...]) -> Hashable:
    """What a captured graph depends on of its example inputs."""
    leaves, spec = pytree.tree_flatten(example_inputs)
    return repr(spec), tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.device)
        if isinstance(leaf, torch.Tensor)
        else (type(leaf), repr(leaf))
        for leaf in leaves
    )


def _export(function: Callable[..., Any], example_inputs: tuple[Any, ...]) -> GraphModule:
    # Export takes a tensor that is passed twice for one input.
    inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), example_inputs)
    try:
        return torch.export.export(_Call(function), inputs, strict=False).module()
    except Exception as error:
        # Export raises whatever the function, or any operator in it, does.
        name = getattr(function, "__qualname__", repr(function))
        raise CaptureError(
            f"{name} does not export as a pattern: {type(error).__name__}: {error}",
            hint="pass example inputs that the function accepts when it is called",
        ) from error


def canonical_pattern(gm: GraphModule) -> GraphModule:
    """A copy of an exported pattern in the form that the ``normalize`` pass gives to models.

    Operators are canonical, functional and have all their arguments; there is no dead code and no check of
    the inputs. Unlike in a model, writes into inputs are made functional too: what a pattern takes is seldom
    the input of the whole graph. Tensors are shared with ``gm``.

    Raises:
        CaptureError: an operator writes in place into memory that a view of it shares.
    """
    canonical = clone_graph_module(gm)
    graph = canonical.graph
    for node in graph.find_nodes(op="call_module", target="_guards_fn"):
        graph.erase_node(node)
    for node in graph.nodes:
        complete_arguments(node)
        if (call := canonical_call(node)) is not None:
            node.target, node.args, node.kwargs = call
    _make_functional(graph)
    graph.eliminate_dead_code()
    canonical.recompile()
    return canonical


def _make_functional(graph: Graph) -> None:
    aliases = find_aliases(graph)
    viewed: set[Node] = set()
    for node in graph.nodes:
        written = written_inputs(node)
        if not viewed.isdisjoint(aliases.group(value) for value in written):
            raise CaptureError(
                "the pattern writes in place into memory that a view of it shares",
                where=locate(node),
                hint="write the pattern with operators that return new tensors",
            )
        form = _functional_form(node.target) if written else None
        if form is not None:
            node.target = form
            written[0].replace_all_uses_with(node, delete_user_cb=functools.partial(operator.lt, node))
        elif aliased_inputs(node):
            viewed.add(aliases.group(node))


def _functional_form(target: Target) -> OpOverload | None:
    """``aten.relu`` for ``aten.relu_``; None for what is not in-place, or only in-place."""
    if not isinstance(target, OpOverload) or torch.Tag.inplace not in target.tags:
        return None
    packet = getattr(torch.ops.aten, target._opname.removesuffix("_"), None)
    form = getattr(packet, target._overloadname, None)
    return form if isinstance(form, OpOverload) and not form._schema.is_mutable else None
