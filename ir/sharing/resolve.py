"""Resolving the sharing of an annotated graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch.fx import Graph

from ...errors import SharingError
from ..points import annotated_points
from ..problems import combine
from ..specs import ConcreteSpec, EdgeOrNode
from .derived import creation_order, cycle_problems, find_dependencies
from .explicit import follow_anchors
from .implicit import implicit_pairs
from .links import Link, LinkGraph, LinkReason
from .result import SharingGroup, SharingResult
from .tensors import tensor_problems
from .union_find import UnionFind

__all__ = ["resolve_sharing"]


def resolve_sharing(graph: Graph) -> SharingResult:
    """Find which points of an annotated ``graph`` have one scale and zero point; change nothing.

    Points share explicitly, when one has a ``SharedQuantizationSpec`` that names the other, which may stand
    before or after it; and implicitly, when they carry one tensor, their concrete specs are equal by
    ``spec_key``, and, for an edge, the annotation of its consumer allows it. Sharing is transitive. The work
    is near-linear in points and links, and nothing of it is recursive.

    Raises:
        AnnotationError: annotations of what is not in the graph, all at once.
        SharingError: anchors and sources that are not annotated points, cycles, and groups whose tensors
            cannot have one scale and zero point; all at once, each with the chain of annotations behind it.
    """
    annotated = annotated_points(graph)
    points = [point for point, _ in annotated]
    specs = dict(annotated)
    positions = {point: i for i, point in enumerate(points)}
    nodes = set(graph.nodes)

    explicit = follow_anchors(annotated, nodes)
    # A root is never a shared spec: that is what following the anchors ends at.
    concrete = [None if r is None else cast(ConcreteSpec, annotated[r][1]) for r in explicit.roots]

    pairs = [
        (i, anchor, LinkReason.EXPLICIT)
        for i, anchor in enumerate(explicit.anchors)
        if anchor is not None and concrete[i] is not None
    ]
    pairs += [(i, first, LinkReason.IMPLICIT) for i, first in implicit_pairs(points, concrete)]
    links = LinkGraph(tuple(Link(points[a], points[b], reason) for a, b, reason in pairs))
    sets = UnionFind.of_size(len(points))
    for a, b, _ in pairs:
        sets.union(a, b)

    groups = _groups(points, concrete, sets)
    dependencies, problems = find_dependencies(groups, specs, positions, nodes)
    order = creation_order(dependencies)
    if len(order) < len(groups):
        stuck = sorted(set(range(len(groups))) - set(order))
        problems += cycle_problems(dependencies, stuck, positions, links)
    problems += [*explicit.problems, *tensor_problems(groups, specs, positions, links)]
    if problems:
        raise combine(problems, SharingError, "with the sharing of quantization parameters")
    return SharingResult(groups, tuple(groups[i] for i in order), links)


def _groups(
    points: Sequence[EdgeOrNode], concrete: Sequence[ConcreteSpec | None], sets: UnionFind
) -> tuple[SharingGroup, ...]:
    members: dict[int, list[EdgeOrNode]] = {}
    specs: list[ConcreteSpec] = []
    for i, (point, spec) in enumerate(zip(points, concrete, strict=True)):
        if spec is None:  # its anchor leads nowhere, which is reported
            continue
        root = sets.find(i)
        if root == i:
            specs.append(spec)
        members.setdefault(root, []).append(point)
    return tuple(
        SharingGroup(index, tuple(group), spec)
        for index, (group, spec) in enumerate(zip(members.values(), specs, strict=True))
    )
