"""Closing bodies: their tensors are those of their callers again, which hand them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch.fx import GraphModule, Node

from .attributes import (
    FreeNames,
    drop_tensor,
    find_attribute,
    get_tensor,
    is_constant,
    nested_graph_modules,
    share_tensor,
)
from .bodies import BodyCall, body_calls, count_runs, of_kind, placeholders_of, put_in_place
from .control_flow import bodies
from .meta import BODY_KEY, ORIGIN_KEY, STAGE_KEY
from .operators import is_precision_change

__all__ = ["close_bodies"]


def close_bodies(gm: GraphModule) -> None:
    """Close the open bodies of ``gm``, and those in them.

    Operands of bodies that quantize or observe are detached: in low precision there are no gradients, and to
    find them torch runs a body on tensors without values, which observers cannot look at.
    """
    if any(BODY_KEY in body.module.meta for body in bodies(gm)):
        _close(gm, count_runs(gm), is_model=True)


def _close(gm: GraphModule, runs: Counter[int], *, is_model: bool) -> None:
    names = FreeNames(gm)
    readers = {str(node.target): node for node in reversed(list(gm.graph.find_nodes(op="get_attr")))}
    for call in body_calls(gm, runs):
        if BODY_KEY not in call.all_bodies[0].meta:
            continue
        for module in call.all_bodies:
            _close(module, runs, is_model=False)
        _hand_in(gm, call, names, readers)
        if is_model and any(map(_is_quantized, call.all_bodies)):
            _detach_operands(gm, call)
        for module in call.all_bodies:
            module.meta.pop(BODY_KEY)
            module.meta.pop(STAGE_KEY)


def _hand_in(gm: GraphModule, call: BodyCall, names: FreeNames, readers: dict[str, Node]) -> None:
    # By the place of a tensor in gm: who reads it, by the number of the body.
    own: dict[str, dict[int, list[Node]]] = {}
    for i, module in enumerate(call.all_bodies):
        for node in module.graph.find_nodes(op="get_attr"):
            if isinstance(find_attribute(module, str(node.target)), torch.Tensor):
                target = _place(gm, module, str(node.target), names)
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


def _place(gm: GraphModule, module: GraphModule, name: str, names: FreeNames) -> str:
    """Where ``gm`` has the tensor that ``module`` has at ``name``; if nowhere, it is put there."""
    tensor, there = get_tensor(module, name), find_attribute(gm, name)
    if there is tensor:
        return name
    if isinstance(there, torch.Tensor) and _is_equal_constant(gm, name, there, tensor):
        # A weight in two bodies, say, that was quantized in both.
        return name
    free = names.fresh(name)
    share_tensor(module, name, gm, free)
    return free


def _is_equal_constant(gm: GraphModule, name: str, one: torch.Tensor, other: torch.Tensor) -> bool:
    kinds = [(t.dtype, t.shape, t.device, t.layout) for t in (one, other)]
    if kinds[0] != kinds[1] or one.is_meta or one.layout is not torch.strided or not torch.equal(one, other):
        return False
    return all(map(is_constant, gm.graph.find_nodes(op="get_attr", target=name)))


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
