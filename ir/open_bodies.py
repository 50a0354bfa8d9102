"""Opening bodies: what their callers hand in and never changes becomes attributes of theirs."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch.fx import GraphModule, Node

from .attributes import FreeNames, constants, drop_tensor, find_attribute, get_tensor, share_tensor
from .bodies import BodyCall, body_calls, count_runs, of_kind, placeholders_of, put_in_place
from .meta import BODY_KEY, QAT_KEY
from .schema import HigherOrderOperator
from .stages import Stage, get_stage, set_stage

__all__ = ["open_bodies"]

_INFERENCE: Final = (Stage.OBSERVED, Stage.QDQ, Stage.REFERENCE, Stage.LOWERED)
"""Where a detached operand was detached by :mod:`.close_bodies`. In what trains it is the user's."""


def open_bodies(gm: GraphModule) -> bool:
    """Open the bodies of ``gm``, and those in them; say whether a tensor was moved.

    An operand is moved when it is an attribute that nothing writes into. Bodies that are open stay so.
    """
    if not any(isinstance(node.target, HigherOrderOperator) for node in gm.graph.nodes):
        return False
    is_detached = get_stage(gm) in _INFERENCE and not gm.meta.get(QAT_KEY)
    return _open(
        gm, count_runs(gm), get_stage(gm), _without_detach if is_detached else _as_it_is, enters=True
    )


def _open(
    gm: GraphModule, runs: Counter[int], stage: Stage, seen: Callable[[Any], Any], *, enters: bool
) -> bool:
    moved = False
    opening = _Opening(gm, seen)
    for call in body_calls(gm, runs):
        for module in call.all_bodies:
            module.meta[BODY_KEY] = enters and any(module is entered for entered in call.entered)
            set_stage(module, stage)
        moved |= opening.take_in(call)
        for module in call.all_bodies:
            _say_where_it_is(module, call.node)
            moved |= _open(module, runs, stage, seen, enters=module.meta[BODY_KEY])
    return moved


def _say_where_it_is(module: GraphModule, caller: Node) -> None:
    """Complete where operators of ``module`` come from, which non-strict export does not say of bodies.

    They are of the module whose weight they read, or else of that which ``caller`` is of.
    """
    stack = caller.meta.get("nn_module_stack") or {}
    for node in module.graph.nodes:
        if node.op == "call_function" and not node.meta.get("nn_module_stack"):
            weights = (str(n.target) for n in node.all_input_nodes if n.op == "get_attr")
            path = next((target.rpartition(".")[0] for target in weights), "")
            node.meta["nn_module_stack"] = {**stack, path: (path, "")} if path else stack


class _Opening:
    """Moves constants of one graph module into the bodies that it runs.

    Args:
        gm: whose bodies they are.
        seen: gives an operand without what closing put before it.
    """

    def __init__(self, gm: GraphModule, seen: Callable[[Any], Any]) -> None:
        self.gm = gm
        self.seen = seen
        self.reads = Counter(str(node.target) for node in gm.graph.find_nodes(op="get_attr"))

    def take_in(self, call: BodyCall) -> bool:
        """Let the bodies of ``call`` have their constants; say whether an operand changed."""
        operands = [self.seen(operand) for operand in call.constants]
        inside = [placeholders_of(module)[-len(operands) :] if operands else [] for module in call.all_bodies]
        taken = [
            i
            for i, operand in enumerate(operands)
            if self._is_constant_tensor(operand)
            and not any(user.op == "output" for placeholders in inside for user in placeholders[i].users)
        ]
        for module, placeholders in zip(call.all_bodies, inside, strict=True):
            self._give(module, {placeholders[i]: operands[i] for i in taken})
        detached = [n for n in call.node.all_input_nodes if self.seen(n) is not n]
        for at in call.form.operands[:-1]:
            values = cast("Sequence[Any]", call.node.args[at])
            call.node.update_arg(at, of_kind(values, map(self.seen, values)))
        call.replace_constants([operand for i, operand in enumerate(operands) if i not in set(taken)])
        for node in detached:
            if not node.users:
                self.gm.graph.erase_node(node)
        for source in dict.fromkeys(operands[i] for i in taken):
            self._drop_unread(source)
        return bool(taken or detached)

    @functools.cached_property
    def _constants(self) -> frozenset[Node]:
        """Those before anything is moved: a call that takes fewer operands shares no more memory."""
        return constants(self.gm.graph)

    def _is_constant_tensor(self, operand: Any) -> bool:
        if not (isinstance(operand, Node) and operand.op == "get_attr"):
            return False
        value = find_attribute(self.gm, str(operand.target))
        return isinstance(value, torch.Tensor) and operand in self._constants

    def _give(self, module: GraphModule, sources: Mapping[Node, Node]) -> None:
        """Let ``module`` read tensors of its own, those that ``sources`` read, in place of placeholders."""
        graph, names = module.graph, FreeNames(module)
        first = next(node for node in graph.nodes if node.op != "placeholder")
        own: dict[Node, Node] = {}
        for placeholder, source in sources.items():
            if not placeholder.users:
                graph.erase_node(placeholder)
                continue
            name = str(source.target)
            if find_attribute(module, name) is not get_tensor(self.gm, name):
                name = names.fresh(name)
                share_tensor(self.gm, str(source.target), module, name)
            with graph.inserting_before(first):
                own[placeholder] = graph.get_attr(name)
        put_in_place(graph, own)

    def _drop_unread(self, source: Node) -> None:
        if not source.users:
            target = str(source.target)
            self.gm.graph.erase_node(source)
            self.reads[target] -= 1
            if not self.reads[target]:
                drop_tensor(self.gm, target)


def _is_detach(node: object) -> bool:
    return isinstance(node, Node) and node.target is torch.ops.aten.detach.default


def _without_detach(operand: Any) -> Any:
    while _is_detach(operand):
        operand = operand.args[0]
    return operand


def _as_it_is(operand: Any) -> Any:
    return operand
