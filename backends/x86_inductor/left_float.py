"""Operators that X86 has no int8 kernel for, each with why: what the ledger says of them.

Pointwise ones are not listed: Inductor fuses them all (``fuses_pointwise`` of the quantizer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from ...matchers.operator_pattern import Refusal

__all__ = ["LEFT_FLOAT"]

_aten = torch.ops.aten

_TWO_ACTIVATIONS: Final = Refusal(
    "two-activations",
    "the int8 products of oneDNN that torch has take a packed constant as one factor, and no batches",
)
_TRANSPOSED: Final = Refusal("no-int8-kernel", "Inductor has no kernel of a transposed int8 convolution")
_RECURRENT: Final = Refusal("recurrent", "it is one operator of many steps, and has no int8 kernel")
_EMBEDDING: Final = Refusal("other-backend", "the backend embedding takes it")

LEFT_FLOAT: Final[Mapping[Any, Refusal]] = {
    **dict.fromkeys(
        (
            _aten.matmul.default,
            _aten.mm.default,
            _aten.bmm.default,
            _aten.addmm.default,
            _aten.baddbmm.default,
            _aten.scaled_dot_product_attention.default,
        ),
        _TWO_ACTIVATIONS,
    ),
    **dict.fromkeys(
        (
            _aten.conv_transpose1d.default,
            _aten.conv_transpose2d.input,
            _aten.conv_transpose3d.input,
        ),
        _TRANSPOSED,
    ),
    _aten.embedding.default: _EMBEDDING,
    **dict.fromkeys(
        (_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input), _RECURRENT
    ),
}
"""By operator, where no operator pattern asked about it."""
