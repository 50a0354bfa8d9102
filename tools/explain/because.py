"""Where a reason that points to a neighbour comes from: operators that stay float for one of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

import attrs
import torch
from torch.fx import GraphModule, Node

from ...ir import quantized_decomposed as qd
from ...ir.attributes import AttributeFinder
from ...ir.ledger import Decision
from ...ir.operators import is_float_operator
from ...ir.reasons import REASONS
from ...ir.schema import OpOverload
from ...ir.verifiers import is_observer

__all__ = [
    "Because",
    "advice_of",
    "find_causes",
    "find_nearest_causes",
    "low_precision_tensors",
    "points_to_a_neighbour",
]

_READERS: Final = "readers"
_INPUTS: Final = "inputs"
_POINTS_TO: Final = {
    "no-low-precision-reader": _READERS,
    "sum-read-in-float": _READERS,
    "float-input": _INPUTS,
}
"""The codes that say no more than that a neighbour is float, and on which side of the operator it is."""

_ENDS: Final = {
    "output": "nothing: the model returns a float tensor",
    "input": "nothing: the input of the model is a float tensor",
    "constant": "nothing: no kernel reads the constant",
}
"""What to do about the ends of the model."""

_MOST = 3
"""So many causes are looked for: the nearest."""
_NAMED = 3
"""So many operators on the way to a cause are named; more are counted."""


@attrs.frozen
class Because:
    """A neighbour that keeps an operator float: next to it, or behind others that it keeps float too.

    Args:
        node: its name.
        role: "reads" the operator's result, "makes" what the operator reads, or at the ends of the model
            "output", "input" and "constant".
        reason: why it stays float itself; "" at the ends of the model.
        module: dotted path of its module.
        source: its source line.
        through: names of the operators between, from the one that was asked about on.
        keeps: "readers" or "inputs", those of the operator that was asked about that it keeps float, where it
            does so by others that stand beside them: a reader may be float for another thing that it reads.
    """

    node: str
    role: str
    reason: str = ""
    module: str = ""
    source: str = ""
    through: tuple[str, ...] = ()
    keeps: str = ""

    @property
    def advice(self) -> str:
        """What to do about it, "" where its code is of no table."""
        known = REASONS.get(self.reason)
        return _ENDS.get(self.role, "" if known is None else known.advice)

    @property
    def place(self) -> str:
        """Its name, with its module and the place of its source line."""
        place, _, _ = self.source.partition(": ")
        where = ", ".join(filter(None, (self.module, place.rpartition("/")[2])))
        return f"%{self.node} ({where})" if where else f"%{self.node}"

    def __str__(self) -> str:
        who = self.place
        beside = {
            "output": "the model, which returns a float tensor,",
            "input": f"{who}, an input of the model,",
            "constant": f"{who}, a constant,",
        }.get(self.role, who)
        what = {
            _READERS: f"{beside} keeps what reads it float",
            _INPUTS: f"{beside} keeps what it reads float",
        }.get(self.keeps) or {
            "reads": f"{who} reads it in float",
            "makes": f"{who} hands it a float tensor",
            "output": "the model returns it, in float",
            "input": f"{who}, an input of the model, is float",
            "constant": f"{who}, a constant, is float",
        }[self.role]
        named = [f"%{name}" for name in self.through[:_NAMED]]
        more = [f"{len(self.through) - _NAMED} more"] if len(self.through) > _NAMED else []
        way = f", through {', '.join([*named, *more])}" if named else ""
        return f"{what}{way}: {self.reason}" if self.reason else f"{what}{way}"


@attrs.frozen
class _Visit:
    node: Node
    side: str
    before: _Visit | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.node.name, self.side


def advice_of(causes: Iterable[Because]) -> str:
    """What to do about an operator that stays float for ``causes``: each advice once, "" without any."""
    by_advice: dict[str, str] = {}
    for cause in causes:
        if cause.advice:
            by_advice.setdefault(cause.advice, cause.node)
    return "; ".join(f"as for %{node}: {advice}" for advice, node in by_advice.items())


def low_precision_tensors(model: GraphModule) -> frozenset[str]:
    """Names of the nodes whose result is observed or quantized for one reader at least."""
    find = AttributeFinder(model).find
    return frozenset(
        source.name
        for node in model.graph.nodes
        if qd.is_quantize(node) or (node.op == "call_module" and is_observer(find(str(node.target))))
        for source in node.all_input_nodes[:1]
    )


def find_causes(start: Node, decisions: Mapping[str, Decision], low: Collection[str]) -> tuple[Because, ...]:
    """Why the neighbours that the reason of ``start`` points to are float; the nearest first, three at most.

    Every operator is visited once for each side of it.

    Args:
        start: a float operator, in the float view of the model.
        decisions: what became of the model's operators, by name.
        low: the model's :func:`low_precision_tensors`.
    """
    side = _POINTS_TO.get(decisions[start.name].reason)
    if side is None:
        return ()
    found: dict[str, Because] = {}
    queue = deque([_Visit(start, side)])
    seen = {queue[0].key}
    while queue and len(found) < _MOST:
        visit = queue.popleft()
        for node, said in _steps(visit, decisions, low):
            if said is None:
                found.setdefault(node.name, attrs.evolve(_cause(node, visit, decisions), keeps=_keeps(visit)))
            elif (node.name, said) not in seen:
                seen.add((node.name, said))
                queue.append(_Visit(node, said, visit))
    return tuple(found.values())[:_MOST]


def points_to_a_neighbour(reason: str) -> bool:
    """Whether a code says no more than that a neighbour is float."""
    return reason in _POINTS_TO


def find_nearest_causes(
    starts: Iterable[Node], decisions: Mapping[str, Decision], low: Collection[str]
) -> dict[str, Because]:
    """The nearest of what :func:`find_causes` finds of each of many operators, without the way there.

    Together they take a visit to each operator, for each side of it.
    """
    sides = [(node, _POINTS_TO.get(decisions[node.name].reason)) for node in starts]
    firsts = [_Visit(node, side) for node, side in sides if side is not None]
    # Forwards, to see who asks whom; then backwards from those that know.
    asked_by: dict[tuple[str, str], list[_Visit]] = {visit.key: [] for visit in firsts}
    known: dict[tuple[str, str], Because] = {}
    queue, told = deque(firsts), deque[_Visit]()
    while queue:
        visit = queue.popleft()
        for node, said in _steps(visit, decisions, low):
            if said is not None:
                near = _Visit(node, said)
                if near.key not in asked_by:
                    asked_by[near.key] = []
                    queue.append(near)
                asked_by[near.key].append(visit)
            elif visit.key not in known:
                known[visit.key] = _cause(node, visit, decisions)
                told.append(visit)
    while told:
        visit = told.popleft()
        for asking in asked_by[visit.key]:
            if asking.key not in known:
                cause = known[visit.key]
                is_straight = asking.side == visit.side and not cause.keeps
                known[asking.key] = attrs.evolve(cause, keeps="" if is_straight else asking.side)
                told.append(asking)
    return {visit.node.name: known[visit.key] for visit in firsts if visit.key in known}


def _steps(
    visit: _Visit, decisions: Mapping[str, Decision], low: Collection[str]
) -> Iterator[tuple[Node, str | None]]:
    """The float neighbours on a side, each with the side that its own reason points to; None at a cause."""
    for node in _neighbours(visit, low):
        decision = decisions.get(node.name)
        if decision is not None and decision.status != "float":
            continue
        said = _POINTS_TO.get(decision.reason) if decision is not None else visit.side
        if node.op != "call_function":
            yield node, None
        elif decision is not None or _is_passing(node):
            yield node, said


def _keeps(visit: _Visit) -> str:
    """The side of the first of the way to ``visit``, where that changes sides; else ""."""
    sides = [visit.side]
    while visit.before is not None:
        visit = visit.before
        sides.append(visit.side)
    return visit.side if len(set(sides)) > 1 else ""


def _neighbours(visit: _Visit, low: Collection[str]) -> list[Node]:
    if visit.side == _READERS:
        return sorted(visit.node.users)
    # An input that is in low precision for another reader is so for this one.
    return [
        source for source in visit.node.all_input_nodes if source.name not in low and not _is_index(source)
    ]


def _is_index(source: Node) -> bool:
    value = source.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


def _is_passing(node: Node) -> bool:
    """Whether a node that nothing was decided about hands on what it reads: it is no kernel, size or body."""
    return is_float_operator(node) and isinstance(node.target, OpOverload) and node.target.namespace == "aten"


def _cause(node: Node, visit: _Visit, decisions: Mapping[str, Decision]) -> Because:
    decision = decisions.get(node.name)
    way: list[str] = []
    at = visit
    while at.before is not None:
        if at.node.name in decisions:
            way.append(at.node.name)
        at = at.before
    through = tuple(reversed(way))
    if decision is None:
        role = {"output": "output", "placeholder": "input"}.get(node.op, "constant")
        return Because(node.name, role, through=through)
    role = "reads" if visit.side == _READERS else "makes"
    return Because(node.name, role, decision.reason, decision.module, decision.source, through)
