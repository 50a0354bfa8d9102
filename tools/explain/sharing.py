"""``why_shared``: the chain of annotations that makes two tensors share a scale and zero point."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping

import attrs
from torch.fx import GraphModule, Node

from ...errors import SharingError, StageError, UnknownNameError
from ...ir.float_view import float_view
from ...ir.location import describe_point
from ...ir.sharing import SharingResult, resolve_sharing
from ...ir.specs import EdgeOrNode
from ...ir.stages import Stage, get_stage

__all__ = ["SharingExplanation", "why_shared"]


@attrs.frozen
class SharingExplanation:
    """Why two points share a scale and zero point, or why not; ``str()`` of it is text for people.

    Args:
        a: one of the two points.
        b: the other.
        shares: whether they share.
        chain: of two that share, a shortest chain of reasons from one to the other, a sentence each.
        why_not: of two that do not, why.
        group: number of the sharing group of those that share.
    """

    a: str
    b: str
    shares: bool
    chain: tuple[str, ...] = ()
    why_not: str = ""
    group: int | None = None

    def __str__(self) -> str:
        if not self.shares:
            return self.why_not
        if not self.chain:
            return f"{self.a} and {self.b} are one point, in group {self.group}"
        title = f"{self.a} and {self.b} share one scale and zero point (group {self.group}):"
        return "\n".join([title, *(f"  {link}" for link in self.chain)])


def why_shared(model: GraphModule, a: str | tuple[str, str], b: str | tuple[str, str]) -> SharingExplanation:
    """Why two tensors of a prepared model have one scale and zero point, or why they have not.

    ::

        print(why_shared(prepared, "relu", "cat"))
        print(why_shared(prepared, "relu -> conv2d_1", ("relu", "add")))

    Args:
        model: what ``prepare_pt2e`` or ``prepare_qat_pt2e`` returned.
        a: a tensor by the name of the node that makes it, or an edge: ``"x -> conv2d"`` or a pair of names.
            A tensor shares where its output does, or an edge that reads it.
        b: likewise.

    Raises:
        StageError: the model is not prepared, or converted already, which ends all sharing.
        UnknownNameError: there is no such node; the hint has the nearest names.
    """
    if not isinstance(model, GraphModule) or get_stage(model) not in (Stage.ANNOTATED, Stage.OBSERVED):
        raise StageError(
            "the sharing was asked for of a model that is not prepared, or converted already",
            hint="keep what prepare_pt2e returned, and ask that; convert_pt2e does not change it",
        )
    view = float_view(model).graph
    sharing = resolve_sharing(view)
    names = _Names({node.name: node for node in view.nodes}, {node.name: node for node in model.graph.nodes})
    pairs = list(itertools.product(names.points(sharing, a), names.points(sharing, b)))
    # One point is shared with itself, which is no news where there is another.
    for one, other in sorted(pairs, key=lambda pair: pair[0] == pair[1]):
        group = sharing.group_of(one)
        if group is not None and group is sharing.group_of(other):
            chain = tuple(map(str, sharing.why(one, other)))
            said = describe_point(one), describe_point(other)
            return SharingExplanation(*said, shares=True, chain=chain, group=group.index)
    one, other = pairs[0]
    said = describe_point(one), describe_point(other)
    return SharingExplanation(*said, shares=False, why_not=_why_not(sharing, one, other))


def _why_not(sharing: SharingResult, one: EdgeOrNode, other: EdgeOrNode) -> str:
    try:
        sharing.why(one, other)
    except SharingError as error:
        return error.found
    raise AssertionError("points of different groups share")


@attrs.frozen
class _Names:
    """Finds points by the names of their nodes.

    Args:
        nodes: of the graph as it was annotated.
        now: of the graph as it is, with its observers.
    """

    nodes: Mapping[str, Node]
    now: Mapping[str, Node]

    def points(self, sharing: SharingResult, asked: str | tuple[str, str]) -> list[EdgeOrNode]:
        """The points that ``asked`` is about; one at least."""
        names = asked.split("->") if isinstance(asked, str) else asked
        found = [self._node(name.strip().removeprefix("%")) for name in names]
        if len(found) == 1:
            (node,) = found
            carrying: list[EdgeOrNode] = [node, *((node, user) for user in node.users)]
            return [point for point in carrying if sharing.group_of(point) is not None] or [node]
        producer, reader = found
        if reader not in producer.users:
            readers = ", ".join(f"%{user.name}" for user in producer.users)
            raise UnknownNameError(
                f"there is no edge %{producer.name} → %{reader.name}",
                hint=f"its readers are: {readers or 'none'}",
            )
        return [(producer, reader)]

    def _node(self, name: str) -> Node:
        observer = self.now.get(name)
        while observer is not None and observer.name not in self.nodes:
            # An observer stands for the tensor that it observes.
            (observer,) = observer.all_input_nodes
        if observer is None:
            near = difflib.get_close_matches(name, list(self.nodes), n=3, cutoff=0.4)
            raise UnknownNameError(
                f"{name!r} is no node of the model", hint=f"the nearest: {', '.join(near) or 'none'}"
            )
        return self.nodes[observer.name]
