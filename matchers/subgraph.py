"""Finding the occurrences of a pattern in a graph.

A candidate is a node with the target of the pattern's anchor. FX keeps a table from targets to nodes, so no
scan is needed to find them. From there the pattern is followed backwards, from operators to their arguments.
How much of the graph is read at a candidate depends on the pattern alone, so matching is linear in the size
of the graph; the exception is a pattern of several outputs, which also reads the users of what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from torch.fx import Graph, GraphModule, Node

from ..errors import PatternError
from .capture import canonical_pattern, capture
from .match import Match, Miss
from .pattern import read_pattern
from .search import Search

__all__ = ["SubgraphMatcherWithNameNodeMap"]


class SubgraphMatcherWithNameNodeMap:
    """Finds a pattern, and the nodes it gives names to, in canonical ATen graphs.

    ::

        def conv_relu(input, weight, bias):
            conv = F.conv2d(input, weight, bias)
            output = F.relu(conv)
            return output, {"input": input, "weight": weight, "bias": bias, "output": output}

        inputs = (torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4))
        for match in SubgraphMatcherWithNameNodeMap(conv_relu, inputs).match(model):
            match.name_node_map["output"].meta["quantization_annotation"] = ...

    What matches what:

    - an operator matches a call of the same ATen operator; arguments that are left out have their defaults;
    - a tensor the pattern takes matches any node that the match does not compute; taken twice, it is the same
      node twice; where the operator may do without it (the bias of a convolution), it matches None too;
    - a number never matches a tensor, nor a tensor a number;
    - the operands of ``add`` and ``mul`` match in either order, preferably as written;
    - an operator whose result the pattern does not return has no user outside the match.

    The outputs of a pattern of several are looked for one after another, each found is settled.

    Args:
        pattern: a torch function, captured with ``example_inputs`` once in a process, or an exported graph
            module, which is left as it is. A dict as the last value it returns gives names.
        example_inputs: what ``pattern`` is captured with, if it is a function.
        match_output: match only where the pattern's outputs are the outputs of the graph.
        match_placeholder: match inputs of the pattern with placeholders of the graph only.
        remove_overlapping_matches: an operator belongs to one match at most, the first in graph order.
        ignore_literals: literals (stride, padding, eps, …) match whatever their values are.

    Raises:
        CaptureError: the function does not export.
        PatternError: the pattern can match nothing, or is a function without ``example_inputs``.
    """

    def __init__(
        self,
        pattern: Callable[..., Any] | GraphModule,
        example_inputs: tuple[Any, ...] | None = None,
        *,
        match_output: bool = False,
        match_placeholder: bool = False,
        remove_overlapping_matches: bool = True,
        ignore_literals: bool = True,
    ) -> None:
        if isinstance(pattern, GraphModule):
            gm = canonical_pattern(pattern)
        elif example_inputs is None:
            name = getattr(pattern, "__qualname__", repr(pattern))
            raise PatternError(
                f"the pattern {name} came without example inputs to capture it with",
                hint="pass example_inputs: tensors with the shapes and dtypes that the function takes",
            )
        else:
            gm = capture(pattern, example_inputs)
        self._pattern = read_pattern(gm)
        self.match_output = match_output
        self.match_placeholder = match_placeholder
        self.remove_overlapping_matches = remove_overlapping_matches
        self.ignore_literals = ignore_literals

    @property
    def pattern(self) -> Graph:
        """The canonical graph of the pattern, whose nodes are the keys of ``Match.nodes_map``."""
        return self._pattern.graph

    def match(self, graph: Graph | GraphModule) -> list[Match]:
        """All occurrences of the pattern in ``graph``, in graph order of their anchors."""
        graph = graph.graph if isinstance(graph, GraphModule) else graph
        matches: list[Match] = []
        claimed: set[Node] = set()
        for node in graph.find_nodes(op="call_function", target=self._pattern.anchor.target):
            found = self.match_at(node, claimed=claimed)
            if isinstance(found, Match):
                matches.append(found)
                if self.remove_overlapping_matches:
                    claimed.update(found.nodes)
        return matches

    def match_at(self, anchor: Node, *, claimed: Set[Node] = frozenset()) -> Match | Miss:
        """The occurrence of the pattern whose first output is ``anchor``, or why there is none.

        Args:
            anchor: a node of any kind.
            claimed: operators that the match must leave alone.
        """
        search = Search(
            self._pattern,
            claimed,
            match_placeholder=self.match_placeholder,
            ignore_literals=self.ignore_literals,
        )
        found = search.match_at(anchor)
        if not self.match_output or isinstance(found, Miss):
            return found
        returned = anchor.graph.output_node().all_input_nodes
        if returned == list(dict.fromkeys(found.returning_nodes)):
            return found
        return Miss("not-returned", anchor, "the graph does not return just what the match computes")
