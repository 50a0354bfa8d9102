"""What is reported of points whose anchors lead to no spec: into a cycle, or to no annotated point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import attrs
from torch.fx import Node

from ..location import describe_point
from ..points import PointFault, as_point, describe_reference, owner_of
from ..problems import Problem, places
from ..specs import EdgeOrNode, QuantizationSpecBase, SharedQuantizationSpec
from .chains import Step, chain

__all__ = ["anchor_problems"]

_SHARES = "shares with"
_Cause: TypeAlias = tuple[str, str]


def anchor_problems(
    annotated: Sequence[tuple[EdgeOrNode, QuantizationSpecBase]],
    anchors: Sequence[int | None],
    roots: Sequence[int | None],
    faults: Mapping[int, PointFault],
    cycles: Iterable[Sequence[int]],
) -> list[Problem]:
    """One problem for each cycle and each bad anchor; its text has every point that gets no spec from it.

    The first line is a chain to the cause. Each further one is a chain that joins a point of the lines above,
    so the text is as long as there are points, however they branch.

    Args:
        annotated: points and specs, in graph order.
        anchors: for each point, the index of its anchor, if it has a good one.
        roots: for each point, the index of the point whose spec it has; None for those reported here.
        faults: for each point with a bad anchor, what is bad about it.
        cycles: the cycles, each as indices in the order of sharing.
    """
    points = [point for point, _ in annotated]
    reports = _Reports()
    for cycle in cycles:
        # From its last point on, so that the sentence reads up the graph, as annotations mostly point.
        first = cycle.index(max(cycle))
        members = [*cycle[first:], *cycle[:first]]
        steps: list[Step] = [(_SHARES, points[i]) for i in [*members[1:], members[0]]]
        reports.open(
            cause=("a cycle through", describe_point(points[members[0]])),
            members=members,
            text=f"{chain(points[members[0]], steps)}: a cycle",
            nodes=[owner_of(points[i]) for i in members],
            hint="give one of these points a spec of its own",
        )
    failed = [i for i, root in enumerate(roots) if root is None]
    leads_on = {anchors[i] for i in failed}
    for leaf in (i for i in failed if i not in leads_on):
        members = [leaf]
        while members[-1] not in faults and members[-1] not in reports.cause_of:
            anchor = anchors[members[-1]]
            assert anchor is not None  # a failed point without a fault has an anchor
            members.append(anchor)
        last = members[-1]
        steps = [(_SHARES, points[i]) for i in members[1:]]
        if last in reports.cause_of:
            reports.extend(reports.cause_of[last], members[:-1], chain(points[leaf], steps))
            continue
        spec = annotated[last][1]
        assert isinstance(spec, SharedQuantizationSpec)  # others have no anchor to be at fault
        reference: object = spec.edge_or_node
        steps.append((_SHARES, describe_reference(reference)))
        text, fault = chain(points[leaf], steps), faults[last]
        cause = (describe_reference(reference), fault.reason)
        if cause in reports.causes:
            reports.extend(cause, members, text)
        else:
            named = as_point(reference)
            reports.open(
                cause=cause,
                members=members,
                text=f"{text}, which {fault.reason}",
                nodes=[owner_of(points[last]), *([owner_of(named)] if named is not None else [])],
                hint=fault.hint,
            )
    return reports.problems()


@attrs.define
class _Report:
    lines: list[str]
    nodes: list[Node]
    hint: str
    position: int


@attrs.define
class _Reports:
    """The reports under way, by cause, and the cause that each failed point met so far has."""

    causes: dict[_Cause, _Report] = attrs.field(init=False, factory=dict[_Cause, _Report])
    cause_of: dict[int, _Cause] = attrs.field(init=False, factory=dict[int, _Cause])

    def open(self, *, cause: _Cause, members: Sequence[int], text: str, nodes: list[Node], hint: str) -> None:
        self.causes[cause] = _Report([text], nodes, hint, min(members))
        self.cause_of.update((i, cause) for i in members)

    def extend(self, cause: _Cause, members: Sequence[int], text: str) -> None:
        report = self.causes[cause]
        report.lines.append(f"  likewise {text}")
        report.position = min(report.position, *members)
        self.cause_of.update((i, cause) for i in members)

    def problems(self) -> list[Problem]:
        return [
            Problem("\n".join(r.lines), places(r.nodes), r.hint, r.position) for r in self.causes.values()
        ]
