"""What resolving the sharing of a graph gives: groups of points, and why they are together."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import TYPE_CHECKING, cast

import attrs
from torch.fx import Node

from ...errors import SharingError
from ..annotation import get_annotation
from ..location import describe_point
from ..points import owner_of, tensor_of
from ..problems import places
from ..specs import ConcreteSpec, EdgeOrNode, spec_key
from .links import Link, LinkGraph

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["SharingGroup", "SharingResult"]


@attrs.frozen
class SharingGroup:
    """Points that have one scale and zero point, hence one observer.

    Args:
        index: position among the groups of the graph, in graph order of their first points.
        points: the points, in graph order; the first represents the group.
        spec: how they are quantized.
    """

    index: int
    points: tuple[EdgeOrNode, ...]
    spec: ConcreteSpec

    def __str__(self) -> str:
        lines = [f"group {self.index}: {type(self.spec).__name__} {self.spec.dtype}"]
        return "\n".join([*lines, *(f"  {describe_point(point)}" for point in self.points)])


@attrs.frozen
class SharingResult:
    """The sharing groups of a graph and the links that make them.

    Args:
        groups: all groups; every annotated point is in one of them.
        creation_order: the same groups, each behind those its spec is derived from, else in graph order.
    """

    groups: tuple[SharingGroup, ...]
    creation_order: tuple[SharingGroup, ...]
    _links: LinkGraph = attrs.field(repr=False)

    @property
    def links(self) -> tuple[Link, ...]:
        """Why points share: the explicit links in graph order, then the implicit ones."""
        return self._links.links

    @property
    def graph(self) -> nx.Graph[EdgeOrNode]:
        """The links as a networkx graph over the points, with the attribute ``link`` on each edge."""
        return self._links.graph

    @functools.cached_property
    def _group_of(self) -> dict[EdgeOrNode, SharingGroup]:
        return {point: group for group in self.groups for point in group.points}

    def group_of(self, point: EdgeOrNode) -> SharingGroup | None:
        """The group of ``point``; None if it is not annotated and hence stays float."""
        return self._group_of.get(point)

    def why(self, a: EdgeOrNode, b: EdgeOrNode) -> list[Link]:
        """The shortest chain of links that makes ``a`` and ``b`` share; empty if they are one point.

        Raises:
            SharingError: one of them is not annotated, or they do not share; the text says why not.
        """
        of_a, of_b = self._group_of.get(a), self._group_of.get(b)
        if of_a is None or of_b is None:
            floats = a if of_a is None else b
            raise SharingError(
                f"{describe_point(floats)} is not annotated, so it shares with nothing",
                where=places([owner_of(floats)]),
                hint="annotate it, or ask about a point that is",
            )
        if of_a is not of_b:
            raise SharingError(
                f"{describe_point(a)} and {describe_point(b)} do not share: {_why_not(a, of_a, b, of_b)}",
                where=places([owner_of(a), owner_of(b)]),
                hint="to make them share, annotate one with a SharedQuantizationSpec that names the other",
            )
        return self._links.path(a, b)

    def explain(self, a: EdgeOrNode, b: EdgeOrNode) -> str:
        """:meth:`why` as text, a line a link."""
        title = f"{describe_point(a)} and {describe_point(b)} share:"
        return "\n".join([title, *(f"  {link}" for link in self.why(a, b))])

    def __str__(self) -> str:
        return "\n".join(str(group) for group in self.groups)


def _why_not(a: EdgeOrNode, of_a: SharingGroup, b: EdgeOrNode, of_b: SharingGroup) -> str:
    if tensor_of(a) is not tensor_of(b):
        return "no chain of annotations links the two tensors"
    if spec_key(of_a.spec) == spec_key(of_b.spec):
        refusing = next(
            point
            for point in (a, b)
            if not isinstance(point, Node)
            and (annotation := get_annotation(point[1])) is not None
            and not annotation.allow_implicit_sharing
        )
        return f"the annotation of %{refusing[1].name} has allow_implicit_sharing=False"
    if type(of_a.spec) is not type(of_b.spec):
        return f"one has a {type(of_a.spec).__name__}, the other a {type(of_b.spec).__name__}"
    keys_a, keys_b = (cast(tuple[Hashable, ...], spec_key(spec)) for spec in (of_a.spec, of_b.spec))
    fields = ["type", *attrs.fields_dict(type(of_a.spec))]
    different = [f for f, key_a, key_b in zip(fields, keys_a, keys_b, strict=True) if key_a != key_b]
    return f"their specs differ in {', '.join(different)}"
