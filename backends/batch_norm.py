"""Annotating a graph whose BatchNorms are still there, with patterns that know nothing of them.

Training keeps BatchNorm until conversion; inference has folded it into the convolution before it. What is
quantized is the same in both, so annotation looks at a copy of the graph in which the convolution stands for
both, and the annotations are carried over: what reads the convolution there reads BatchNorm here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import attrs
import torch
from torch.fx import Graph, Node

from ..ir.annotation import QuantizationAnnotation, get_annotation, is_annotated, set_annotation
from ..ir.attributes import is_constant
from ..ir.batch_norm import NotFoldable
from ..ir.points import map_points
from ..ir.specs import EdgeOrNode
from ..passes.qat.fuse_conv_bn import fusable_norm

__all__ = ["annotate_past_batch_norms"]


def annotate_past_batch_norms(graph: Graph, annotate: Callable[[Graph], None]) -> None:
    """Let ``annotate`` work on ``graph`` as if every BatchNorm that can be fused were part of its input."""
    norms: dict[Node, Node] = {}
    constant = functools.cache(is_constant)
    for call in graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        try:
            norms[fusable_norm(call, constant)[0].source] = call
        except NotFoldable:
            # fuse-conv-bn-qat, which cannot fuse it either, enters why in the ledger.
            continue
    if not norms:
        annotate(graph)
        return
    copy = Graph()
    copies: dict[Node, Node] = {}
    copy.output(copy.graph_copy(graph, copies))
    for conv, norm in norms.items():
        copies[norm].replace_all_uses_with(copies[conv])
        copy.erase_node(copies[norm])
    before = {copied for copied in copies.values() if is_annotated(copied)}
    annotate(copy)
    _CarryOver({copied: node for node, copied in copies.items()}, norms).carry(before)


@attrs.frozen
class _CarryOver:
    """Carries annotations from a copy to its original.

    Args:
        original: the node that each node of the copy stands for.
        norms: the BatchNorm behind each convolution that stands for both.
    """

    original: dict[Node, Node]
    norms: dict[Node, Node]

    def carry(self, before: set[Node]) -> None:
        """Carry all annotations but those of the nodes ``before``, which came from the original."""
        for copied, node in self.original.items():
            annotation = get_annotation(copied)
            if annotation is None or copied in before:
                continue
            carried = attrs.evolve(
                annotation,
                input_qspec_map={
                    self._output(source): map_points(spec, self._point)
                    for source, spec in annotation.input_qspec_map.items()
                },
                output_qspec=map_points(annotation.output_qspec, self._point),
            )
            norm = self.norms.get(node)
            if norm is not None:
                last = QuantizationAnnotation(
                    output_qspec=carried.output_qspec,
                    allow_implicit_sharing=carried.allow_implicit_sharing,
                    _annotated=carried._annotated,
                )
                set_annotation(norm, last)
                carried.output_qspec = None
            set_annotation(node, carried)

    def _output(self, copied: Node) -> Node:
        """The node whose output that of ``copied`` is."""
        node = self.original[copied]
        return self.norms.get(node, node)

    def _point(self, point: EdgeOrNode) -> EdgeOrNode:
        if isinstance(point, tuple):
            return (self._output(point[0]), self.original[point[1]])
        return self._output(point)
