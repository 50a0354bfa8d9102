"""Instruments: timing, verification, and diffs in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import attrs
import pytest
import torch
from lowbit.errors import StageError
from lowbit.ir.stages import Stage
from lowbit.passes import PassContext, PassManager, Pipeline
from lowbit.passes.instruments import DiffToFolder, Timing, Verify
from torch import nn
from torch.fx import GraphModule

aten = torch.ops.aten


@attrs.frozen
class Append:
    """Puts ``count`` operators behind the last; they are of the kind that ``make`` makes."""

    requires: ClassVar[frozenset[Stage]] = frozenset(Stage)
    name: ClassVar[str] = "append"
    count: int = 1
    make: Callable[..., object] = aten.relu.default
    ensures: Stage | None = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        output = gm.graph.output_node()
        for _ in range(self.count):
            (value,) = output.all_input_nodes
            with gm.graph.inserting_before(output):
                output.replace_input_with(value, gm.graph.call_function(self.make, (value,)))
        return self.count > 0


@pytest.fixture
def gm(export) -> GraphModule:
    return export(nn.Tanh(), torch.ones(2))


def run(gm: GraphModule, *passes: Append, instruments) -> GraphModule:
    return PassManager(instruments).run(gm, Pipeline(passes))


def test_timing_counts_nodes_and_seconds_over_all_runs(gm: GraphModule) -> None:
    timing = Timing()
    first = run(gm, Append(2), Append(0), instruments=(timing,))
    run(first, Append(1), instruments=(timing,))
    n = len(gm.graph.nodes)
    assert [(r.pass_name, r.nodes_before, r.nodes_after, r.changed) for r in timing.records] == [
        ("append", n, n + 2, True),
        ("append", n + 2, n + 2, False),
        ("append", n + 2, n + 3, True),
    ]
    assert all(r.seconds > 0 for r in timing.records)


def test_timing_measures_the_pass_and_not_the_other_instruments(gm: GraphModule, monkeypatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))

    class Slow:
        def before(self, pass_, gm):
            next(clock)

        def after(self, pass_, gm, change):
            next(clock)

    timing = Timing()
    run(gm, Append(), Append(), instruments=(Slow(), timing, Slow()))
    assert [record.seconds for record in timing.records] == [1.0, 1.0]


def test_verify_looks_at_the_stage_a_pass_leaves(gm: GraphModule) -> None:
    observer = type("Observer", (nn.Module,), {"calculate_qparams": lambda self: None})
    gm.observer = observer()
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.call_module("observer", tuple(gm.graph.output_node().all_input_nodes))
    run(gm, Append(), instruments=(Verify(),))
    with pytest.raises(StageError, match=r"rules of stage QDQ .*an observer is left") as caught:
        run(gm, Append(0, ensures=Stage.QDQ), instruments=(Verify(),))
    assert caught.value.pass_name == "append"


def test_verify_does_not_look_again_where_nothing_changed(gm: GraphModule, monkeypatch) -> None:
    verified: list[Stage] = []
    monkeypatch.setattr("lowbit.passes.instruments.verify.verify", lambda gm, stage: verified.append(stage))
    run(gm, Append(1), Append(0), Append(0, ensures=Stage.ANNOTATED), instruments=(Verify(),))
    assert verified == [Stage.FLOAT, Stage.ANNOTATED]


def test_a_diff_a_pass_is_written_numbered_over_all_runs(gm: GraphModule, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for it"
    diffs = DiffToFolder(str(folder))
    first = run(gm, Append(1), Append(0), instruments=(diffs,))
    run(first, Append(2), instruments=(diffs,))
    assert sorted(p.name for p in folder.iterdir()) == [
        *("00-append.diff", "01-append.diff", "02-append.diff"),
    ]
    assert (folder / "00-append.diff").read_text() == (
        "# append: 1 added, 0 removed, 1 changed, 0 moved, 0 attributes\n"
        "+ %relu_default = aten.relu.default(%tanh)\n"
        "- return [%tanh]\n"
        "+ return [%relu_default]\n"
    )
    assert (folder / "01-append.diff").read_text() == (
        "# append{count=0}: 0 added, 0 removed, 0 changed, 0 moved, 0 attributes\n"
    )
    assert (
        (folder / "02-append.diff").read_text().startswith("# append{count=2}: 2 added, 0 removed, 1 changed")
    )


def test_diffs_of_an_earlier_run_are_removed_and_nothing_else(gm: GraphModule, tmp_path: Path) -> None:
    for name in ("00-old.diff", "17-old.diff", "100-old.diff", "notes.diff", "00-notes.txt", "1-x.diff"):
        (tmp_path / name).write_text("old")
    run(gm, Append(), instruments=(DiffToFolder(tmp_path),))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("00-append.diff", "00-notes.txt", "1-x.diff", "notes.diff"),
    ]


def test_diffs_are_the_same_bytes_again(gm: GraphModule, tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        run(gm, Append(3), instruments=(DiffToFolder(tmp_path / name),))
        texts.append((tmp_path / name / "00-append.diff").read_bytes())
    assert texts[0] == texts[1]
