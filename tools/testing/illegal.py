"""Annotations that are not legal, which a flow has to refuse, saying so, before it inserts anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import torch
from torch.fx import Graph, GraphModule, Node

from ...ir.annotation import QuantizationAnnotation, get_annotation, set_annotation
from ...ir.observers import MinMaxObserver
from ...ir.quantizer import Quantizer
from ...ir.specs import DerivedQuantizationSpec, QuantizationSpec, SharedQuantizationSpec
from .quantizing import DrawnQuantizer

__all__ = ["FAULTS", "IllegalQuantizer"]

_SPEC: Final = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)


def _annotated(node: Node) -> QuantizationAnnotation:
    return get_annotation(node) or QuantizationAnnotation()


def _with_input(node: Node, source: Any, spec: Any) -> None:
    annotation = _annotated(node)
    set_annotation(
        node, attrs.evolve(annotation, input_qspec_map={**annotation.input_qspec_map, source: spec})
    )


def _with_output(node: Node, spec: Any) -> None:
    set_annotation(node, attrs.evolve(_annotated(node), output_qspec=spec))


def _edge_that_is_not_there(node: Node) -> None:
    _with_input(node, node, _SPEC)


def _node_of_another_graph(node: Node) -> None:
    _with_input(node, Graph().placeholder("elsewhere"), _SPEC)


def _no_node(node: Node) -> None:
    _with_input(node, node.name, _SPEC)


def _no_spec(node: Node) -> None:
    _with_output(node, "uint8")


def _no_annotation(node: Node) -> None:
    node.meta["quantization_annotation"] = {"output_qspec": _SPEC}


def _anchor_that_is_not_annotated(node: Node) -> None:
    _with_output(node, SharedQuantizationSpec((node, node)))


def _anchor_that_is_no_point(node: Node) -> None:
    _with_output(node, SharedQuantizationSpec(node.name))  # pyright: ignore[reportArgumentType]


def _shares_with_itself(node: Node) -> None:
    _with_output(node, SharedQuantizationSpec(node))


def _derives_from_itself(node: Node) -> None:
    def derive(_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(1), torch.zeros(1, dtype=torch.int32)

    _with_output(
        node,
        DerivedQuantizationSpec(
            derived_from=[node], derive_qparams_fn=derive, dtype=torch.int32, quant_min=0, quant_max=1
        ),
    )


def _dtype_that_is_no_integer(node: Node) -> None:
    _with_output(node, attrs.evolve(_SPEC, dtype=torch.complex64, quant_min=None, quant_max=None))


FAULTS: Final[dict[str, Callable[[Node], None]]] = {
    "edge that is not there": _edge_that_is_not_there,
    "node of another graph": _node_of_another_graph,
    "no node": _no_node,
    "no spec": _no_spec,
    "no annotation": _no_annotation,
    "anchor that is not annotated": _anchor_that_is_not_annotated,
    "anchor that is no point": _anchor_that_is_no_point,
    "shares with itself": _shares_with_itself,
    "derives from itself": _derives_from_itself,
    "dtype that is no integer": _dtype_that_is_no_integer,
}
"""What can be wrong with the annotation of one operator."""


@attrs.frozen
class IllegalQuantizer(Quantizer):
    """Annotates as ``legal`` does, but for one operator.

    Args:
        legal: who annotates the others.
        fault: what is wrong, a key of :data:`FAULTS`.
        at: which operator, counted modulo their number. A graph without any is annotated legally.
    """

    legal: DrawnQuantizer
    fault: str = attrs.field(validator=attrs.validators.in_(FAULTS))
    at: int = 0

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate in place."""
        self.legal.annotate(model)
        nodes = [node for node in model.graph.nodes if node.op == "call_function"]
        if nodes:
            FAULTS[self.fault](nodes[self.at % len(nodes)])
        return model
