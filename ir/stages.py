"""The stages a graph goes through, and where a graph's stage is kept."""

from __future__ import annotations

import enum

from torch.fx import GraphModule

from .attributes import nested_graph_modules
from .meta import STAGE_KEY
from .quantized_decomposed import DEQUANTIZE_OPS, QUANTIZE_OPS

__all__ = ["STAGE_KEY", "Stage", "get_stage", "set_stage"]


class Stage(enum.Enum):
    """What a graph is at a moment."""

    FLOAT = "float"
    """ATen as exported; canonical after the ``normalize`` pass."""
    ANNOTATED = "annotated"
    """FLOAT, and nodes carry a :class:`~lowbit.ir.annotation.QuantizationAnnotation`."""
    OBSERVED = "observed"
    """Observers (or fake quantizers) stand at every annotated point, one module a sharing group."""
    QDQ = "qdq"
    """Quantize/dequantize pairs in place of observers; operators still compute in float."""
    REFERENCE = "reference"
    """Quantized operators written as integer arithmetic."""
    LOWERED = "lowered"
    """Kernels of one backend in place of dequantize → operator → quantize."""


def get_stage(gm: GraphModule) -> Stage:
    """The stage of ``gm``.

    A graph that says nothing is FLOAT, QDQ if it dequantizes, LOWERED if it only quantizes: saving and
    loading a program keeps the graph and loses what lowbit wrote about it.
    """
    recorded = gm.meta.get(STAGE_KEY)
    if recorded is not None:
        return recorded
    graphs = [module.graph for module in (gm, *nested_graph_modules(gm))]
    if any(graph.find_nodes(op="call_function", target=op) for graph in graphs for op in DEQUANTIZE_OPS):
        return Stage.QDQ
    # What is quantized and never dequantized is read by kernels.
    quantizes = any(
        graph.find_nodes(op="call_function", target=op) for graph in graphs for op in QUANTIZE_OPS
    )
    return Stage.LOWERED if quantizes else Stage.FLOAT


def set_stage(gm: GraphModule, stage: Stage) -> None:
    """Record that ``gm`` is at ``stage``."""
    gm.meta[STAGE_KEY] = stage
