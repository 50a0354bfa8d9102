"""Saving and loading, before and after lowering."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
import torch.nn.functional as F
from lowbit import Stage, decisions, get_stage, lower_pt2e
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree


class Flow(Protocol):
    converted: GraphModule
    lowered: GraphModule

    def targets(self) -> list[str]: ...


class RunFlow(Protocol):
    def __call__(self, model: nn.Module, *inputs: Any, **options: Any) -> Flow: ...


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head, self.tokens = nn.Linear(8, 5), nn.Linear(36, 5, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.max_pool2d(F.relu(self.stem(x)), 2)
        y = F.relu(self.b(F.relu(self.a(r))) + r)
        y = torch.cat([y, self.b(r)], 0)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)), self.tokens(torch.flatten(y, 2))


def saved_and_loaded(model: GraphModule, x: Tensor, **options: Any) -> GraphModule:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), **options), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    assert isinstance(loaded, GraphModule)
    return loaded


def assert_same(first: GraphModule, second: GraphModule, x: Tensor) -> None:
    with torch.no_grad():
        pairs = zip(pytree.tree_leaves(first(x)), pytree.tree_leaves(second(x)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 14, 14)


@pytest.mark.parametrize("dynamic", [False, True])
def test_lowered_models_are_saved_before_their_weights_are_packed(
    dynamic: bool, x: Tensor, run_flow: RunFlow
) -> None:
    options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamic else {}
    flow = run_flow(Network(), x, pack_weights=False, **options)
    loaded = saved_and_loaded(flow.lowered, x, **options)
    for batch in (x, torch.randn(3 if dynamic else 2, 3, 14, 14)):
        assert_same(flow.lowered, loaded, batch)


def test_converted_models_are_saved_and_lowered_later(x: Tensor, run_flow: RunFlow) -> None:
    flow = run_flow(Network(), x)
    loaded = saved_and_loaded(flow.converted, x)
    assert_same(flow.converted, loaded, x)
    assert get_stage(loaded) is Stage.QDQ
    lowered = lower_pt2e(loaded, backend="x86_inductor")
    assert_same(flow.lowered, lowered, x)
    # Nothing is known of how it was annotated, and all of what lowering did.
    assert all(d.reason and d.detail for d in decisions(lowered))
    statuses = {d.node: d.status for d in decisions(flow.lowered)}
    assert {d.node: d.status for d in decisions(lowered)} == statuses


IN_ANOTHER_PROCESS = """
import sys
import torch
loaded, x, expected = torch.export.load(sys.argv[1]).module(), *torch.load(sys.argv[2])
with torch.no_grad():
    assert all(torch.equal(a, b) for a, b in zip(loaded(x), expected, strict=True))
"""


def test_saved_models_run_without_lowbit(x: Tensor, run_flow: RunFlow, tmp_path: Path) -> None:
    flow = run_flow(Network(), x, pack_weights=False)
    torch.export.save(torch.export.export(flow.lowered, (x,)), tmp_path / "lowered.pt2")
    with torch.no_grad():
        torch.save((x, flow.lowered(x)), tmp_path / "values.pt")
    files = [str(tmp_path / "lowered.pt2"), str(tmp_path / "values.pt")]
    # The kernels are torch's own, the quantize operators those that torch registers with them.
    namespace = "import torch.ao.quantization.fx._decomposed\n"
    command = [sys.executable, "-c", namespace + IN_ANOTHER_PROCESS, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
