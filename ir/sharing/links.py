"""Links: why two points share, and the chain of links between any two."""

from __future__ import annotations

import enum
import functools
import itertools
from typing import TYPE_CHECKING

import attrs

from ..location import describe_point
from ..points import tensor_of
from ..specs import EdgeOrNode
from .chains import Step

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Link", "LinkGraph", "LinkReason"]


class LinkReason(enum.Enum):
    """Why two points share."""

    EXPLICIT = "explicit"
    """One is annotated with a ``SharedQuantizationSpec`` that names the other."""
    IMPLICIT = "implicit"
    """Both carry one tensor, with equal specs."""


@attrs.frozen
class Link:
    """Two points that share for one reason: ``a`` names ``b`` (explicit), or both carry one tensor."""

    a: EdgeOrNode
    b: EdgeOrNode
    reason: LinkReason

    def __str__(self) -> str:
        a, b = describe_point(self.a), describe_point(self.b)
        if self.reason is LinkReason.EXPLICIT:
            return f"{a} is annotated to share with {b} (explicit)"
        return f"{a} and {b} carry %{tensor_of(self.a).name} with equal specs (implicit)"

    @property
    def verb(self) -> str:
        """What one point does to the other, for chains in one sentence."""
        return "shares with" if self.reason is LinkReason.EXPLICIT else "implicitly shares with"


@attrs.frozen
class LinkGraph:
    """The links of a graph: explicit ones first, then implicit ones, and at most one a point and reason."""

    links: tuple[Link, ...]

    @functools.cached_property
    def graph(self) -> nx.Graph[EdgeOrNode]:
        """The links as a networkx graph over the points; the attribute ``link`` of an edge is the link.

        Made when first asked for. Where a pair is linked both ways, the explicit link stands.
        """
        import networkx as nx  # a tenth of a second that resolving itself does not need

        graph: nx.Graph[EdgeOrNode] = nx.Graph()
        for link in self.links:
            if not graph.has_edge(link.a, link.b):
                graph.add_edge(link.a, link.b, link=link)
        return graph

    def path(self, a: EdgeOrNode, b: EdgeOrNode) -> list[Link]:
        """The links of a shortest chain from ``a`` to ``b``, which share; empty if they are one point."""
        if a == b:
            return []
        import networkx as nx

        # networkx's stubs leave the options of its backends untyped.
        points: list[EdgeOrNode] = nx.shortest_path(self.graph, a, b)  # pyright: ignore[reportUnknownMemberType]
        return [self.graph.edges[pair]["link"] for pair in itertools.pairwise(points)]

    def steps(self, a: EdgeOrNode, b: EdgeOrNode) -> list[Step]:
        """The chain from ``a`` to ``b`` as the steps of a sentence that begins with ``a``."""
        steps: list[Step] = []
        at = a
        for link in self.path(a, b):
            at = link.b if at == link.a else link.a
            steps.append((link.verb, at))
        return steps
