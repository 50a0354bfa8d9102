"""Derived specs: groups whose parameters are computed from those of other groups."""

from __future__ import annotations

import heapq
from collections.abc import Container, Mapping, Sequence

import attrs
from torch.fx import Node

from ..points import describe_reference, owner_of, point_fault
from ..problems import Problem, places
from ..specs import DerivedQuantizationSpec, EdgeOrNode, QuantizationSpecBase
from .chains import Step, chain
from .links import LinkGraph
from .result import SharingGroup

__all__ = ["Dependency", "creation_order", "cycle_problems", "find_dependencies"]

_DERIVES = "derives from"


@attrs.frozen
class Dependency:
    """That a derived group needs another group's observer first.

    Args:
        holder: the point of the derived group whose spec says so.
        source: the point it derives from.
        on: the index of the group that ``source`` is in.
    """

    holder: EdgeOrNode
    source: EdgeOrNode
    on: int


def find_dependencies(
    groups: Sequence[SharingGroup],
    specs: Mapping[EdgeOrNode, QuantizationSpecBase],
    positions: Mapping[EdgeOrNode, int],
    nodes: Container[Node],
) -> tuple[list[list[Dependency]], list[Problem]]:
    """The dependencies of each group, in the order of ``derived_from``, and the references that are no good.

    Args:
        groups: the groups.
        specs: the spec that each annotated point has, whether it is in a group or not.
        positions: the place of each point in graph order.
        nodes: the nodes of the graph.
    """
    group_of = {point: group.index for group in groups for point in group.points}
    dependencies: list[list[Dependency]] = [[] for _ in groups]
    problems: list[Problem] = []
    for group in groups:
        if not isinstance(group.spec, DerivedQuantizationSpec):
            continue
        holder = next(p for p in group.points if isinstance(specs[p], DerivedQuantizationSpec))
        for source in group.spec.derived_from:
            fault = point_fault(source, nodes, specs)
            if fault is not None:
                text = chain(holder, [(_DERIVES, describe_reference(source))])
                problems.append(
                    Problem(
                        f"{text}, which {fault.reason}",
                        places([owner_of(holder)]),
                        fault.hint,
                        positions[holder],
                    )
                )
            elif source in group_of:  # else its own sharing is a problem reported already
                dependencies[group.index].append(Dependency(holder, source, group_of[source]))
    return dependencies, problems


def creation_order(dependencies: Sequence[Sequence[Dependency]]) -> list[int]:
    """Group indices, sources before what is derived from them, otherwise ascending.

    Groups on a cycle, and those that depend on one, are left out.
    """
    waiting_for = [len({d.on for d in needs}) for needs in dependencies]
    dependents: list[list[int]] = [[] for _ in dependencies]
    for index, needs in enumerate(dependencies):
        for on in dict.fromkeys(d.on for d in needs):
            dependents[on].append(index)
    ready = [index for index, count in enumerate(waiting_for) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for dependent in dependents[index]:
            waiting_for[dependent] -= 1
            if waiting_for[dependent] == 0:
                heapq.heappush(ready, dependent)
    return order


def cycle_problems(
    dependencies: Sequence[Sequence[Dependency]],
    stuck: Sequence[int],
    positions: Mapping[EdgeOrNode, int],
    links: LinkGraph,
) -> list[Problem]:
    """One cycle, as a chain of annotations, for each knot of groups that derive from each other.

    Args:
        dependencies: the dependencies of each group.
        stuck: the groups that :func:`creation_order` leaves out, ascending.
        positions: the place of each point in graph order.
        links: the links, for the chains inside a group.
    """
    import networkx as nx  # a tenth of a second, and only this error needs it

    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_edges_from((index, d.on) for index in stuck for d in dependencies[index])
    problems: list[Problem] = []
    for knot in nx.strongly_connected_components(graph):
        start = min(knot)
        if len(knot) == 1 and not graph.has_edge(start, start):
            continue
        problems.append(_cycle_problem(_walk_to_cycle(start, knot, dependencies), positions, links))
    return problems


def _walk_to_cycle(
    start: int, knot: Container[int], dependencies: Sequence[Sequence[Dependency]]
) -> list[Dependency]:
    walked: dict[int, Dependency] = {}
    at = start
    while at not in walked:
        walked[at] = next(d for d in dependencies[at] if d.on in knot)
        at = walked[at].on
    steps = list(walked.values())
    return steps[list(walked).index(at) :]


def _cycle_problem(
    cycle: Sequence[Dependency], positions: Mapping[EdgeOrNode, int], links: LinkGraph
) -> Problem:
    steps: list[Step] = []
    for this, following in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
        steps += [(_DERIVES, this.source), *links.steps(this.source, following.holder)]
    holders = [d.holder for d in cycle]
    return Problem(
        f"{chain(holders[0], steps)}: a cycle",
        places(owner_of(holder) for holder in holders),
        "give one of these points a spec that does not depend on the others",
        min(positions[holder] for holder in holders),
    )
