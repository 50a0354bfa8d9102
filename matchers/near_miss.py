"""Near misses: which pattern an operator is almost part of, and what is in the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from ..ir.location import listed, target_text
from ..ir.near_miss import NearMiss
from ..ir.reasons import REASONS
from ..ir.schema import OpOverload, operator_name
from .match import Match, Miss
from .operator_pattern import OperatorPattern, Sharing
from .search import Search

__all__ = ["NearMisses"]


class NearMisses:
    """What came nearest of some patterns.

    Args:
        patterns: what a backend can run.
    """

    def __init__(self, patterns: Iterable[OperatorPattern]) -> None:
        self._parts: dict[Any, list[tuple[OperatorPattern, Node]]] = {}
        for pattern in patterns:
            if pattern.sharing is Sharing.SAME_AS_INPUT:
                continue
            for part in pattern.matcher.pattern.nodes:
                if part.op == "call_function":
                    self._parts.setdefault(_name(part.target), []).append((pattern, part))

    def of(self, node: Node, *, larger_than: int = 0) -> NearMiss | None:
        """What came nearest of the patterns that ``node`` could be an operator of.

        Of several that are equally near it is the first. Where all operators are there, a condition of the
        pattern is in the way. Where a pattern fits altogether it is no near miss, and something else than the
        graph keeps the operator float.

        The work depends on the patterns that have such an operator, and on the readers of ``node`` and of
        what follows it, not on the graph.

        Args:
            node: an operator of a canonical float graph.
            larger_than: leave out patterns of this many operators and fewer: those that are no larger than
                the one that ``node`` is quantized as.

        Returns:
            None where no pattern has an operator of this kind, or one fits.
        """
        nearest: NearMiss | None = None
        for pattern, part in self._parts.get(_name(node.target), ()):
            if pattern.size <= larger_than:
                continue
            miss = _try(node, part, pattern)
            if miss is None:
                return None
            if nearest is None or miss.distance < nearest.distance:
                nearest = miss
        return nearest


def _name(target: Any) -> Any:
    # Overloads of one operator are near each other: convolutions with padding as numbers or as a word.
    return operator_name(target)[:2] if isinstance(target, OpOverload) else target


def _try(node: Node, part: Node, pattern: OperatorPattern) -> NearMiss | None:
    """What keeps ``pattern`` from fitting with ``node`` for its ``part``; None when it fits."""
    size = pattern.size
    if node.target != part.target:
        detail = f"%{node.name} is {target_text(node.target)}, not {target_text(part.target)}"
        return NearMiss(pattern.name, 0, size, "different-target", node.name, detail)
    wanted, found, passed = part, node, 1
    anchor = pattern.matcher._pattern.anchor
    while wanted is not anchor:
        wanted = next(user for user in wanted.users if user.op == "call_function")
        reader = next((user for user in found.users if user.target == wanted.target), None)
        if reader is None:
            detail = _read_by(found, wanted)
            return NearMiss(pattern.name, passed, size, "different-target", found.name, detail)
        found, passed = reader, passed + 1
    search = Search(pattern.matcher._pattern, frozenset(), match_placeholder=False, ignore_literals=True)
    outcome = search.match_at(found)
    if isinstance(outcome, Match):
        return _refused(pattern, outcome)
    # What was found may stand for all operators and still be no match: it is read elsewhere too.
    matched = min(search.reached, size - 1)
    return NearMiss(pattern.name, matched, size, outcome.reason, outcome.node.name, _detail(outcome))


def _detail(miss: Miss) -> str:
    if miss.reason != "second-user":
        return miss.detail
    readers = len(miss.node.users)
    names = listed(miss.node.users)
    return f"%{miss.node.name} has {readers} readers ({names}), and fused only one of them could read it"


def _read_by(node: Node, wanted: Node) -> str:
    readers = [user for user in sorted(node.users) if user.op != "output"]
    if not readers:
        return f"no {target_text(wanted.target)} reads %{node.name}, which the model returns"
    first, *more = (f"%{user.name} ({target_text(user.target)})" for user in readers)
    others = f" and {len(more)} more" if more else ""
    return f"{first}{others} reads %{node.name}, not {target_text(wanted.target)}"


def _refused(pattern: OperatorPattern, match: Match) -> NearMiss | None:
    """The condition of ``pattern`` that ``match`` does not meet; None when it meets all."""
    reason = pattern.match_refusal(match)
    if reason is None:
        return None
    node, detail = match.anchor, _meaning(reason, pattern, match)
    for wanted, found in match.nodes_map.items():
        if reason == "different-literal" and found is not None and wanted.kwargs != found.kwargs:
            names = dict.fromkeys((*wanted.kwargs, *found.kwargs))
            name = next(n for n in names if wanted.kwargs.get(n) != found.kwargs.get(n))
            is_, not_ = found.kwargs.get(name), wanted.kwargs.get(name)
            node, detail = found, f"{name} of %{found.name} is {is_!r}, in the pattern {not_!r}"
            break
    return NearMiss(pattern.name, pattern.size, pattern.size, reason, node.name, detail)


def _meaning(reason: str, pattern: OperatorPattern, match: Match) -> str:
    """What a condition that is not met is about: the meaning of its code, and the tensor that it names."""
    known = REASONS.get(reason)
    meaning = f"the condition {reason} of the pattern is not met" if known is None else known.meaning
    for role, bound in zip(pattern.roles, match.placeholder_nodes, strict=True):
        if bound is not None and reason.startswith(f"{role.value}-"):
            made = "" if bound.op == "placeholder" else f" ({target_text(bound.target)})"
            return f"{meaning}: %{bound.name}{made}"
    return meaning
