"""What each pass promises about numbers: its contract.

A contract says how far the values behind a pass may be from those before it, where both graphs are computed
in float64 (:mod:`lowbit.ir.oracle`), from the same values at the points that the graphs have in common
(:mod:`.equivalence`). What is left then are the roundings that a pass itself adds: of a constant it computes
and stores in float32, or of an integer it finds in another way.
"""

from __future__ import annotations

from typing import Final

import attrs
import torch

from .base import Pass

__all__ = ["EXACT", "KERNELS", "ONE_STEP", "REAL", "ROUNDED_TO_BF16", "Contract", "contract_of"]


@attrs.frozen
class Contract:
    """How far values may be apart.

    Args:
        steps: quantized (integer) values: so many steps of their scale.
        roundings: float values: so many roundings to ``dtype``, each by half the relative distance of its
            neighbouring numbers, of the size of what is summed.
        dtype: what is rounded to. If it is narrower than float32, what the graph says is of that dtype is
            rounded to it as it is computed: it is stored so, and roundings are of the size of the value.
        stored: float values that the graph before says are stored in a dtype narrower than ``dtype``: so many
            roundings to that one as well.
    """

    steps: int = 0
    roundings: int = 0
    dtype: torch.dtype = torch.float32
    stored: int = 0

    @property
    def is_narrow(self) -> bool:
        """Whether a pass with this contract brings a dtype in that is narrower than float32."""
        return torch.finfo(self.dtype).eps > torch.finfo(torch.float32).eps

    @property
    def tolerance(self) -> float:
        """How far floats may be apart, as a share of the size of what is summed."""
        return self.roundings * torch.finfo(self.dtype).eps / 2

    def __str__(self) -> str:
        if not self.steps and not self.roundings:
            return "equal values"
        floats = f"{self.roundings} roundings to {self.dtype}" if self.roundings else "equal floats"
        stored = f", {self.stored} to what is stored narrower" if self.stored else ""
        return f"{self.steps} steps of integers, {floats}{stored}"


EXACT: Final = Contract()
"""The same values."""
ONE_STEP: Final = Contract(steps=1)
"""Integers one step apart at most, the same floats."""
REAL: Final = Contract(roundings=4, stored=4)
"""The same function of real numbers, some constants of it computed anew: a product of two rounded factors and
a rounded sum make four roundings, to float32 or to what the model has its constants in."""

KERNELS: Final = Contract(steps=1, roundings=64, stored=2)
"""Kernels compute in float32 what stands behind their accumulator, a polynomial of some ten terms at most.
Where the graph has bfloat16, they round what they read of it, and what they give, once each."""

ROUNDED_TO_BF16: Final = Contract(roundings=1, dtype=torch.bfloat16)
"""Each value is rounded once at most, as it is stored: ``|y' - y| <= u |y|``, with ``u`` half the distance of
neighbouring numbers.

- So is what casts and dequantize operators give, and each constant.
- So is what any operator gives whose result is of the dtype: what it reads is compared by itself and then as
  it was before the pass, and torch accumulates products in float32, which the oracle computes exactly. In a
  graph that writes in place that may have been rounded: by ``u`` of ``sum |x| |w| + |b|``.

What is quantized reads what it read, so integers are equal."""


def contract_of(pass_: Pass) -> Contract | None:
    """What ``pass_`` has as ``contract``, or :data:`REAL`.

    A pass that means to change numbers (pruning, say) has ``contract = None`` and is not checked.
    """
    return getattr(pass_, "contract", REAL)
