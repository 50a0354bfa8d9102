"""Copying a graph module: a new graph and module tree over the same tensors.

Passes work on such a copy, so that a failing one leaves the caller's module as it was. This module holds the
uses of ``torch.fx`` internals that a copy without generating code needs (``Graph._codegen``,
``GraphModule._graph``); ``tests/ir/test_clone.py`` says when they move.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from .aliasing import is_write
from .attributes import constants, find_attribute, set_tensor
from .graph_module import ExportedGraphModule
from .points import remap_annotations

__all__ = ["clone_graph_module", "own_tensors"]

# Bound to the original and its graph: code compiled for it (Module.compile), a forward put in place of its
# own, and the train() and eval() of torch.export, which refuse what the tutorials' own loops call.
_BOUND_TO_ORIGINAL = frozenset({"train", "eval", "forward", "_call_impl", "_compiled_call_impl"})


def clone_graph_module(gm: GraphModule) -> GraphModule:
    """A copy of ``gm`` whose graph and modules may be changed freely; its tensors are those of ``gm``.

    Submodules are copied as containers (an observer keeps its statistics tensors, a branch of ``cond`` its
    own graph copy). Tensors that the graph itself writes into (counters, caches) are copied, so that running
    one of the two does not show in the other. Annotations point at the copy's nodes. The copy's code is not
    generated: call ``recompile``.
    """
    copies: dict[int, torch.nn.Module] = {}
    new = _clone_graph_module(gm, copies, ExportedGraphModule)
    _copy_written_tensors(new)
    return new


def own_tensors(gm: GraphModule) -> None:
    """Give ``gm`` parameters and buffers of its own, so that training it does not train its original.

    Tensors that were one under several names are one still.
    """
    copies: dict[int, torch.Tensor] = {}

    def own(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in copies:
            copy = tensor.detach().clone(memory_format=torch.preserve_format)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            copies[id(tensor)] = torch.nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return copies[id(tensor)]

    for module in gm.modules():
        for table in (module._parameters, module._buffers):
            owned: dict[str, Any] = {name: own(value) for name, value in table.items() if value is not None}
            table.update(owned)


def _copy_written_tensors(gm: GraphModule) -> None:
    if not any(map(is_write, gm.graph.nodes)):
        return
    constant = constants(gm.graph)
    for target in sorted({str(n.target) for n in gm.graph.find_nodes(op="get_attr") if n not in constant}):
        value = find_attribute(gm, target)
        if isinstance(value, torch.Tensor):
            set_tensor(gm, target, value.detach().clone())


def _clone_graph_module(
    gm: GraphModule, copies: dict[int, torch.nn.Module], kind: type[GraphModule] = GraphModule
) -> GraphModule:
    new = kind(torch.nn.Module(), Graph(), class_name=type(gm).__name__)
    fresh = set(new.__dict__)
    copies[id(gm)] = new
    # Whatever the user keeps on the module comes along; what GraphModule itself keeps is made anew, apart
    # from nn.Module's own state, which _copy_state handles.
    new.__dict__.update(
        {k: v for k, v in gm.__dict__.items() if k not in fresh and k not in _BOUND_TO_ORIGINAL}
    )
    _copy_state(gm, new, copies)
    new.meta = dict(gm.meta)
    graph, node_map = _clone_graph(gm.graph)
    remap_annotations(graph, node_map)
    new._graph = graph
    graph.owning_module = new
    return new


def _clone_module(module: torch.nn.Module, copies: dict[int, torch.nn.Module]) -> torch.nn.Module:
    done = copies.get(id(module))
    if done is not None:
        return done
    if isinstance(module, GraphModule):
        return _clone_graph_module(module, copies)
    new = module.__class__.__new__(module.__class__)
    copies[id(module)] = new
    new.__dict__.update(module.__dict__)
    _copy_state(module, new, copies)
    return new


def _copy_state(module: torch.nn.Module, new: torch.nn.Module, copies: dict[int, torch.nn.Module]) -> None:
    for key, value in module.__dict__.items():
        # Parameters, buffers, hooks, what users gather: the copy must be free to change its own.
        if isinstance(value, (dict, set, list)):
            new.__dict__[key] = value.copy()
        elif isinstance(value, tuple) and value and all(isinstance(v, torch.nn.Module) for v in value):
            # Modules referred to without being registered: what a derived observer derives from.
            new.__dict__[key] = tuple(_clone_module(v, copies) for v in value)
    new.training = module.training
    new._modules = {
        name: None if child is None else _clone_module(child, copies)
        for name, child in module._modules.items()
    }


def _clone_graph(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
    new = Graph(tracer_cls=graph._tracer_cls)
    node_map: dict[Node, Node] = {}
    for node in graph.nodes:
        # create_node walks arguments in Python, looking for sizes to warn about; most of the time of
        # Graph.graph_copy is that.
        copied = new.create_node(node.op, node.target, name=node.name, type_expr=node.type)
        copied.args = map_arg(node.args, node_map.__getitem__)
        if node.kwargs:
            copied.kwargs = map_arg(node.kwargs, node_map.__getitem__)
        copied.meta.update(node.meta)
        node_map[node] = copied
    new.set_codegen(copy.copy(graph._codegen))
    return new, node_map
