"""What the command advises: it works when it is done, and says what is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lowbit.backends import get_backend
from lowbit.ir.reasons import REASONS

PRESET = ("--backend", "x86_inductor", "--preset", "static-7-bit")
MODELS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.norm = nn.GroupNorm(1, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = torch.relu(self.drop(self.norm(x)) + x * 0.5)
        first, second = torch.split(x, 2, 1)
        return first


def block():
    torch.manual_seed(0)
    return Block().eval(), torch.randn(2, 3, 4, 4)


def conv():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus()).eval(), torch.zeros(2, 3, 4, 4)


def softmax():
    return nn.Sequential(nn.Softmax(-1)).eval(), torch.zeros(1, 3)


def batches():
    return [torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))]


def good(model):
    return True


def metric(model):
    return 1.0


THREE = 3
"""


@pytest.fixture
def models(project: Path) -> Path:
    project.joinpath("models.py").write_text(MODELS, encoding="utf-8")
    return project


@pytest.fixture
def quantized(models: Path, lowbit: Any) -> str:
    """What was said of the block; ``int8.pt2`` and ``graphs`` are of it."""
    words = ("quantize", "models:block", *PRESET, "--calibration", "models:batches")
    return lowbit(*words, "-o", "int8.pt2", "--save-graphs", "graphs").stdout


def test_a_module_that_computes_nothing_is_not_left_float(models: Path, lowbit: Any) -> None:
    words = ("quantize", "models:block", *PRESET, "--calibration", "models:batches", "--left-float")
    found, do = lowbit(*words, "drop", code=2).stderr.splitlines()[-2:]
    assert found == (
        "error: there is nothing in drop to leave float: %dropout in drop was left out by the pass "
        "normalize: in inference it computes nothing, so %group_norm stands for it"
    )
    assert do == "  do: leave --left-float drop out"
    # A node is no module.
    assert (
        "no module with operators to leave float named 'dropout'" in lowbit(*words, "dropout", code=2).stderr
    )


def test_explain_knows_what_is_gone(quantized: str, lowbit: Any) -> None:
    for stage in ("prepared", "converted", "lowered"):
        (gone,) = json.loads(lowbit("explain", f"graphs/{stage}.lowbit", "drop", "--json").stdout)["gone"]
        assert (gone["node"], gone["why"], gone["into"]) == ("dropout", "identity", "group_norm")


def test_the_nearest_miss_is_said_at_every_stage_and_by_quantize(quantized: str, lowbit: Any) -> None:
    nearest = "conv2d-add-relu: %group_norm is aten.group_norm.default, not aten.conv2d.default"
    assert f" is almost {nearest} (different-target, at %group_norm)" in quantized
    for stage in ("prepared", "converted", "lowered"):
        assert f"  nearest: {nearest}" in lowbit("explain", f"graphs/{stage}.lowbit", "add").stdout
        assert f"nearest: {nearest}" in lowbit("explain", f"graphs/{stage}.lowbit").stdout
    data = json.loads(
        lowbit("quantize", "models:block", *PRESET, "--calibration", "models:batches", "--json").stdout
    )
    near = {each["node"]: each["nearest"] for each in data["operators"]}
    assert [miss["pattern"] for miss in near["add"]] == ["conv2d-add-relu"]
    assert near["conv2d"] == []
    explained = json.loads(lowbit("explain", "graphs/lowered.lowbit", "--json").stdout)
    assert near == {each["node"]: each["nearest"] for each in explained["operators"]}, "the same form"


def test_pointwise_operators_have_one_reason(quantized: str, lowbit: Any) -> None:
    data = json.loads(lowbit("explain", "graphs/lowered.lowbit", "--json").stdout)
    reasons = {each["node"]: each["reason"] for each in data["operators"]}
    assert {reasons[name] for name in ("mul", "add", "relu_1")} == {"pointwise"}
    assert reasons["group_norm"] == "no-pattern"
    do = f"    do: {REASONS['no-pattern'].in_command}"
    assert do in quantized.splitlines()
    # What it names is a command that lists operator patterns.
    (command,) = re.findall(r"lowbit (\w+) lists", do)
    assert "conv2d-add-relu" in lowbit(command, "x86_inductor").stdout


def test_the_parameters_of_a_kernel_are_said_to_be_of_the_kernel(quantized: str, lowbit: Any) -> None:
    said = lowbit("explain", "graphs/lowered.lowbit", "relu").stdout
    assert " for %conv2d and %relu together\n" in said
    assert "  tensor:  argument x of the kernel; scale " in said
    (relu,) = json.loads(lowbit("explain", "graphs/lowered.lowbit", "relu", "--json").stdout)["operators"]
    assert relu["run_together"] == ["conv2d", "relu"]


def test_what_picks_a_result_is_written_as_in_python(quantized: str, lowbit: Any) -> None:
    assert lowbit("explain", "graphs/lowered.lowbit", "getitem").stdout.startswith(
        "%getitem (operator.getitem) stays float: "
    )


def test_a_number_may_be_meant_as_a_line(quantized: str, lowbit: Any) -> None:
    line = next(i for i, text in enumerate(MODELS.splitlines(), 1) if "torch.split" in text)
    do = lowbit("explain", "graphs/lowered.lowbit", line, code=2).stderr.splitlines()[-1]
    assert do == f"  do: a line is asked about behind its file: models.py:{line}"
    assert "split" in lowbit("explain", "graphs/lowered.lowbit", f"models.py:{line}").stdout
    assert "explain(model)" not in lowbit("explain", "graphs/lowered.lowbit", "zzz", code=2).stderr


@pytest.mark.parametrize("command", ["explain", "bisect", "costly"])
def test_of_a_program_the_graphs_are_named_that_the_command_takes(
    quantized: str, lowbit: Any, command: str
) -> None:
    data = ("--calibration", "models:batches", *PRESET)
    words: dict[str, tuple[str, ...]] = {
        "explain": (),
        "bisect": ("--check", "models:good"),
        "costly": ("--metric", "models:metric", "--tolerance", "1", *data),
    }
    do = lowbit(command, "int8.pt2", *words[command], code=3).stderr.splitlines()[-1]
    named = re.findall(r"graphs/\w+\.lowbit", do)
    assert named
    for graph in named:
        more = data if (command, graph) == ("bisect", "graphs/float.lowbit") else ()
        lowbit(command, graph, *words[command], *more)


def test_bisect_of_a_lowered_graph_names_those_that_it_takes(quantized: str, lowbit: Any) -> None:
    found, do = lowbit(
        "bisect", "graphs/lowered.lowbit", "--check", "models:good", code=3
    ).stderr.splitlines()
    assert found == "error: graphs/lowered.lowbit is at stage LOWERED, where no verb takes it on"
    assert "graphs/converted.lowbit or graphs/prepared.lowbit or graphs/float.lowbit" in do
    lowbit("bisect", "graphs/converted.lowbit", "--check", "models:good")


def test_presets_are_named_that_would_quantize_something_the_best_first(models: Path, lowbit: Any) -> None:
    words = ("quantize", "models:conv", "--backend", "x86_inductor", "--preset")
    result = lowbit(*words, "weight-only", "--save-graphs", "graphs")
    (said,) = re.findall(r"take another preset \(--preset ([^)]+)\)", result.stderr)
    suits = {preset.name: preset.suits() for preset in get_backend("x86_inductor").presets}
    best_first = sorted(("static", "static-7-bit"), key=lambda name: not suits[name])
    # The convolution is for static quantization alone.
    assert said.split(", ") == best_first
    for preset in best_first:
        done = lowbit(*words, preset, "--calibration", "models:batches")
        assert "nothing is quantized" not in done.stderr
    advice = f"do: {REASONS['static-only'].in_command}: {', '.join(best_first)}"
    assert f"    {advice}" in result.stdout.splitlines()
    assert (
        f"  do:      {advice.removeprefix('do: ')}" in lowbit("explain", "graphs/lowered.lowbit", "0").stdout
    )


def test_no_preset_is_named_where_none_would_quantize_anything(models: Path, lowbit: Any) -> None:
    words = ("quantize", "models:softmax", "--backend", "x86_inductor", "--preset", "dynamic")
    said = lowbit(*words).stderr
    assert "To get on: see lowbit capabilities x86_inductor for what it quantizes." in said
    assert "preset" not in said.partition("To get on")[2]


def test_a_left_float_option_that_leaves_nothing_is_the_first_to_go(models: Path, lowbit: Any) -> None:
    words = ("quantize", "models:conv", *PRESET, "--calibration", "models:batches", "--left-float", "0")
    assert "To get on: leave --left-float out, or see lowbit capabilities" in lowbit(*words).stderr


def test_types_and_files_are_named_in_english(quantized: str, lowbit: Any) -> None:
    words = ("bisect", "graphs/prepared.lowbit", "--check", "models:THREE")
    assert "the check models:THREE is an int" in lowbit(*words, code=2).stderr
    Path("file").touch()
    words = ("quantize", "models:block", *PRESET, "--calibration", "models:batches", "--diffs", "file")
    assert "--diffs is the file 'file'" in lowbit(*words, code=2).stderr
