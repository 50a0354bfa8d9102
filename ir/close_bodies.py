"""Closing bodies: their tensors are those of their callers again, which hand them in."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs
import torch
from torch.fx import GraphModule, Node

from ..errors import PassFailedError
from .attributes import (
    FreeNames,
    constants,
    drop_tensor,
    find_attribute,
    get_tensor,
    nested_graph_modules,
    share_tensor,
)
from .bodies import BodyCall, body_calls, count_runs, of_kind, placeholders_of, put_in_place
from .control_flow import Body, bodies
from .location import locate
from .meta import BODY_KEY, ORIGIN_KEY, STAGE_KEY
from .operators import is_precision_change

__all__ = ["close_bodies"]


def close_bodies(gm: GraphModule) -> None:
    """Close the open bodies of ``gm``, and those in them.

    Operands of bodies that quantize or observe are detached: in low precision there are no gradients, and to
    find them torch runs a body on tensors without values, which observers cannot look at.

    Raises:
        PassFailedError: a body is open, and is not called as when it was opened.
    """
    if _open(gm) is None:
        return
    runs = count_runs(gm)
    _close(gm, runs, is_model=True)
    left = _open(gm)
    if left is not None:
        call = BodyCall.of(left.owner, left.caller, runs)
        raise PassFailedError(
            f"a pass changed a call of {left.caller.target} so that its body {left.name} cannot be closed"
            + (f": {call}" if isinstance(call, str) else ""),
            where=locate(left.caller),
            hint="leave the bodies of a call and the number of its operands as they are; the instrument "
            "DiffToFolder writes down what each pass changed",
        )


def _open(gm: GraphModule) -> Body | None:
    return next((body for body in bodies(gm) if BODY_KEY in body.module.meta), None)


@attrs.define(eq=False)
class _Caller:
    """A graph module whose calls are closed.

    Args:
        gm: the module.
        readers: by the names of its tensors, the first node that reads each.
    """

    gm: GraphModule
    readers: dict[str, Node]
    names: FreeNames

    @staticmethod
    def of(gm: GraphModule) -> _Caller:
        reads = reversed(list(gm.graph.find_nodes(op="get_attr")))
        return _Caller(gm, {str(node.target): node for node in reads}, FreeNames(gm))

    @functools.cached_property
    def written(self) -> frozenset[str]:
        """The names of the tensors that calls write into; open bodies only read theirs."""
        constant = constants(self.gm.graph)
        return frozenset(str(n.target) for n in self.gm.graph.find_nodes(op="get_attr") if n not in constant)


def _close(gm: GraphModule, runs: Counter[int], *, is_model: bool) -> None:
    caller = _Caller.of(gm)
    for call in body_calls(gm, runs):
        if BODY_KEY not in call.all_bodies[0].meta:
            continue
        for module in call.all_bodies:
            _close(module, runs, is_model=False)
        _hand_in(caller, call)
        if is_model and any(map(_is_quantized, call.all_bodies)):
            _detach_operands(gm, call)
        for module in call.all_bodies:
            module.meta.pop(BODY_KEY)
            module.meta.pop(STAGE_KEY)


def _hand_in(caller: _Caller, call: BodyCall) -> None:
    gm, readers = caller.gm, caller.readers
    # By the place of a tensor in gm: who reads it, by the number of the body.
    own: dict[str, dict[int, list[Node]]] = {}
    for i, module in enumerate(call.all_bodies):
        for node in module.graph.find_nodes(op="get_attr"):
            if isinstance(find_attribute(module, str(node.target)), torch.Tensor):
                target = _place(caller, module, str(node.target))
                own.setdefault(target, {}).setdefault(i, []).append(node)
    some = {target: next(iter(nodes.values()))[0] for target, nodes in own.items()}
    for target, node in some.items():
        readers[target] = _reader(gm, call.node, target, readers.get(target), node)
    call.replace_constants([*call.constants, *(readers[target] for target in own)])
    for i, module in enumerate(call.all_bodies):
        _read_operands(module, {target: (nodes.get(i, []), some[target]) for target, nodes in own.items()})


def _read_operands(module: GraphModule, operands: Mapping[str, tuple[list[Node], Node]]) -> None:
    """Let ``module`` read operands, behind those it has, in place of tensors of its own.

    Args:
        module: a body.
        operands: by their names, the nodes that read the tensor there, and a node that reads it anywhere.
    """
    graph = module.graph
    # Other nodes may stand between placeholders: the observer of one stands right behind it.
    last = (placeholders_of(module) or [None])[-1]
    new: dict[Node, Node] = {}
    for name, (nodes, like) in operands.items():
        with graph.inserting_before(next(iter(graph.nodes))) if last is None else graph.inserting_after(last):
            placeholder = last = graph.placeholder(name.replace(".", "_"))
        # In generated code it is assigned to its name, which is not to be the argument of another.
        placeholder.target = placeholder.name
        placeholder.meta = {k: v for k, v in like.meta.items() if k != ORIGIN_KEY}
        new.update(dict.fromkeys(nodes, placeholder))
    targets = dict.fromkeys(str(node.target) for node in new)
    put_in_place(graph, new)
    for target in targets:
        drop_tensor(module, target)


def _place(caller: _Caller, module: GraphModule, name: str) -> str:
    """Where the caller has the tensor that ``module`` has at ``name``; if nowhere, it is put there."""
    tensor, there = get_tensor(module, name), find_attribute(caller.gm, name)
    if there is tensor:
        return name
    if isinstance(there, torch.Tensor) and name not in caller.written and _is_equal(there, tensor):
        # A weight in two bodies, say, that was quantized in both.
        return name
    free = caller.names.fresh(name)
    share_tensor(module, name, caller.gm, free)
    return free


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    kinds = [(t.dtype, t.shape, t.device, t.layout) for t in (one, other)]
    has_values = one.layout is torch.strided and not one.is_meta
    return kinds[0] == kinds[1] and has_values and torch.equal(one, other)


def _reader(gm: GraphModule, caller: Node, target: str, known: Node | None, inside: Node) -> Node:
    if known is not None and known < caller:
        return known
    with gm.graph.inserting_before(caller):
        node = gm.graph.get_attr(target)
    node.meta = {"val": inside.meta["val"]} if "val" in inside.meta else {}
    if known is not None:
        put_in_place(gm.graph, {known: node})
    return node


def _is_quantized(module: GraphModule) -> bool:
    graphs = (module.graph, *(inner.graph for inner in nested_graph_modules(module)))
    return any(
        node.op == "call_module" or is_precision_change(node) for graph in graphs for node in graph.nodes
    )


def _detach_operands(gm: GraphModule, call: BodyCall) -> None:
    graph = call.node.graph
    made: dict[Node, Node] = {}

    def detached(operand: Any) -> Any:
        value = operand.meta.get("val") if isinstance(operand, Node) else None
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            return operand
        if operand.op == "get_attr" and not get_tensor(gm, str(operand.target)).requires_grad:
            return operand
        if operand not in made:
            with graph.inserting_before(call.node):
                made[operand] = graph.call_function(torch.ops.aten.detach.default, (operand,))
            made[operand].meta = {"val": value, ORIGIN_KEY: ("close-bodies", None)}
        return made[operand]

    for at in call.form.operands:
        operands = cast("Sequence[Any]", call.node.args[at])
        call.node.update_arg(at, of_kind(operands, map(detached, operands)))
