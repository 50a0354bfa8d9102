"""Operators that Intel GPUs have no int8 kernel for, each with why: what the ledger says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from ...matchers.operator_pattern import Refusal
from ..x86_inductor.left_float import LEFT_FLOAT as ON_CPU

__all__ = ["LEFT_FLOAT"]

LEFT_FLOAT: Final[Mapping[Any, Refusal]] = {
    **ON_CPU,
    torch.ops.aten.max_pool2d.default: Refusal("no-int8-kernel", "Intel GPUs have no int8 max_pool2d"),
}
"""By operator, where no operator pattern asked about it."""
