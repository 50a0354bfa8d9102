"""Annotations: the specs of one node's input edges and output."""

from __future__ import annotations

import attrs
from torch.fx import Node

from .meta import ANNOTATION_KEY
from .specs import QuantizationSpecBase

__all__ = ["ANNOTATION_KEY", "QuantizationAnnotation", "get_annotation", "is_annotated", "set_annotation"]


@attrs.define(slots=True)
class QuantizationAnnotation:
    """How the tensors around one node are to be quantized.

    Lives in ``node.meta["quantization_annotation"]``, the place PyTorch's tutorials write it to.

    Args:
        input_qspec_map: producer node → spec of the edge from it to this node. One producer is one entry,
            however often the node reads it.
        output_qspec: spec of this node's output.
        allow_implicit_sharing: whether the input edges may share an observer with other points of the same
            tensor that have an equal spec.
        _annotated: set by quantizers that claim a node, also one whose own tensors stay float (the inner
            nodes of a fused pattern).
    """

    input_qspec_map: dict[Node, QuantizationSpecBase | None] = attrs.Factory(dict)
    output_qspec: QuantizationSpecBase | None = None
    allow_implicit_sharing: bool = True
    _annotated: bool = attrs.field(default=False, alias="_annotated")


def get_annotation(node: Node) -> QuantizationAnnotation | None:
    """The annotation of ``node``, or None."""
    return node.meta.get(ANNOTATION_KEY)


def set_annotation(node: Node, annotation: QuantizationAnnotation) -> None:
    """Annotate ``node``, replacing what it had."""
    node.meta[ANNOTATION_KEY] = annotation


def is_annotated(node: Node) -> bool:
    """Whether a quantizer has claimed ``node``."""
    annotation = get_annotation(node)
    return annotation is not None and annotation._annotated
