"""What a quantizer annotates without an operator pattern."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from torch import Tensor, nn
from torch.fx import Graph, Node

from ..ir.ledger import Ledger
from ..ir.specs import QuantizationConfig
from ..matchers.operator_pattern import Mode

__all__ = ["ByHand"]


@attrs.frozen(eq=False)
class ByHand:
    """An operator of so many forms that each would need a pattern of its own.

    What it reads is quantized, as activations are; what it computes stays float. It has a row in the table of
    capabilities, and the conformance kit tries its example.

    Args:
        name: kebab-case, unique among the patterns of its backend; what the ledger has it quantized as.
        modes: in which it is quantized.
        annotate: annotates all of them in a graph, with what the second argument says is configured, and
            writes to the ledger what becomes of each.
        example: makes a model with one of them, and inputs for it.
    """

    name: str
    modes: tuple[Mode, ...]
    annotate: Callable[[Graph, Callable[[tuple[Node, ...]], QuantizationConfig | None], Ledger], None]
    example: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
