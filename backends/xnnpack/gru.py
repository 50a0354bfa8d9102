"""Recurrent layers: what goes into a GRU is quantized, what it computes stays float."""

from __future__ import annotations

from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from ...ir.annotation import QuantizationAnnotation, is_annotated, set_annotation
from ...ir.ledger import Ledger
from ...ir.schema import argument
from ...ir.specs import QuantizationSpecBase
from ...matchers.operator_pattern import Mode, Occurrence
from ..annotation import ConfigOf
from ..by_hand import ByHand
from ..capabilities import mode_of
from ..guards import float32_activations

__all__ = ["GRU_INPUTS"]


def _annotate(graph: Graph, config_of: ConfigOf, ledger: Ledger) -> None:
    """Annotate the sequence and the first hidden state of every ``aten.gru``.

    A pattern would need one form for each number of layers and weights; what is annotated here is the same
    in all of them.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.gru.input):
        if is_annotated(node):
            continue
        config = config_of((node,))
        inputs = [cast(Node, argument(node, name)) for name in ("input", "hx")]
        refusal = float32_activations(0, 1)(Occurrence(inputs, node))
        if config is None:
            refusal = "not-configured"
        elif mode_of(config) is not Mode.STATIC:
            refusal = "static-only"
        if refusal is not None or config is None:
            ledger.missed(str(refusal), node, "as gru-inputs")
        else:
            specs: dict[Node, QuantizationSpecBase | None] = {
                **dict.fromkeys(inputs, config.input_activation)
            }
            set_annotation(node, QuantizationAnnotation(specs, _annotated=True))
            ledger.quantized(node, "gru-inputs", "its inputs are quantized; it computes in float")


def _example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.GRU(4, 3), (torch.randn(5, 2, 4), torch.randn(1, 2, 3))


GRU_INPUTS: Final = ByHand("gru-inputs", (Mode.STATIC,), _annotate, _example)
