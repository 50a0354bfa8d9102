"""A near miss as data: the operator pattern that an operator is almost part of, and what is in the way."""

from __future__ import annotations

import attrs

__all__ = ["NearMiss"]

# They may come from a file.
_TEXT, _NUMBER = attrs.validators.instance_of(str), attrs.validators.instance_of(int)


@attrs.frozen
class NearMiss:
    """A pattern that almost fits.

    Args:
        pattern: its name.
        found: how many of its operators stand there.
        size: how many it has.
        reason: a reason code.
        node: name of the node where it stopped fitting.
        detail: one sentence for people.
    """

    pattern: str = attrs.field(validator=_TEXT)
    found: int = attrs.field(validator=_NUMBER)
    size: int = attrs.field(validator=_NUMBER)
    reason: str = attrs.field(validator=_TEXT)
    node: str = attrs.field(validator=_TEXT)
    detail: str = attrs.field(validator=_TEXT)

    def __str__(self) -> str:
        return f"{self.pattern}: {self.detail} ({self.reason}, at %{self.node})"

    @property
    def distance(self) -> tuple[bool, int, int]:
        """How far it is; less is nearer.

        A pattern that has other operators than stand there is farther than one that only has them otherwise;
        then fewest operators missing count as nearest, of those the larger pattern.
        """
        return self.reason == "different-target", self.size - self.found, -self.size
