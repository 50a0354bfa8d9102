"""The search for a pattern at one candidate: unification of two graphs, with an explicit stack."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Final, NamedTuple, TypeAlias

from torch.fx import Node
from torch.fx.node import Argument

from ..ir.location import listed, target_text
from .match import Match, Miss, MissReason
from .operands import COMMUTATIVE, Operand, operands
from .pattern import Pattern, is_leaf

__all__ = ["Search"]

_OUTPUT: Final = Operand("output", takes_tensor=True)
_Arguments: TypeAlias = list[tuple[Operand, Argument]]


class _Goal(NamedTuple):
    """A value in the pattern that one in the graph has to agree with, and the goals after it."""

    wanted: Any
    found: Any
    operand: Operand
    reader: Node
    rest: _Goal | None


class _Choice(NamedTuple):
    """A goal to try, and how many bindings stood when it came up."""

    goal: _Goal | None
    bound: int
    body: int


class Search:
    """Bindings of the nodes of a pattern to those of a graph, made and taken back in order.

    Args:
        pattern: what to look for.
        claimed: nodes of the graph that may be inputs, but not operators, of the match.
        match_placeholder: bind inputs of the pattern to placeholders only.
        ignore_literals: let literals differ.
    """

    def __init__(
        self, pattern: Pattern, claimed: Set[Node], *, match_placeholder: bool, ignore_literals: bool
    ) -> None:
        self._pattern = pattern
        self._claimed = claimed
        self._match_placeholder = match_placeholder
        self._ignore_literals = ignore_literals
        # Dicts keep the order of insertion: cut back to a length, they are what they were.
        self._bound: dict[Node, Node | None] = {}
        self._body: dict[Node, Node] = {}
        self._choices: list[_Choice] = []
        self.reached = 0
        """How many operators were bound at most where the search gave up."""

    def match_at(self, anchor: Node) -> Match | Miss:
        """Match the pattern where its anchor stands for ``anchor``; for one call on a new search."""
        pattern = self._pattern
        miss = self._unify(pattern.anchor, anchor)
        for sink in pattern.sinks[1:]:
            miss = miss or self._unify_beyond(sink.path, anchor)
        return miss or self._result(anchor)

    def _unify(self, wanted: Node, found: Node) -> Miss | None:
        """Bind ``wanted`` to ``found``, and all that stands before it; on a miss nothing is bound by it."""
        start = _Choice(_Goal(wanted, found, _OUTPUT, found, None), len(self._bound), len(self._body))
        self._choices = [start]
        nearest: Miss | None = None
        depth = -1
        while self._choices:
            choice = self._choices.pop()
            self._undo(choice)
            outcome: _Goal | Miss | None = choice.goal
            while isinstance(outcome, _Goal):
                outcome = self._step(outcome)
            miss = outcome or self._check_inputs(wanted)
            if miss is None:
                return None
            if len(self._bound) > depth:
                nearest, depth = miss, len(self._bound)
                self.reached = len(self._body)
        self._undo(start)
        return nearest

    def _unify_beyond(self, path: tuple[Node, ...], anchor: Node) -> Miss | None:
        """Find the operator at the end of ``path`` among the users of what its start is bound to."""
        start = self._bound[path[0]]
        reached = [] if start is None else [start]
        for step in path[1:]:
            users = dict.fromkeys(user for node in reached for user in sorted(node.users))
            reached = [user for user in users if user.target == step.target and user not in self._body]
        wanted = target_text(path[-1].target)
        nearest = Miss(
            "different-target", start or anchor, f"nothing here leads to the {wanted} of the pattern"
        )
        for i, node in enumerate(reached):
            miss = self._unify(path[-1], node)
            if miss is None:
                return None
            nearest = miss if i == 0 else nearest
        return nearest

    def _undo(self, choice: _Choice) -> None:
        while len(self._bound) > choice.bound:
            self._bound.popitem()
        while len(self._body) > choice.body:
            self._body.popitem()

    def _step(self, goal: _Goal) -> _Goal | Miss | None:
        """Meet one goal: the goals that remain, None after the last one, or the reason why not."""
        wanted, found = goal.wanted, goal.found
        if isinstance(wanted, Node):
            return self._bind(wanted, goal)
        if not _holds_node(wanted):
            return self._compare(goal)
        if not isinstance(found, (list, tuple)):
            return _miss("not-a-node", goal, "is no list of tensors, as the pattern has there")
        if len(found) != len(wanted):
            return _miss("different-length", goal, f"has {len(found)} tensors, the pattern {len(wanted)}")
        rest = goal.rest
        for w, f in zip(reversed(wanted), reversed(found), strict=True):
            rest = _Goal(w, f, goal.operand, goal.reader, rest)
        return rest

    def _bind(self, wanted: Node, goal: _Goal) -> _Goal | Miss | None:
        found = goal.found
        if wanted in self._bound:
            if self._bound[wanted] is found:
                return goal.rest
            return _miss("different-node", goal, f"is not what %{wanted.name} of the pattern is elsewhere")
        if isinstance(found, Node):
            bind = self._bind_leaf if is_leaf(wanted) else self._bind_operator
            return bind(wanted, found, goal)
        if found is None and wanted.op == "placeholder" and goal.operand.takes_none:
            self._bound[wanted] = None
            return goal.rest
        return _miss("not-a-node", goal, f"is {found!r}, where the pattern has a tensor")

    def _bind_leaf(self, wanted: Node, found: Node, goal: _Goal) -> _Goal | Miss | None:
        if wanted.op == "get_attr" and found.op != "get_attr":
            return _miss("different-target", goal, "is not a parameter, as in the pattern")
        if self._match_placeholder and wanted.op == "placeholder" and found.op != "placeholder":
            return _miss("not-a-placeholder", goal, "is not an input of the graph")
        self._bound[wanted] = found
        return goal.rest

    def _bind_operator(self, wanted: Node, found: Node, goal: _Goal) -> _Goal | Miss | None:
        if found.op != "call_function" or found.target != wanted.target:
            is_, not_ = target_text(found.target), target_text(wanted.target)
            return Miss("different-target", found, f"%{found.name} is {is_}, not {not_}")
        if found in self._body:
            return _miss("different-node", goal, f"is %{self._body[found].name} of the pattern already")
        if found in self._claimed:
            return Miss("overlap", found, f"%{found.name} belongs to an earlier match")
        self._bound[wanted] = found
        self._body[found] = wanted
        # Distinct operators stand for distinct ones, so as many users as in the pattern are all inside.
        if wanted not in self._pattern.outputs and len(found.users) > len(wanted.users):
            users = listed(found.users)
            return Miss("second-user", found, f"%{found.name} is read outside the match too: by {users}")
        wanted_operands, found_operands = self._pattern.operands[wanted], operands(found)
        if len(wanted_operands) != len(found_operands):
            return Miss("different-length", found, f"%{found.name} has other arguments than the pattern")
        if wanted.target in COMMUTATIVE and _commutes(wanted_operands) and _commutes(found_operands):
            first, second, *others = found_operands
            swapped = _goals(wanted_operands, [second, first, *others], found, goal.rest)
            self._choices.append(_Choice(swapped, len(self._bound), len(self._body)))
        return _goals(wanted_operands, found_operands, found, goal.rest)

    def _compare(self, goal: _Goal) -> _Goal | Miss | None:
        """Compare a literal of the pattern with what the graph has in its place."""
        wanted, found, operand = goal.wanted, goal.found, goal.operand
        if operand.takes_tensor and (isinstance(found, Node) or _holds_node(found)):
            return _miss("unexpected-node", goal, f"is a tensor, where the pattern has {wanted!r}")
        # Whether there is a tensor or none is not a matter of its value.
        fixed = operand.is_fixed or (operand.takes_tensor and (wanted is None) != (found is None))
        if (self._ignore_literals and not fixed) or _typed(wanted) == _typed(found):
            return goal.rest
        return _miss("different-literal", goal, f"is {found!r}, in the pattern {wanted!r}")

    def _check_inputs(self, sink: Node) -> Miss | None:
        """Refuse inputs that the match itself computes: replaced as a whole, it would be part of a cycle."""
        inputs = [found for wanted, found in self._bound.items() if is_leaf(wanted) and found is not None]
        inside = next((node for node in inputs if node in self._body), None)
        # Of a closed pattern nothing gets out that an input could depend on, and of an unfinished match
        # nobody knows yet what is outside.
        if inside is None and not self._pattern.is_closed and sink is self._pattern.sinks[-1].node:
            inside = self._find_above(inputs)
        if inside is None:
            return None
        return Miss("input-inside", inside, f"an input of the match depends on %{inside.name}, a part of it")

    def _find_above(self, inputs: list[Node]) -> Node | None:
        """An operator of the match that one of ``inputs`` depends on, or None."""
        first = min(self._body)
        stack, seen = list(inputs), set(inputs)
        while stack:
            node = stack.pop()
            if node in self._body:
                return node
            sources = [n for n in node.all_input_nodes if n not in seen and not n < first]
            seen.update(sources)
            stack.extend(sources)
        return None

    def _result(self, anchor: Node) -> Match:
        pattern, bound = self._pattern, self._bound
        return Match(
            anchor=anchor,
            nodes=tuple(sorted(self._body)),
            nodes_map=dict(bound),
            placeholder_nodes=[bound[p] for p in pattern.placeholders],
            returning_nodes=[node for p in pattern.outputs if (node := bound[p]) is not None],
            name_node_map={name: bound[p] for name, p in pattern.names.items()},
        )


def _goals(wanted: _Arguments, found: _Arguments, reader: Node, rest: _Goal | None) -> _Goal | None:
    """The arguments of a call, first to last, as goals before ``rest``."""
    for (_, in_pattern), (operand, in_graph) in reversed(list(zip(wanted, found, strict=True))):
        rest = _Goal(in_pattern, in_graph, operand, reader, rest)
    return rest


def _commutes(arguments: _Arguments) -> bool:
    """Whether the first two ``arguments`` of an addition or product are two nodes, and neither is scaled."""
    (_, first), (_, second), *alpha = arguments
    are_nodes = isinstance(first, Node) and isinstance(second, Node)
    return are_nodes and first is not second and all(value == 1 for _, value in alpha)


def _holds_node(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(v, Node) or _holds_node(v) for v in value)


def _typed(value: Any) -> Any:
    """``value`` so that 1, 1.0 and True differ, and lists and tuples do not."""
    if isinstance(value, (list, tuple)):
        return tuple(_typed(v) for v in value)
    return (type(value), value)


def _miss(reason: MissReason, goal: _Goal, said: str) -> Miss:
    node = goal.found if isinstance(goal.found, Node) else goal.reader
    return Miss(reason, node, f"{goal.operand.name} of %{goal.reader.name} {said}")
