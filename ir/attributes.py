"""Tensors of a graph module by the dotted targets of its ``get_attr`` nodes.

A tensor is replaced, never written into: passes work on a copy of the module tree that shares its tensors
with the caller's model.
"""

from __future__ import annotations

import itertools

import attrs
import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from ..errors import GraphInputError, UnknownNameError
from .aliasing import aliased_inputs, written_inputs, written_values
from .location import locate
from .wording import with_article

__all__ = [
    "AttributeFinder",
    "FreeNames",
    "constant_value",
    "constants",
    "delete_unused",
    "drop_tensor",
    "evaluate",
    "find_attribute",
    "get_attribute",
    "get_tensor",
    "is_constant",
    "nested_graph_modules",
    "set_tensor",
    "share_tensor",
]


def _member(value: object, name: str) -> object | None:
    """``getattr`` of a module without the detour over its ``__getattr__``; None if there is nothing."""
    if isinstance(value, torch.nn.Module):
        for table in (value._parameters, value._buffers, value._modules):
            if name in table:
                return table[name]
    return getattr(value, name, None)


def find_attribute(root: torch.nn.Module, target: str) -> object | None:
    """What ``root`` has at the dotted ``target``; None if there is nothing."""
    value: object | None = root
    for name in target.split("."):
        value = _member(value, name)
        if value is None:
            return None
    return value


class AttributeFinder:
    """Finds many attributes of one module tree, walking to each of its modules once.

    Args:
        root: the tree; what was found is out of date when its modules change.
    """

    def __init__(self, root: torch.nn.Module) -> None:
        self._modules: dict[str, object | None] = {"": root}

    def find(self, target: str) -> object | None:
        """What is at the dotted ``target``; None if there is nothing."""
        prefix, _, name = target.rpartition(".")
        if prefix not in self._modules:
            self._modules[prefix] = self.find(prefix)
        parent = self._modules[prefix]
        return None if parent is None else _member(parent, name)


def get_attribute(root: torch.nn.Module, target: str) -> object:
    """What ``root`` has at the dotted ``target``.

    Raises:
        UnknownNameError: there is nothing.
    """
    value = find_attribute(root, target)
    if value is None:
        raise UnknownNameError(
            f"the module has no attribute {target!r}",
            hint="nodes must go before the attributes they read",
        )
    return value


def get_tensor(gm: torch.nn.Module, target: str) -> torch.Tensor:
    """The parameter, buffer or constant at the dotted ``target``.

    Raises:
        UnknownNameError: there is nothing.
        GraphInputError: it is not a tensor.
    """
    value = get_attribute(gm, target)
    if not isinstance(value, torch.Tensor):
        raise GraphInputError(
            f"attribute {target!r} is {with_article(type(value).__name__)}, not a tensor",
            hint="submodules are reached with get_attribute",
        )
    return value


def set_tensor(
    gm: torch.nn.Module, target: str, tensor: torch.Tensor, *, like: torch.Tensor | None = None
) -> None:
    """Put ``tensor`` at the dotted ``target``, in place of what stood there; missing parents are created.

    ``like``, by default the tensor it replaces, says what it becomes: a parameter with the same
    ``requires_grad`` when ``like`` is a parameter and ``tensor`` is floating-point, a buffer otherwise. A
    replaced buffer stays persistent or not.

    Raises:
        GraphInputError: a part of ``target`` is taken by something that is neither a module nor a tensor.
    """
    owner, name = _owner(gm, target)
    old = getattr(owner, name, None)
    if old is not None and not isinstance(old, torch.Tensor):
        raise _taken(target, name, old)

    like = old if like is None else like
    persistent = name not in owner._non_persistent_buffers_set
    if hasattr(owner, name):
        delattr(owner, name)
    if isinstance(like, torch.nn.Parameter) and (tensor.is_floating_point() or tensor.is_complex()):
        parameter = torch.nn.Parameter(tensor.detach(), requires_grad=like.requires_grad)
        owner.register_parameter(name, parameter)
    else:
        owner.register_buffer(name, tensor.detach(), persistent=persistent)


def _owner(gm: torch.nn.Module, target: str) -> tuple[torch.nn.Module, str]:
    """The module that what is at ``target`` belongs to, created if it is missing, and its name there."""
    *parents, name = target.split(".")
    owner = gm
    for part in parents:
        child = getattr(owner, part, None)
        if child is None:
            child = torch.nn.Module().train(gm.training)
            owner.add_module(part, child)
        if not isinstance(child, torch.nn.Module):
            raise _taken(target, part, child)
        owner = child
    return owner, name


def share_tensor(source: torch.nn.Module, target: str, destination: torch.nn.Module, name: str) -> None:
    """Put the very tensor that ``source`` has at ``target`` at ``name`` of ``destination``, which is free.

    It is a parameter, a persistent buffer, a buffer or a plain constant there as it is here.

    Raises:
        GraphInputError: a part of ``name`` is taken by something that is no module.
    """
    tensor = get_tensor(source, target)
    owner, old_name = _owner(source, target)
    new_owner, new_name = _owner(destination, name)
    if old_name in owner._buffers:
        persistent = old_name not in owner._non_persistent_buffers_set
        new_owner.register_buffer(new_name, tensor, persistent=persistent)
    else:
        setattr(new_owner, new_name, tensor)  # registers parameters


def drop_tensor(gm: torch.nn.Module, target: str) -> None:
    """Remove the tensor at ``target``, and the containers around it that are empty then."""
    owner, name = _owner(gm, target)
    delattr(owner, name)
    path, _, name = target.rpartition(".")
    while (
        path
        and type(owner) is torch.nn.Module
        and not (owner._parameters or owner._buffers or owner._modules)
    ):
        owner, name = _owner(gm, path)
        delattr(owner, name)
        path = path.rpartition(".")[0]


def _taken(target: str, part: str, value: object) -> GraphInputError:
    return GraphInputError(
        f"no tensor can be put at {target!r}: {part!r} is {with_article(type(value).__name__)} already",
        hint="ask FreeNames for a name that is free",
    )


class FreeNames:
    """Hands out attribute names that a module does not use.

    The names in use are counted through at most once per prefix, so that n names cost O(n).
    """

    def __init__(self, gm: torch.nn.Module) -> None:
        self._root = gm
        self._given: set[str] = set()
        self._suffixes: dict[str, itertools.count[int]] = {}

    def fresh(self, prefix: str) -> str:
        """``prefix`` itself if that is free, else the first free one of ``prefix_1``, ``prefix_2``, …"""
        suffixes = self._suffixes.setdefault(prefix, itertools.count())
        for n in suffixes:
            name = f"{prefix}_{n}" if n else prefix
            if name not in self._given and not self._exists(name):
                break
        else:  # a count has no end
            raise AssertionError
        self._given.add(name)
        return name

    def _exists(self, target: str) -> bool:
        parents, _, name = target.rpartition(".")
        owner = find_attribute(self._root, parents) if parents else self._root
        if not isinstance(owner, torch.nn.Module):
            return owner is not None
        # A name may be taken by None, as the bias of a convolution without one is, and by a method.
        tables = (owner._parameters, owner._buffers, owner._modules, owner.__dict__)
        return any(name in table for table in tables) or hasattr(type(owner), name)


def is_constant(node: Node) -> bool:
    """Whether ``node`` reads a tensor of the module that its graph never writes into.

    Writes are followed through views of what ``node`` reads. A write through another ``get_attr`` node of the
    same target is not seen: the ``normalize`` pass leaves one node per target.
    """
    if node.op != "get_attr":
        return False
    seen = {node}
    todo = [node]
    while todo:
        value = todo.pop()
        for user in value.users:
            if value in written_inputs(user):
                return False
            if user not in seen and value in aliased_inputs(user):
                seen.add(user)
                todo.append(user)
    return True


def constants(graph: Graph) -> frozenset[Node]:
    """The nodes of ``graph`` of which :func:`is_constant` is true.

    To ask about each by itself costs a way through all that may share its memory: the results of a body of
    ``cond`` may share that of each of its operands, and the results of those behind it too.
    """
    written = written_values(graph)
    return frozenset(node for node in graph.find_nodes(op="get_attr") if node not in written)


def constant_value(gm: torch.nn.Module, node: Node) -> torch.Tensor:
    """The tensor that a constant ``node`` reads (see :func:`is_constant`), detached.

    Raises:
        GraphInputError: ``node`` is not constant, or what it reads is not a tensor.
    """
    if not is_constant(node):
        raise GraphInputError(
            "the value of a node was asked for that is not constant",
            where=locate(node),
            hint="check is_constant first",
        )
    return get_tensor(gm, str(node.target)).detach()


def evaluate(gm: torch.nn.Module, node: Node) -> torch.Tensor:
    """What the call ``node`` returns, whose inputs are all constant (see :func:`is_constant`)."""

    def value(source: Node) -> torch.Tensor:
        return get_tensor(gm, str(source.target)).detach()

    args, kwargs = map_arg((node.args, node.kwargs), value)
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def nested_graph_modules(gm: GraphModule) -> tuple[GraphModule, ...]:
    """The graph modules that nodes of ``gm`` refer to (bodies of ``cond``, ``while_loop``, …), transitively.

    In the order their references stand in the graphs, each once, without ``gm`` itself.
    """
    found = {id(gm): gm}
    todo = [gm]
    while todo:
        owner = todo.pop(0)
        for node in owner.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                value = get_attribute(owner, node.target)
                if isinstance(value, GraphModule) and id(value) not in found:
                    found[id(value)] = value
                    todo.append(value)
    del found[id(gm)]
    return tuple(found.values())


@attrs.define
class _Usage:
    """What nodes refer to: per container the names in use, and modules to keep as they are."""

    names: dict[int, set[str]] = attrs.field(factory=dict[int, set[str]])
    whole: set[int] = attrs.field(factory=set[int])

    def note(self, owner: GraphModule, target: str) -> None:
        value: object = owner
        for name in target.split("."):
            self.names.setdefault(id(value), set()).add(name)
            value = getattr(value, name)
        if isinstance(value, torch.nn.Module) and not isinstance(value, GraphModule):
            self.whole.add(id(value))


def delete_unused(gm: GraphModule) -> tuple[str, ...]:
    """Remove the parameters, buffers, constants and submodules that no node refers to any more.

    What counts is the name a node reads: of a tensor with two names the unread one goes, the tensor itself
    stays. A submodule that a ``call_module`` node calls stays as it is; a nested graph module is kept, and
    keeps what its own graph refers to.

    Returns:
        The dotted names removed, those of a module before those of its submodules.
    """
    usage = _Usage()
    for owner in (gm, *nested_graph_modules(gm)):
        for node in owner.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                usage.note(owner, node.target)
    removed: list[str] = []
    visited: set[int] = set()

    def sweep(module: torch.nn.Module, path: str) -> None:
        if id(module) in usage.whole or id(module) in visited:
            return
        visited.add(id(module))
        used = usage.names.get(id(module), set())
        plain = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
        for name in (*module._parameters, *module._buffers, *plain, *module._modules):
            if name not in used:
                delattr(module, name)
                removed.append(path + name)
        for name, child in module._modules.items():
            if child is not None:
                sweep(child, f"{path}{name}.")

    sweep(gm, "")
    return tuple(removed)
