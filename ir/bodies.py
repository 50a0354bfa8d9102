"""Bodies that passes go into: those of ``cond``, ``while_loop``, ``scan`` and ``map``.

``torch.export`` gives a body no tensors of its own: its weights are operands, which its caller hands in. So a
body cannot say what is a weight. While passes run it is *open*: operands that are constants of the caller are
attributes of the body, by the same names, and the body reads like a model. Closing hands them in again, so
that what leaves a verb has the form that ``torch.export`` and ``torch.compile`` know, and the names of
checkpoints.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, cast

import attrs
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
from .control_flow import Body, bodies
from .ledger import Ledger
from .meta import ANNOTATION_KEY, BODY_KEY, ORIGIN_KEY, STAGE_KEY
from .operators import is_float_operator, is_precision_change
from .points import remap_annotations
from .schema import HigherOrderOperator
from .stages import get_stage, set_stage

__all__ = ["close_bodies", "explain_bodies", "is_body", "open_bodies", "opened_bodies"]


@attrs.frozen
class _Form:
    """How an operator is called.

    Args:
        bodies: the arguments that are bodies which passes may go into.
        beside: those that take the same operands, and stay as they are.
        operands: the arguments that are lists of operands, in the order of the placeholders. Those of the
            last are the same at every step.
    """

    bodies: tuple[int, ...]
    operands: tuple[int, ...]
    beside: tuple[int, ...] = ()


_FORMS: Final = {
    "cond": _Form(bodies=(1, 2), operands=(3,)),
    "while_loop": _Form(bodies=(1,), operands=(2, 3), beside=(0,)),
    "scan": _Form(bodies=(0,), operands=(1, 2, 3)),
    "map_impl": _Form(bodies=(0,), operands=(1, 2)),
}


def is_body(gm: GraphModule) -> bool:
    """Whether ``gm`` is an open body, and not the model."""
    return BODY_KEY in gm.meta


def opened_bodies(gm: GraphModule) -> tuple[Body, ...]:
    """The open bodies of ``gm`` that passes go into, each before the bodies in it."""
    return tuple(body for body in bodies(gm) if body.module.meta.get(BODY_KEY))


def explain_bodies(gm: GraphModule, ledger: Ledger) -> None:
    """Enter that float operators in bodies of ``gm`` that are not open stay float (``control-flow-body``).

    What is entered already stands.
    """
    runs = _runs(gm)
    for body in bodies(gm):
        if body.module.meta.get(BODY_KEY):
            continue
        inside = ledger.inside(body.name, body.callers)
        for node in body.module.graph.nodes:
            if is_float_operator(node) and node not in inside:
                why = _why_closed(body, runs)
                detail = f"in a body of {body.caller.target} (%{body.caller.name}): {why}"
                inside.missed("control-flow-body", node, detail)


def _why_closed(body: Body, runs: Counter[int]) -> str:
    call = _Call.of(body.owner, body.caller, runs)
    if isinstance(call, str):
        return call
    if any(module is body.module for module in call.beside):
        return "it decides how often the loop runs"
    return "the pipeline stays out of bodies, as that of training does"


@attrs.frozen(eq=False)
class _Call:
    """A call whose bodies can be opened.

    Args:
        form: of its operator.
        node: the call.
        entered: the bodies that passes go into.
        beside: the others, which take the same operands.
    """

    form: _Form
    node: Node
    entered: tuple[GraphModule, ...]
    beside: tuple[GraphModule, ...]

    @staticmethod
    def of(gm: GraphModule, node: Node, runs: Counter[int]) -> _Call | str:
        """The call ``node`` of ``gm``, or why its bodies stay closed."""
        target = node.target
        assert isinstance(target, HigherOrderOperator)
        form = _FORMS.get(target.name())
        if form is None:
            return f"no pass goes into those of {target.name()}"
        try:
            entered = tuple(_body_at(gm, node.args[i]) for i in form.bodies)
            beside = tuple(_body_at(gm, node.args[i]) for i in form.beside)
            operands = sum(len(cast("Sequence[Any]", node.args[i])) for i in form.operands)
        except (IndexError, TypeError):
            return "it is not called the way torch.export does"
        found = [*entered, *beside]
        if any(runs[id(module)] > 1 for module in found):
            return "it is run from several places, and may get other weights at each"
        if any(len(_placeholders(module)) != operands for module in found):
            return "it is not called the way torch.export does"
        return _Call(form, node, entered, beside)

    @property
    def all_bodies(self) -> tuple[GraphModule, ...]:
        return (*self.entered, *self.beside)

    @property
    def constants(self) -> list[Any]:
        """The operands that are the same at every step."""
        return list(cast("Sequence[Any]", self.node.args[self.form.operands[-1]]))

    def replace_constants(self, operands: list[Any]) -> None:
        at = self.form.operands[-1]
        self.node.update_arg(at, _of_kind(self.node.args[at], operands))


def _of_kind(operands: object, values: Iterable[Any]) -> tuple[Any, ...] | list[Any]:
    """``values`` as the tuple or list that ``operands`` are."""
    return tuple(values) if isinstance(operands, tuple) else list(values)


def _body_at(gm: GraphModule, argument: object) -> GraphModule:
    module = find_attribute(gm, str(argument.target)) if isinstance(argument, Node) else None
    if not isinstance(module, GraphModule):
        raise TypeError
    return module


def _placeholders(module: GraphModule) -> list[Node]:
    return list(module.graph.find_nodes(op="placeholder"))


def _runs(gm: GraphModule) -> Counter[int]:
    """How often each body is handed to an operator, by the identity of its graph module."""
    counts: Counter[int] = Counter()
    for owner in (gm, *nested_graph_modules(gm)):
        for node in owner.graph.nodes:
            if isinstance(node.target, HigherOrderOperator):
                for argument in node.args:
                    if isinstance(argument, Node) and argument.op == "get_attr":
                        counts[id(find_attribute(owner, str(argument.target)))] += 1
    return counts


def _calls(gm: GraphModule, runs: Counter[int]) -> Iterator[_Call]:
    for node in list(gm.graph.nodes):
        if isinstance(node.target, HigherOrderOperator):
            call = _Call.of(gm, node, runs)
            if isinstance(call, _Call):
                yield call


# Opening.


def open_bodies(gm: GraphModule) -> bool:
    """Open the bodies of ``gm``, and those in them; say whether a tensor was moved.

    An operand is moved when it is an attribute that nothing writes into. Bodies that are open stay so.
    """
    if not any(isinstance(node.target, HigherOrderOperator) for node in gm.graph.nodes):
        return False
    return _open(gm, _runs(gm), get_stage(gm))


def _open(gm: GraphModule, runs: Counter[int], stage: Any) -> bool:
    moved = False
    constant = functools.cache(is_constant)
    for call in _calls(gm, runs):
        for module in call.all_bodies:
            module.meta[BODY_KEY] = any(module is entered for entered in call.entered)
            set_stage(module, stage)
            _inherit_place(module, call.node)
        moved |= _take_in(gm, call, constant)
        for module in call.all_bodies:
            moved |= _open(module, runs, stage)
    return moved


def _inherit_place(module: GraphModule, caller: Node) -> None:
    """Bodies are traced apart, and non-strict export does not write which module they are of."""
    stack = caller.meta.get("nn_module_stack")
    if stack:
        for node in module.graph.nodes:
            if node.op == "call_function" and not node.meta.get("nn_module_stack"):
                node.meta["nn_module_stack"] = stack


def _take_in(gm: GraphModule, call: _Call, constant: Callable[[Node], bool]) -> bool:
    graph = gm.graph
    operands = call.constants
    inside = [_placeholders(module)[-len(operands) :] if operands else [] for module in call.all_bodies]
    kept: list[Any] = []
    sources: list[Node] = []
    for i, operand in enumerate(operands):
        source = _without_detach(operand)
        is_taken_in = (
            isinstance(source, Node)
            and source.op == "get_attr"
            and isinstance(find_attribute(gm, str(source.target)), torch.Tensor)
            and constant(source)
            and not any(user.op == "output" for placeholders in inside for user in placeholders[i].users)
        )
        if not is_taken_in:
            kept.append(source)
            continue
        sources.append(source)
        for module, placeholders in zip(call.all_bodies, inside, strict=True):
            _read_own(gm, source, module, placeholders[i])
    detached = [n for n in call.node.all_input_nodes if _is_detach(n)]
    for at in call.form.operands[:-1]:
        values = cast("Sequence[Any]", call.node.args[at])
        call.node.update_arg(at, _of_kind(values, map(_without_detach, values)))
    call.replace_constants(kept)
    for node in detached:
        if not node.users:
            graph.erase_node(node)
    for source in dict.fromkeys(sources):
        if not source.users:
            target = str(source.target)
            graph.erase_node(source)
            if not graph.find_nodes(op="get_attr", target=target):
                drop_tensor(gm, target)
    return bool(sources or detached)


def _is_detach(node: object) -> bool:
    return isinstance(node, Node) and node.target is torch.ops.aten.detach.default


def _without_detach(operand: Any) -> Any:
    while _is_detach(operand):
        operand = operand.args[0]
    return operand


def _read_own(gm: GraphModule, source: Node, module: GraphModule, placeholder: Node) -> None:
    """Let ``module`` read a tensor of its own, that which ``source`` reads, in place of ``placeholder``."""
    graph = module.graph
    if placeholder.users:
        tensor = get_tensor(gm, str(source.target))
        name = str(source.target)
        if find_attribute(module, name) is not tensor:
            name = FreeNames(module).fresh(name)
            share_tensor(gm, str(source.target), module, name)
        with graph.inserting_after(_placeholders(module)[-1]):
            own = graph.get_attr(name)
        _put_in_place(placeholder, own)
    graph.erase_node(placeholder)


def _put_in_place(old: Node, new: Node) -> None:
    new.meta = {**old.meta, **new.meta}
    old.replace_all_uses_with(new)
    if any(ANNOTATION_KEY in node.meta for node in new.graph.nodes):
        remap_annotations(new.graph, {old: new})


# Closing.


def close_bodies(gm: GraphModule) -> None:
    """Close the open bodies of ``gm``, and those in them.

    Operands of bodies that quantize or observe are detached: in low precision there are no gradients, and to
    find them torch runs a body on tensors without values, which observers cannot look at.
    """
    if any(BODY_KEY in body.module.meta for body in bodies(gm)):
        _close(gm, _runs(gm), is_model=True)


def _close(gm: GraphModule, runs: Counter[int], *, is_model: bool) -> None:
    names = FreeNames(gm)
    for call in _calls(gm, runs):
        if BODY_KEY not in call.all_bodies[0].meta:
            continue
        for module in call.all_bodies:
            _close(module, runs, is_model=False)
        _hand_in(gm, call, names)
        if is_model and any(map(_is_quantized, call.all_bodies)):
            _detach_operands(gm, call)
        for module in call.all_bodies:
            module.meta.pop(BODY_KEY)
            module.meta.pop(STAGE_KEY)


def _hand_in(gm: GraphModule, call: _Call, names: FreeNames) -> None:
    own: dict[str, list[tuple[GraphModule, Node]]] = {}
    for module in call.all_bodies:
        for node in module.graph.find_nodes(op="get_attr"):
            if isinstance(find_attribute(module, str(node.target)), torch.Tensor):
                own.setdefault(_place(gm, module, str(node.target), names), []).append((module, node))
    readers = {str(node.target): node for node in reversed(list(gm.graph.find_nodes(op="get_attr")))}
    operands = call.constants
    for target, nodes in own.items():
        operands.append(_reader(gm, call.node, target, readers.get(target), nodes[0][1]))
        for module in call.all_bodies:
            placeholder = _new_placeholder(module, target)
            placeholder.meta = {k: v for k, v in nodes[0][1].meta.items() if k != ORIGIN_KEY}
            for node in [node for owner, node in nodes if owner is module]:
                _put_in_place(node, placeholder)
                module.graph.erase_node(node)
    for nodes in own.values():
        for module, node in nodes:
            if find_attribute(module, str(node.target)) is not None:
                drop_tensor(module, str(node.target))
    call.replace_constants(operands)


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
        known.replace_all_uses_with(node)
        gm.graph.erase_node(known)
    return node


def _new_placeholder(module: GraphModule, target: str) -> Node:
    graph = module.graph
    before = _placeholders(module)
    at = graph.inserting_after(before[-1]) if before else graph.inserting_before(next(iter(graph.nodes)))
    with at:
        placeholder = graph.placeholder(target.replace(".", "_"))
    # In the code that is generated, it is assigned to its name; that is not to be the argument of another.
    placeholder.target = placeholder.name
    return placeholder


def _is_quantized(module: GraphModule) -> bool:
    graphs = (module.graph, *(inner.graph for inner in nested_graph_modules(module)))
    return any(
        node.op == "call_module" or is_precision_change(node) for graph in graphs for node in graph.nodes
    )


def _detach_operands(gm: GraphModule, call: _Call) -> None:
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
        call.node.update_arg(at, _of_kind(operands, map(detached, operands)))
