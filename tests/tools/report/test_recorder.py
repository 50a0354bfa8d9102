"""What the report records: every node at every moment, under one number."""

from __future__ import annotations

import pytest
import torch
from lowbit import convert_pt2e
from lowbit.ir.meta import ID_KEY, NEXT_ID_KEY
from lowbit.ir.text.short import format_arguments
from lowbit.tools.report import Report
from lowbit.tools.report.rows import NODE, OUTPUT, Row
from torch import Tensor, nn


def names(rows: dict[int, Row]) -> list[str]:
    return [row.name for row in rows.values() if not row.body]


def test_the_last_moment_of_a_run_is_the_graph_that_the_verb_returns(flow) -> None:
    for run, gm in zip(flow.report.runs, (flow.prepared, flow.converted), strict=True):
        assert names(run.moments[-1].rows) == [node.name for node in gm.graph.nodes]
        by_name = {row.name: row for row in run.moments[-1].rows.values()}
        for node in gm.graph.nodes:
            row = by_name[node.name]
            inputs = iter(run.moments[-1].rows[key].name for key in row.inputs)
            parts = "".join(part if part != NODE else f"%{next(inputs)}" for part in ", ".join(row.arguments))
            assert parts == format_arguments(node.args, node.kwargs)


def test_verbs_and_passes(flow) -> None:
    prepare, convert = flow.report.runs
    assert (prepare.verb, convert.verb) == ("prepare", "convert")
    passes = [moment.after for moment in prepare.moments]
    assert passes[0] == ""
    assert passes[1:] == ["normalize", "fold-batch-norm", "annotate", "resolve-sharing", "insert-observers"]
    assert [m.stage.name for m in prepare.moments[-3:]] == ["ANNOTATED", "ANNOTATED", "OBSERVED"]


def test_rows_change_where_the_diff_of_the_pass_says_so(flow) -> None:
    """Beyond it only what diffs do not tell: types, values, and where nodes come from."""
    changes = iter(flow.changes)
    for run in flow.report.runs:
        for old, new in zip(run.moments, run.moments[1:], strict=False):
            touched = {run.key_of(change.node) for change in next(changes).diff.nodes}
            every = {*old.rows, *new.rows}
            differing = {key for key in every if told(old.rows.get(key)) != told(new.rows.get(key))}
            moved_only = {
                key for key in touched - differing if told(old.rows.get(key)) == told(new.rows.get(key))
            }
            assert differing <= touched, new.after
            assert not moved_only, new.after  # no pass of these moves a node
    assert next(changes, None) is None


def told(row: Row | None) -> object:
    return row and row._replace(type="", value="", module="", source="")


def test_a_node_keeps_its_number_over_all_verbs(flow) -> None:
    prepare, convert = flow.report.runs
    number = {}
    for run in (prepare, convert):
        for moment in (run.moments[0], run.moments[-1]):
            found = {key for key, row in moment.rows.items() if row.name in ("conv2d", "linear")}
            number.setdefault("seen", found)
            assert found == number["seen"]
            assert len(found) == 2


def test_a_row_tells_where_its_node_comes_from(flow) -> None:
    prepare, convert = flow.report.runs
    conv = next(row for row in prepare.moments[-1].rows.values() if row.name == "conv2d")
    assert conv.module == "block.conv"
    assert conv.source.endswith("return torch.relu(self.bn(self.conv(x)))")
    assert (conv.made_by, conv.made_from) == ("", -1)
    assert flow.report.kinds["block"].endswith(".Block")
    quantizes = [row for row in convert.moments[-1].rows.values() if "quantize_per_tensor" in row.target]
    assert {row.made_by for row in quantizes} == {"observers-to-qdq"}


def test_annotations_name_their_edges(flow) -> None:
    annotated = flow.report.runs[0].moments[3]
    conv = next(row for row in annotated.rows.values() if row.name == "conv2d")
    edges = {annotated.rows[key].name: spec for key, spec in conv.specs if key != OUTPUT}
    assert list(edges) == ["x", "block_conv_weight"]
    assert edges["x"].startswith("u8 [0, 255] per_tensor_affine")
    assert edges["block_conv_weight"].startswith("i8 [-127, 127] per_channel_symmetric axis 0")


def test_values_of_constants_are_their_extremes(flow) -> None:
    folded = flow.report.runs[0].moments[2]
    weight = next(row for row in folded.rows.values() if row.name == "fc_weight")
    low, high = (float(word) for word in weight.value.split(" … "))
    expected = flow.prepared.fc.weight
    assert (low, high) == pytest.approx((expected.min().item(), expected.max().item()), rel=1e-3)


def test_a_graph_that_lost_its_ids_is_recognized(run_flow) -> None:
    flow = run_flow()
    del flow.prepared.meta[NEXT_ID_KEY]
    for node in flow.prepared.graph.nodes:
        del node.meta[ID_KEY]
    report = flow.report
    del report.runs[1:]
    report._last = flow.changes[4].after  # as it was when preparing ended
    convert_pt2e(flow.prepared, instruments=[report])
    before, after = report.runs[0].moments[-1].rows, report.runs[1].moments[0].rows
    assert before.keys() == after.keys()
    assert [row.name for row in before.values()] == [row.name for row in after.values()]


class Choice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (self.fc(x),))


def test_nested_graphs_are_in_it(run_flow) -> None:
    flow = run_flow(Choice(), torch.ones(2, 4))
    for moment in flow.report.runs[0].moments:
        bodies = {row.body for row in moment.rows.values()}
        nested = [row for row in moment.rows.values() if row.target == "aten.sub.Tensor"]
        # Passes may inline bodies; until then they are told apart from the graph around them.
        assert len(nested) == 1
        assert all(row.body in bodies for row in nested)
    first = flow.report.runs[0].moments[0]
    assert {row.body for row in first.rows.values() if row.target == "aten.sub.Tensor"} != {""}


def test_two_models_are_kept_apart(flow, run_flow) -> None:
    other = run_flow()
    assert other.report.runs[0].moments[-1].rows == flow.report.runs[0].moments[-1].rows
    assert Report().runs == []
