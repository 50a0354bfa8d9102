"""Bodies that passes go into: those of ``cond``, ``while_loop``, ``scan`` and ``map``.

``torch.export`` gives a body no tensors of its own: its weights are operands, which its caller hands in. So a
body cannot say what is a weight. While passes run it is *open* (:mod:`.open_bodies`): operands that are
constants of the caller are attributes of the body, by the same names, and the body reads like a model.
Closing it (:mod:`.close_bodies`) hands them in again, so that what leaves a verb has the form that
``torch.export`` and ``torch.compile`` know, and the names of checkpoints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import attrs
from torch.fx import Graph, GraphModule, Node

from .attributes import find_attribute, nested_graph_modules
from .control_flow import Body, bodies
from .ledger import Ledger
from .meta import ANNOTATION_KEY, BODY_KEY
from .operators import is_float_operator
from .points import remap_annotations
from .schema import HigherOrderOperator

__all__ = [
    "BodyCall",
    "body_calls",
    "count_runs",
    "explain_bodies",
    "is_body",
    "of_kind",
    "opened_bodies",
    "placeholders_of",
    "put_in_place",
]


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
    closed = [body for body in bodies(gm) if not body.module.meta.get(BODY_KEY)]
    runs = count_runs(gm) if closed else Counter[int]()
    for body in closed:
        inside = ledger.inside(body.name, body.callers)
        for node in body.module.graph.nodes:
            if is_float_operator(node) and node not in inside:
                why = _why_closed(body, runs)
                detail = f"in a body of {body.caller.target} (%{body.caller.name}): {why}"
                inside.missed("control-flow-body", node, detail)


def _why_closed(body: Body, runs: Counter[int]) -> str:
    call = BodyCall.of(body.owner, body.caller, runs)
    if isinstance(call, str):
        return call
    if body.module.meta.get(BODY_KEY) is False or any(module is body.module for module in call.beside):
        return "it decides how often the loop runs"
    return "the pipeline stays out of bodies, as that of training does"


@attrs.frozen(eq=False)
class BodyCall:
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
    def of(gm: GraphModule, node: Node, runs: Counter[int]) -> BodyCall | str:
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
        if any(len(placeholders_of(module)) != operands for module in found):
            return "it is not called the way torch.export does"
        return BodyCall(form, node, entered, beside)

    @property
    def all_bodies(self) -> tuple[GraphModule, ...]:
        """Those that passes go into, and the others."""
        return (*self.entered, *self.beside)

    @property
    def constants(self) -> list[Any]:
        """The operands that are the same at every step."""
        return list(cast("Sequence[Any]", self.node.args[self.form.operands[-1]]))

    def replace_constants(self, operands: list[Any]) -> None:
        """Hand in ``operands`` in place of :attr:`constants`."""
        at = self.form.operands[-1]
        self.node.update_arg(at, of_kind(self.node.args[at], operands))


def of_kind(operands: object, values: Iterable[Any]) -> tuple[Any, ...] | list[Any]:
    """``values`` as the tuple or list that ``operands`` are."""
    return tuple(values) if isinstance(operands, tuple) else list(values)


def _body_at(gm: GraphModule, argument: object) -> GraphModule:
    module = find_attribute(gm, str(argument.target)) if isinstance(argument, Node) else None
    if not isinstance(module, GraphModule):
        raise TypeError
    return module


def placeholders_of(module: GraphModule) -> list[Node]:
    """The operands of a body, in their order."""
    return list(module.graph.find_nodes(op="placeholder"))


def count_runs(gm: GraphModule) -> Counter[int]:
    """How often each body is handed to an operator, by the identity of its graph module."""
    counts: Counter[int] = Counter()
    for owner in (gm, *nested_graph_modules(gm)):
        for node in owner.graph.nodes:
            if isinstance(node.target, HigherOrderOperator):
                for argument in node.args:
                    if isinstance(argument, Node) and argument.op == "get_attr":
                        counts[id(find_attribute(owner, str(argument.target)))] += 1
    return counts


def body_calls(gm: GraphModule, runs: Counter[int]) -> Iterator[BodyCall]:
    """The calls of ``gm`` itself whose bodies can be opened; ``runs`` is of the model it belongs to."""
    for node in list(gm.graph.nodes):
        if isinstance(node.target, HigherOrderOperator):
            call = BodyCall.of(gm, node, runs)
            if isinstance(call, BodyCall):
                yield call


def put_in_place(graph: Graph, new: Mapping[Node, Node]) -> None:
    """Let all of ``graph`` read the values of ``new`` in place of its keys, annotations too; the keys go."""
    for old, other in new.items():
        other.meta = {**old.meta, **other.meta}
        old.replace_all_uses_with(other)
    if any(ANNOTATION_KEY in node.meta for node in graph.nodes):
        remap_annotations(graph, new)
    for old in new:
        graph.erase_node(old)
