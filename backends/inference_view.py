"""Annotating a graph in training as inference will see it, with patterns that know nothing of training.

Training keeps BatchNorm and dropout; inference has folded the one into the convolution before it, and has not
the other. What is quantized is to be the same in both, so annotation looks at a copy of the graph without
them, and the annotations are carried over:

- the convolution there stands for both, so what reads it there reads BatchNorm here;
- what reads a tensor through dropout reads it, quantized, before dropout: behind it values are larger by
  1 / (1 - p), which inference never sees.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from typing import cast

import attrs
import torch
from torch.fx import Graph, Node

from ..ir.annotation import QuantizationAnnotation, get_annotation, is_annotated, set_annotation
from ..ir.attributes import is_constant
from ..ir.batch_norm import NotFoldable
from ..ir.ledger import Ledger
from ..ir.points import map_points
from ..ir.schema import argument
from ..ir.specs import EdgeOrNode, QuantizationSpecBase
from ..ir.train_eval import DROPOUTS
from ..passes.qat.fuse_conv_bn import explain_fused, fusable_norm

__all__ = ["annotate_as_inference"]


def annotate_as_inference(graph: Graph, annotate: Callable[[Graph], None], ledger: Ledger) -> None:
    """Let ``annotate`` work on ``graph`` as if it had no BatchNorms and dropouts but those that stay.

    BatchNorms stay that cannot be fused, and dropouts that several operators read, whose edges would become
    one edge here. What becomes of those that ``annotate`` does not see is entered in ``ledger``.
    """
    norms, dropouts = _fusable_norms(graph), _private_dropouts(graph)
    if not (norms or dropouts):
        annotate(graph)
        return
    copy = Graph()
    copies: dict[Node, Node] = {}
    copy.output(copy.graph_copy(graph, copies))
    for conv, norm in norms.items():
        copies[norm].replace_all_uses_with(copies[conv])
        copy.erase_node(copies[norm])
    entries: dict[tuple[Node, Node], Node] = {}
    for dropout, (entry, reader) in dropouts.items():
        copied = copies[dropout]
        source = cast(Node, copied.args[0])
        if reader not in dropouts:
            entries[cast(Node, entry.args[0]), reader] = entry
        copied.replace_all_uses_with(source)
        copy.erase_node(copied)
    before = {copied for copied in copies.values() if is_annotated(copied)}
    _rename_sources(copies, {norm: conv for conv, norm in norms.items()}, dropouts)
    annotate(copy)
    for conv, norm in norms.items():
        explain_fused(norm, conv, ledger)
    for dropout in dropouts:
        ledger.missed("training-only", dropout, "inference does not have it")
    original = {copied: node for node, copied in copies.items()}
    _CarryOver(original, norms, entries).carry(before)


def _fusable_norms(graph: Graph) -> dict[Node, Node]:
    """The BatchNorms that can be fused, by their convolution."""
    norms: dict[Node, Node] = {}
    constant = functools.cache(is_constant)
    for call in graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        try:
            norms[fusable_norm(call, constant)[0].source] = call
        except NotFoldable:
            # fuse-conv-bn-qat, which cannot fuse it either, enters why in the ledger.
            continue
    return norms


def _private_dropouts(graph: Graph) -> dict[Node, tuple[Node, Node]]:
    """The dropouts with one reader, in graph order: the first of a chain of them, and the reader."""
    found = (node for target in DROPOUTS for node in graph.find_nodes(op="call_function", target=target))
    dropouts: dict[Node, tuple[Node, Node]] = {}
    for node in sorted(found):
        source = node.args[0]
        if not isinstance(source, Node) or len(node.users) != 1 or is_annotated(node):
            continue
        entry = dropouts[source][0] if source in dropouts else node
        (reader,) = node.users
        # Of x + dropout(x), both operands would be one edge.
        if reader not in cast(Node, entry.args[0]).users and argument(node, "train") is not False:
            dropouts[node] = (entry, reader)
    return dropouts


def _rename_sources(
    copies: dict[Node, Node], convolutions: dict[Node, Node], dropouts: Container[Node]
) -> None:
    """Let the annotations that were there before name what their operators read in the copy."""

    def seen(node: Node) -> Node:
        while node in convolutions or node in dropouts:
            node = convolutions[node] if node in convolutions else cast(Node, node.args[0])
        return copies[node]

    for node, copied in copies.items():
        annotation = get_annotation(node)
        if annotation is not None:
            specs = {seen(source): spec for source, spec in annotation.input_qspec_map.items()}
            set_annotation(copied, attrs.evolve(annotation, input_qspec_map=specs))


@attrs.frozen
class _CarryOver:
    """Carries annotations from a copy to its original.

    Args:
        original: the node that each node of the copy stands for.
        norms: the BatchNorm behind each convolution that stands for both.
        entries: the first dropout on the way from a tensor to its reader.
    """

    original: dict[Node, Node]
    norms: dict[Node, Node]
    entries: dict[tuple[Node, Node], Node]

    def carry(self, before: set[Node]) -> None:
        """Carry all annotations but those of the nodes ``before``, which came from the original."""
        for copied, node in self.original.items():
            annotation = get_annotation(copied)
            if annotation is not None and copied not in before:
                self._carry(node, annotation)

    def _carry(self, node: Node, annotation: QuantizationAnnotation) -> None:
        own: dict[Node, QuantizationSpecBase | None] = {}
        for copied, spec in annotation.input_qspec_map.items():
            source, mapped = self._output(copied), map_points(spec, self._point)
            entry = self.entries.get((source, node))
            if entry is None:
                own[source] = mapped
            else:
                set_annotation(
                    entry, attrs.evolve(annotation, input_qspec_map={source: mapped}, output_qspec=None)
                )
        output = map_points(annotation.output_qspec, self._point)
        norm = self.norms.get(node)
        if norm is not None:
            set_annotation(norm, attrs.evolve(annotation, input_qspec_map={}, output_qspec=output))
            output = None
        set_annotation(node, attrs.evolve(annotation, input_qspec_map=own, output_qspec=output))

    def _output(self, copied: Node) -> Node:
        """The node whose output that of ``copied`` is."""
        node = self.original[copied]
        return self.norms.get(node, node)

    def _point(self, point: EdgeOrNode) -> EdgeOrNode:
        if not isinstance(point, tuple):
            return self._output(point)
        source, reader = self._output(point[0]), self.original[point[1]]
        return (source, self.entries.get((source, reader), reader))
