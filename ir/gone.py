"""Operators that are gone: a pass took them out of the graph, and another stands for them, or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import attrs

from .location import is_at, module_path, source_line

__all__ = ["Gone", "GoneEntry", "Why", "gone_by_name"]

Why = Literal["folded", "identity", "unread"]
"""Why a pass takes an operator out: a BatchNorm is part of the weight and bias of another operator; the
operator computes nothing; nothing reads its result."""

_SAID: Final = {
    "folded": "was folded into the weight and bias of %{into}, by the pass {by}",
    "identity": "was left out by the pass {by}: in inference it computes nothing, so %{into} stands for it",
    "unread": "was left out by the pass {by}: nothing reads its result",
}


@attrs.frozen
class Gone:
    """An operator that a pass took out of the graph; ``str()`` of it is text for people.

    Args:
        node: the name that its call had; in a body of ``cond`` and the like behind that of the body.
        why: "folded" of a BatchNorm in the weight and bias of another operator, "identity" of what computes
            nothing (dropout in evaluation), "unread" of what nothing reads.
        into: the node that it is part of now, or whose result stands in the place of its own; "" for none.
        by: the pass that took it out.
        module: dotted path of its module.
        source: its source line.
    """

    node: str
    why: Why
    into: str
    by: str
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        who = f"%{self.node} in {self.module}" if self.module else f"%{self.node}"
        return f"{who} {_SAID[self.why].format(into=self.into, by=self.by)}"

    def is_named(self, about: str) -> bool:
        """Whether ``about`` names it: its node, a module that it was in, or its source line."""
        return about == self.node or self.is_in(about) or is_at(self.source, about)

    def is_in(self, module: str) -> bool:
        """Whether it was in ``module``, or in a module of that."""
        return bool(module) and f"{self.module}.".startswith(f"{module}.")


@attrs.frozen
class GoneEntry:
    """A :class:`Gone` as it is written down; its source line is looked up when somebody asks."""

    node: str
    why: Why = attrs.field(validator=attrs.validators.in_(_SAID))
    into: str
    by: str
    origin: dict[str, Any]

    def gone(self) -> Gone:
        """With its module and source line."""
        place = module_path(self.origin), source_line(self.origin)
        return Gone(self.node, self.why, self.into, self.by, *place)


def gone_by_name(gone: Iterable[Gone], about: str) -> tuple[Gone, ...]:
    """Those of ``gone`` that ``about`` names, each with the node that stands for it in the end.

    What stands for an operator may be gone itself: a BatchNorm before a dropout.
    """
    found = tuple(gone)
    into = {each.node: each.into for each in found}

    def last(name: str) -> str:
        seen = {""}
        while name in into and name not in seen:  # a text may say anything
            seen.add(name)
            name = into[name]
        return name

    return tuple(attrs.evolve(each, into=last(each.into)) for each in found if each.is_named(about))
