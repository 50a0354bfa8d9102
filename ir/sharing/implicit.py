"""The implicit rule: points on one tensor share when they have equal specs and may."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from torch.fx import Node

from ..annotation import get_annotation
from ..points import tensor_of
from ..specs import ConcreteSpec, EdgeOrNode, spec_key

__all__ = ["implicit_pairs"]


def implicit_pairs(
    points: Sequence[EdgeOrNode], specs: Sequence[ConcreteSpec | None]
) -> Iterator[tuple[int, int]]:
    """Pairs of points that share implicitly, enough of them to join all that do.

    The points of one tensor are its producer's output and the edges from it. They are put into buckets by
    the key of their spec, and each is paired with the first of its bucket: the work is linear in points,
    however many users a tensor has.

    Args:
        points: the points, in graph order.
        specs: their concrete specs; a point with None takes no part.

    Yields:
        indices ``(point, first of its bucket)``.
    """
    # Most points refer to a handful of spec objects; their keys are worth making once.
    keys: dict[int, Hashable] = {}
    first: dict[tuple[Node, Hashable], int] = {}
    for i, (point, spec) in enumerate(zip(points, specs, strict=True)):
        if spec is None or not _may_share(point):
            continue
        if id(spec) not in keys:
            keys[id(spec)] = spec_key(spec)
        start = first.setdefault((tensor_of(point), keys[id(spec)]), i)
        if start != i:
            yield i, start


def _may_share(point: EdgeOrNode) -> bool:
    if isinstance(point, Node):
        return True
    annotation = get_annotation(point[1])
    return annotation is not None and annotation.allow_implicit_sharing
