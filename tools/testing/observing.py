"""Laws of annotated points: none loses its spec, and one observer looks at a sharing group."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.fx import GraphModule, Node

from ...ir.aliasing import is_write
from ...ir.annotation import QuantizationAnnotation, get_annotation
from ...ir.attributes import find_attribute
from ...ir.points import annotated_points, owner_of, tensor_of
from ...ir.sharing import resolve_sharing
from ...ir.specs import DerivedQuantizationSpec, SharedQuantizationSpec
from ...ir.stages import Stage, get_stage
from ...ir.verifiers import is_observer
from .run import LawBroken, Run

__all__ = ["annotations_preserved", "one_observer_a_group"]


def annotations_preserved(run: Run) -> None:
    """As long as graphs have annotations, no spec gets lost, though it may move to another point."""
    if get_stage(run.after) is not Stage.ANNOTATED or get_stage(run.before) is not Stage.ANNOTATED:
        return
    before, after = (
        Counter(spec for node in gm.graph.nodes for spec in _specs(get_annotation(node)))
        for gm in (run.before, run.after)
    )
    if before - after:
        raise LawBroken(f"specs are lost: {dict(before - after)}")


def _specs(annotation: QuantizationAnnotation | None) -> list[str]:
    """The specs of an annotation; those of other points without the points, whose names may differ."""
    if annotation is None:
        return []
    specs = [s for s in (*annotation.input_qspec_map.values(), annotation.output_qspec) if s is not None]
    refers = (SharedQuantizationSpec, DerivedQuantizationSpec)
    return [type(s).__name__ if isinstance(s, refers) else repr(s) for s in specs]


def one_observer_a_group(run: Run) -> None:
    """Points have one observer if and only if they share one scale and zero point.

    Whatever the resolver of sharing says, one observer is of one spec, and of one tensor unless specs refer
    to each other.
    """
    if run.pass_.ensures is not Stage.OBSERVED or any(map(is_write, run.before.graph.nodes)):
        return
    now = {node.name: node for node in run.after.graph.nodes}
    points = annotated_points(run.before.graph)
    refers = any(isinstance(spec, (SharedQuantizationSpec, DerivedQuantizationSpec)) for _, spec in points)
    specs = dict(points)
    group_of: dict[int, tuple[int, Any, Any]] = {}
    groups = resolve_sharing(run.before.graph).groups
    if sum(len(group.points) for group in groups) != len(points):
        raise LawBroken("annotated points are in no sharing group, or in several")
    for group in groups:
        observers: set[int] = set()
        if not refers and len({repr(specs[point]) for point in group.points}) > 1:
            raise LawBroken(f"points of several specs are one group: {group}")
        for point in group.points:
            if isinstance(point, Node) or owner_of(point).name not in now:
                continue
            source = tensor_of(point)
            observer = _observer_between(run.after, source.name, now[owner_of(point).name])
            if observer is None:
                raise LawBroken(f"what %{owner_of(point).name} reads of %{source.name} has no observer")
            observers.add(id(observer))
            spec = group.spec if refers else specs[point]
            known = group_of.setdefault(id(observer), (group.index, spec, None if refers else source))
            if known != (group.index, spec, None if refers else source):
                raise LawBroken(f"points of other specs, tensors or groups have the observer of {group}")
        if len(observers) > 1:
            raise LawBroken(f"the points of {group} have {len(observers)} observers")


def _observer_between(gm: GraphModule, source: str, reader: Node) -> Any:
    """The observer that ``reader`` reads the value of ``source`` through, wherever it reads it, or None."""
    seen: dict[int, Any] = {}
    for node in reader.all_input_nodes:
        found, at = None, node
        while at.op == "call_module" and is_observer(module := find_attribute(gm, str(at.target))):
            found = module if found is None else found
            at = at.args[0]
            assert isinstance(at, Node)
        if at.name == source:
            seen[id(found)] = found
    return next(iter(seen.values())) if len(seen) == 1 else None
