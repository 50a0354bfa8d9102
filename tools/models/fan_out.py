"""Graphs in which one tensor has many users, to measure work that could grow with users × edges."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .init import seed_parameters

__all__ = ["FanOut", "one_input_many_linears"]


class FanOut(nn.Module):
    """``n`` linears that all read the one input ``[N, features]``, concatenated: ``[N, n · features]``."""

    def __init__(self, n: int, features: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(features, features) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all linears, side by side."""
        return torch.cat([linear(x) for linear in self.linears], dim=1)


def one_input_many_linears(n: int, *, features: int = 8, seed: int = 0) -> FanOut:
    """``n`` linears on one input (see :class:`FanOut`), in eval mode."""
    return seed_parameters(FanOut(n, features), seed)
