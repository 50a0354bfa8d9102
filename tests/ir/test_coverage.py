"""Coverage counts the decisions."""

from __future__ import annotations

import torch
from lowbit import X86InductorQuantizer, coverage, decisions, prepare_pt2e
from lowbit.backends.x86_inductor import get_default_x86_inductor_quantization_config
from torch import Tensor, nn


class Halves(nn.Module):
    """Takes its input apart, which is an operator with two results."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear(x).chunk(2, -1)
        return a.cos() * b


def test_each_decision_counts_once_also_of_what_picks_a_result() -> None:
    exported = torch.export.export(Halves().eval(), (torch.zeros(2, 4),)).module()
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config))
    found, counted = decisions(prepared), coverage(prepared)
    assert any("getitem" in decision.target for decision in found)
    assert counted.total == len(found)
    assert counted.quantized == sum(decision.status == "quantized" for decision in found)
