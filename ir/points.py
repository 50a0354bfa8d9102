"""Points: the input edges and outputs at which a graph is annotated."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import TypeVar

import attrs
from torch.fx import Graph, Node

from ..errors import AnnotationError
from .annotation import QuantizationAnnotation
from .location import describe_point
from .meta import ANNOTATION_KEY
from .problems import Problem, combine, places
from .specs import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)

__all__ = [
    "PointFault",
    "annotated_points",
    "as_point",
    "describe_reference",
    "map_points",
    "owner_of",
    "point_fault",
    "remap_annotations",
    "tensor_of",
]

_T = TypeVar("_T")

_SPECS = (
    QuantizationSpec,
    FixedQParamsQuantizationSpec,
    SharedQuantizationSpec,
    DerivedQuantizationSpec,
)


def tensor_of(point: EdgeOrNode) -> Node:
    """The node whose value the point carries: the producer of an edge, or the node itself."""
    return point if isinstance(point, Node) else point[0]


def owner_of(point: EdgeOrNode) -> Node:
    """The node whose annotation holds the point's spec: the consumer of an edge, or the node itself."""
    return point if isinstance(point, Node) else point[1]


def as_point(value: object) -> EdgeOrNode | None:
    """``value`` if it has the form of a point (a node, or a tuple of two), else None."""
    if isinstance(value, Node):
        return value
    match value:
        case (Node() as producer, Node() as consumer) if isinstance(value, tuple):
            return (producer, consumer)
        case _:
            return None


def map_points(
    spec: QuantizationSpecBase | None, change: Callable[[EdgeOrNode], EdgeOrNode]
) -> QuantizationSpecBase | None:
    """``spec`` with each point it refers to replaced by what ``change`` makes of it.

    What is no point stays as it is: whoever reads the annotation reports it.
    """

    def changed(value: EdgeOrNode) -> EdgeOrNode:
        return value if as_point(value) is None else change(value)

    if isinstance(spec, SharedQuantizationSpec):
        return attrs.evolve(spec, edge_or_node=changed(spec.edge_or_node))
    if isinstance(spec, DerivedQuantizationSpec):
        return attrs.evolve(spec, derived_from=[changed(point) for point in spec.derived_from])
    return spec


def describe_reference(value: object) -> str:
    """The text of what a spec names as a point, also when it is none."""
    point = as_point(value)
    return f"a {type(value).__name__}" if point is None else describe_point(point)


@attrs.frozen
class PointFault:
    """Why a spec cannot refer to something as an annotated point of a graph.

    Args:
        reason: a clause that fits behind "which".
        hint: what to do about it.
    """

    reason: str
    hint: str


def point_fault(value: object, nodes: Container[Node], annotated: Container[EdgeOrNode]) -> PointFault | None:
    """Why ``value`` is not an annotated point, or None if it is one.

    Args:
        value: what a shared or derived spec refers to.
        nodes: the nodes of the graph.
        annotated: the points of the graph that have a spec.
    """
    point = as_point(value)
    if point is None:
        return PointFault(
            "is not a point", "name a node (its output) or an input edge, the tuple (producer, consumer)"
        )
    for node in (point,) if isinstance(point, Node) else point:
        if node not in nodes:
            return PointFault(
                f"names %{node.name}, a node that is not in this graph",
                "annotate the graph that is prepared, with its own nodes; a copy of a graph has new ones",
            )
    if not isinstance(point, Node):
        producer, consumer = point
        if consumer not in producer.users:
            swapped = producer in consumer.users
            return PointFault(
                f"is not an edge: %{producer.name} is not an input of %{consumer.name}",
                f"swap the two: the edge is (%{consumer.name}, %{producer.name})"
                if swapped
                else "an edge is (producer, consumer), and the consumer reads the producer itself",
            )
    if point not in annotated:
        return PointFault(
            "is not annotated", "give that point a spec of its own, or refer to a point that has one"
        )
    return None


def annotated_points(graph: Graph) -> list[tuple[EdgeOrNode, QuantizationSpecBase]]:
    """The points of ``graph`` that have a spec, with it, in graph order.

    Graph order is: for each node, its input edges in the order of ``node.all_input_nodes``, then its output.
    Entries whose spec is None are left out: those tensors stay float.

    Raises:
        AnnotationError: annotations that are no ``QuantizationAnnotation``, specs that are no spec, and
            entries of an ``input_qspec_map`` whose key is not an input of the node; all at once.
    """
    points: list[tuple[EdgeOrNode, QuantizationSpecBase]] = []
    problems: list[Problem] = []
    for position, node in enumerate(graph.nodes):
        annotation: object = node.meta.get(ANNOTATION_KEY)
        if annotation is None:
            continue
        if not isinstance(annotation, QuantizationAnnotation):
            problems.append(
                Problem(
                    f"%{node.name} is annotated with a {type(annotation).__module__}."
                    f"{type(annotation).__qualname__}, not with a QuantizationAnnotation of lowbit",
                    places([node]),
                    f'put a lowbit.QuantizationAnnotation into node.meta["{ANNOTATION_KEY}"]',
                    position,
                )
            )
            continue
        inputs = dict.fromkeys(node.all_input_nodes)
        entries: list[tuple[EdgeOrNode, object]] = []
        entries.extend(
            ((i, node), annotation.input_qspec_map[i]) for i in inputs if i in annotation.input_qspec_map
        )
        entries.append((node, annotation.output_qspec))
        for point, spec in entries:
            if isinstance(spec, _SPECS):
                points.append((point, spec))
            elif spec is not None:
                problems.append(_not_a_spec(point, spec, position))
        problems.extend(
            _bogus_edge(key, node, position) for key in annotation.input_qspec_map if key not in inputs
        )
    if problems:
        raise combine(problems, AnnotationError, "with the annotations of the graph")
    return points


def _not_a_spec(point: EdgeOrNode, spec: object, position: int) -> Problem:
    kind = f"{type(spec).__module__}.{type(spec).__qualname__}"
    return Problem(
        f"{describe_point(point)} is annotated with a {kind}, which is not a spec of lowbit",
        places([owner_of(point)]),
        f"use one of {', '.join(s.__name__ for s in _SPECS)}, or None to leave the tensor float",
        position,
    )


def _bogus_edge(key: object, node: Node, position: int) -> Problem:
    text = f"%{key.name}" if isinstance(key, Node) else f"a {type(key).__name__}"
    inputs = ", ".join(f"%{i.name}" for i in node.all_input_nodes) or "none"
    return Problem(
        f"%{node.name} is annotated at an input edge from {text}, which is not an input of it",
        places([node]),
        f"the keys of input_qspec_map are the nodes that the node reads itself, which are: {inputs}",
        position,
    )


def remap_annotations(graph: Graph, node_map: Mapping[Node, Node]) -> None:
    """Let the annotations of ``graph``, a copy, refer to its nodes in place of those that were copied."""

    # What is not a node of the graph stays as it is, be it a node of another or no node at all: whoever
    # reads the annotation reports it.
    def remap(node: _T) -> _T:
        return node_map.get(node, node) if isinstance(node, Node) else node

    def remap_point(point: EdgeOrNode) -> EdgeOrNode:
        return remap(point) if isinstance(point, Node) else (remap(point[0]), remap(point[1]))

    for node in graph.nodes:
        annotation: object = node.meta.get(ANNOTATION_KEY)
        if not isinstance(annotation, QuantizationAnnotation):
            continue
        node.meta[ANNOTATION_KEY] = attrs.evolve(
            annotation,
            input_qspec_map={
                remap(producer): map_points(spec, remap_point)
                for producer, spec in annotation.input_qspec_map.items()
            },
            output_qspec=map_points(annotation.output_qspec, remap_point),
        )
