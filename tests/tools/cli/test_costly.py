"""``lowbit costly``: the operators that cost the accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lowbit.ir.text import save_graph
from lowbit.tools.bisect import CostlyOperators, QuantizedOperator
from torch import nn

METRICS = """
import torch

torch.manual_seed(0)
X = torch.randn(64, 8)
calls = []

def closeness(model):
    calls.append(model)
    # The first layer is scaled in a way that 8 bits cannot hold; the second is not.
    with torch.no_grad():
        return -(model(X) - WANTED).square().mean()

def text(model):
    return "good"

def quits(model):
    raise SystemExit(1)

THREE = 3
WANTED = None
"""


@pytest.fixture
def graph(project: Path) -> Path:
    """A float graph, of whose two layers one suffers from quantization; a metric and data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with torch.no_grad():
        # One feature takes the whole range of what the second layer reads.
        model[0].weight[0] *= 1000
        model[2].weight[:, 0] /= 1000
    batch = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(model, (batch,)).module()
    torch.save(batch, "data.pt")
    torch.save(model(batch).detach(), "wanted.pt")
    text = METRICS.replace("WANTED = None", 'WANTED = torch.load("wanted.pt")')
    project.joinpath("metrics.py").write_text(text, encoding="utf-8")
    return save_graph(exported, "float.lowbit")


def words(graph: Path, tolerance: float, metric: str = "metrics:closeness") -> tuple[object, ...]:
    preset = ("--backend", "x86_inductor", "--preset", "static-7-bit", "--calibration", "data.pt")
    return ("costly", graph, "--metric", metric, "--tolerance", tolerance, *preset)


def test_the_operator_that_costs_is_found(graph: Path, lowbit: Any) -> None:
    said = lowbit(*words(graph, 0.01), code=1).stdout
    assert "with 1 of 2 operators left float" in said
    assert said.endswith("  do: lowbit quantize … --left-float 2\n")
    data = json.loads(lowbit(*words(graph, 0.01), "--json", code=1).stdout)
    assert [each["module"] for each in data["operators"]] == data["left_float"] == ["2"]
    assert data["recovered_metric"] > -0.01 > data["quantized_metric"]


def costing(*found: tuple[str, str, float], quantized: int) -> CostlyOperators:
    """Operators of these names, modules and metrics."""
    operators = (
        QuantizedOperator((name,), "aten.relu.default", module, "", alone) for name, module, alone in found
    )
    return CostlyOperators(tuple(operators), 1.0, 0.0, 0.9, quantized, 7)


def test_the_costliest_comes_first_and_no_module_twice(
    graph: Path, lowbit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = (("a", "block.first", 0.2), ("b", "block", 0.7), ("c", "blocks", 0.2), ("d", "", 0.9))
    found = costing(*operators, quantized=9)
    monkeypatch.setattr("lowbit.tools.cli.commands.costly.costly_operators", lambda *_, **__: found)
    _, *lines, do = lowbit(*words(graph, 0.01), code=1).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["%d", "%b", "%a", "%c"]
    assert do == "  do: lowbit quantize … --left-float block --left-float blocks"
    data = json.loads(lowbit(*words(graph, 0.01), "--json", code=1).stdout)
    assert data["left_float"] == ["block", "blocks"]
    assert [each["nodes"] for each in data["operators"]] == [["a"], ["b"], ["c"], ["d"]], "in graph order"

    found = costing(*operators, quantized=4)
    said = lowbit(*words(graph, 0.01), code=1).stdout
    assert "--left-float" not in said
    assert said.splitlines()[-1].startswith("  do: allow more with --tolerance")


def test_nothing_is_found_where_nothing_costs(graph: Path, lowbit: Any) -> None:
    assert "with 0 of 2 operators left float" in lowbit(*words(graph, 100.0)).stdout


def test_what_is_no_metric_and_no_float_graph(graph: Path, lowbit: Any) -> None:
    assert "returned a str" in lowbit(*words(graph, 1, "metrics:text"), code=2).stderr
    assert "is an int" in lowbit(*words(graph, 1, "metrics:THREE"), code=2).stderr
    assert "--metric is 'accuracy'" in lowbit(*words(graph, 1, "accuracy"), code=2).stderr
    assert "the metric metrics:quits raised RuntimeError: sys.exit(1)" in (
        lowbit(*words(graph, 1, "metrics:quits"), code=4).stderr
    )
    assert "x>=0" in lowbit(*words(graph, -1), code=2).stderr
    torch.save(torch.full((64, 8), torch.nan), "data.pt")
    assert "at: data.pt, sample 0 (batch 0)" in lowbit(*words(graph, 1), code=3).stderr
    lowbit("opt", "normalize, annotate", graph, "--backend", "x86_inductor", "-o", "annotated.lowbit")
    assert "at stage ANNOTATED" in lowbit(*words(Path("annotated.lowbit"), 1), code=3).stderr
