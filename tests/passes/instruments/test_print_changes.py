"""Changes on the terminal: in colour, and in summary."""

from __future__ import annotations

import io

import torch
from lowbit.ir.graph_diff import diff
from lowbit.ir.snapshot import take_snapshot
from lowbit.passes import PassManager, Pipeline
from lowbit.passes.instruments import PrintChanges
from lowbit.passes.instruments.render_diff import STAT_LEGEND, render_stat
from rich.console import Console
from torch import nn
from torch.fx import GraphModule

MODEL = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())


def printed(gm: GraphModule, *, stat: bool, colour: bool) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=200, force_terminal=colour, color_system="standard" if colour else None
    )
    pipeline = Pipeline.parse("normalize, fold-batch-norm, fold-batch-norm")
    PassManager((PrintChanges(console, stat=stat),)).run(gm, pipeline)
    return file.getvalue()


def test_changes_are_printed_by_pass(export) -> None:
    text = printed(export(MODEL, torch.ones(1, 2, 3, 3)), stat=False, colour=False)
    heads = [line for line in text.splitlines() if line[0] not in "+-@>"]
    assert [head.split(":")[0] for head in heads] == ["00 normalize", "01 fold-batch-norm"]
    assert "- %batch_norm: f32[1, 2, 3, 3] = aten.batch_norm.default(" in text
    assert "+ %relu: f32[1, 2, 3, 3] = aten.relu.default(%conv2d)" in text
    assert "\x1b" not in text


def test_colours_tell_added_from_removed(export) -> None:
    text = printed(export(MODEL, torch.ones(1, 2, 3, 3)), stat=False, colour=True)
    assert "\x1b[31m- %batch_norm" in text
    assert "\x1b[32m+ %relu" in text


def test_a_summary_counts_by_module(export) -> None:
    text = printed(export(MODEL, torch.ones(1, 2, 3, 3)), stat=True, colour=False)
    assert "aten" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["2", "|", "1", "~"] in lines  # the ReLU, which reads the convolution now
    assert any(line[:2] == ["1", "|"] and set(line[-1]) == {"-"} for line in lines)
    assert any("removed" in line for line in text.splitlines())


def test_a_node_that_only_moved_has_a_sign_of_its_own(export) -> None:
    gm = export(nn.Bilinear(2, 2, 2), torch.ones(1, 2), torch.ones(1, 2))
    before = take_snapshot(gm)
    weight, bias = (gm.graph.find_nodes(op="get_attr", target=name)[0] for name in ("weight", "bias"))
    bias.append(weight)
    file = io.StringIO()
    Console(file=file).print(render_stat(diff(before, take_snapshot(gm))))
    assert " (top) | 1 >\n 1 moved\n" in file.getvalue()
    assert "> moved" in STAT_LEGEND
