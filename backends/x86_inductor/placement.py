"""Which operators run in int8 and which in float so that all together take the least time.

An operator takes its time in one form or the other; where an operator of one form reads the result of another
form, a loop converts in between. Two labels, costs of labels and of pairs of labels: where converting there
and back costs no less than staying, the best labels are a minimum cut (Greig, Porteous, Seheult, "Exact
maximum a posteriori estimation for binary images", 1989; for any such pair of costs, Kolmogorov and Zabih,
"What energy functions can be minimized via graph cuts?", 2004).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import attrs

__all__ = ["Link", "Times", "cheapest_floats"]


@attrs.frozen
class Times:
    """What an operator takes in each of the two forms, in any one unit."""

    int8: float
    float32: float


@attrs.frozen
class Link:
    """What the loop between two operators takes, by their forms; none where both are int8.

    Args:
        source: who makes the tensor.
        reader: who reads it.
        to_float: ``source`` is int8 and ``reader`` float.
        to_int8: ``source`` is float and ``reader`` int8.
        in_float: both are float.
    """

    source: str
    reader: str
    to_float: float
    to_int8: float
    in_float: float

    def between(self, source_is_float: bool, reader_is_float: bool) -> float:
        """What it takes where they have these forms."""
        if source_is_float:
            return self.in_float if reader_is_float else self.to_int8
        return self.to_float if reader_is_float else 0.0


def cheapest_floats(times: Mapping[str, Times], links: Iterable[Link]) -> frozenset[str]:
    """The operators that are to be float; as few as possible of those that make no difference.

    A link whose conversions take less than its staying float is taken as if they took as much.
    """
    gains = {name: each.float32 - each.int8 for name, each in times.items()}
    apart: defaultdict[tuple[str, str], float] = defaultdict(float)
    for link in links:
        # With s and r, 1 where source and reader are float, and costs D, Q and F of the link, in its order:
        #   D (1 - s) r + Q s (1 - r) + F s r  =  Q s + (F - Q) r + (D + Q - F) (1 - s) r
        gains[link.source] += link.to_int8
        gains[link.reader] += link.in_float - link.to_int8
        apart[link.source, link.reader] += max(0.0, link.to_float + link.to_int8 - link.in_float)
    import networkx as nx  # a tenth of a second that other lowering does not need

    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from((_INT8, _FLOAT))
    for name, gain in gains.items():
        if gain > 0:
            graph.add_edge(_INT8, name, capacity=gain)
        else:
            graph.add_edge(name, _FLOAT, capacity=-gain)
    for (source, reader), cost in apart.items():
        graph.add_edge(source, reader, capacity=cost)
    _, (_, floats) = nx.minimum_cut(graph, _INT8, _FLOAT)
    return frozenset(name for name in times if name in floats)


# The two sides of the cut. No operator has such a name.
_INT8, _FLOAT = "<int8>", "<float>"
