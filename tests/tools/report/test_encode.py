"""The data in the page: what was recorded, each thing once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import coverage
from lowbit.ir.meta import LEDGER_KEY
from lowbit.tools.report.encode import LITERAL, encode, encode_order
from lowbit.tools.report.numeric_error import NodeError

orders = st.lists(st.integers(0, 30), unique=True)


@settings(max_examples=300)
@given(orders, orders)
def test_an_order_is_pieces_of_the_one_before(before: list[int], now: list[int]) -> None:
    pieces = encode_order(before, now)
    read: list[int] = []
    for at, count in zip(pieces[::2], pieces[1::2], strict=True):
        read += [count] if at == LITERAL else before[at : at + count]
    assert read == now
    if before == now:
        assert len(pieces) == 2 * bool(now)


def encoded(report, **options):
    return encode(report, **{"title": "t", "with_times": False, "errors": None, **options})


def test_moments_are_read_back_exactly(flow, read) -> None:
    data = json.loads(json.dumps(encoded(flow.report)))
    text = data["strings"]
    moments = [moment for run in flow.report.runs for moment in run.moments]
    for moment, rows in zip(moments, read(data), strict=True):
        assert list(rows) == list(moment.rows)
        for key, fields in rows.items():
            row = moment.rows[key]
            name, op, target, arguments, inputs, type_, module, source, specs, *rest = fields
            assert [text[name], text[op], text[target]] == [row.name, row.op, row.target]
            assert ([text[a] for a in arguments], inputs) == (list(row.arguments), list(row.inputs))
            assert [text[type_], text[module], text[source]] == [row.type, row.module, row.source]
            assert [(of, text[spec]) for of, spec in specs] == list(row.specs)
            assert rest[-1] == row.made_from
            assert [text[i] for i in rest[:-1]] == list(row[9:-1])


def test_strings_and_rows_are_written_once(flow) -> None:
    data = encoded(flow.report)
    assert len(set(data["strings"])) == len(data["strings"])
    rows = [json.dumps(row) for row in data["rows"]]
    assert len(set(rows)) == len(rows)


def test_a_pass_that_changes_nothing_takes_no_room(flow) -> None:
    for run in encoded(flow.report)["runs"]:
        for moment in run["moments"]:
            if moment["after"] and flow_text(flow, moment) == "fold-conv-bn-qat":
                assert moment["rows"] == []
                assert len(moment["order"]) == 2
                return
    pytest.fail("the pass did not run")


def flow_text(flow, moment) -> str:
    return encoded(flow.report)["strings"][moment["after"]]


def test_decisions_are_about_the_nodes_they_name(run_flow) -> None:
    flow = run_flow()
    named = {node.name: node for node in flow.converted.graph.nodes}
    ledger = flow.converted.meta[LEDGER_KEY]
    ledger.quantized(named["conv2d"], "conv2d", "in one call", intended=True, kernel="a kernel")
    ledger.missed("no-pattern", named["mean"], "nobody asked")
    data = encoded(flow.report)
    text, rows = data["strings"], flow.report.runs[-1].moments[-1].rows
    made = {rows[key].name: words for key, *words in data["runs"][-1]["decisions"]}
    read = {name: (*(text[word] for word in words[:4]), *words[4:]) for name, words in made.items()}
    assert read == {
        "conv2d": ("quantized", "conv2d", "in one call", "a kernel", 1),
        "relu": ("float", "not-annotated", "the quantizer says nothing of it", "", 0),
        "mean": ("float", "no-pattern", "nobody asked", "", 0),
        "linear": ("quantized", "annotated", "", "", 1),
    }
    first = [text[reason] for _, _, reason, *_ in data["runs"][0]["decisions"]]
    assert sorted(first) == ["annotated", "annotated", "not-annotated", "not-annotated"]


def test_observers_know_their_sharing_group(flow) -> None:
    data = encoded(flow.report)
    groups = [seen["group"] for seen in data["observations"]]
    assert len(groups) == 4
    assert sorted(groups) == [0, 1, 2, 3]


def test_parameters_are_those_that_the_observers_find(flow) -> None:
    targets = flow.prepared.graph.find_nodes(op="call_module")
    observers = [flow.prepared.get_submodule(node.target) for node in targets if node.users]
    scales = [observer.calculate_qparams()[0] for observer in observers]
    shown = [seen["parameters"] for seen in encoded(flow.report)["observations"]]
    assert [each["count"] for each in shown] == [scale.numel() for scale in scales]
    for each, scale in zip(shown, scales, strict=True):
        assert each["scale"] == pytest.approx((scale.min().item(), scale.max().item()), rel=1e-6)


def test_a_model_that_is_only_prepared_shows_its_observers(flow, run_flow) -> None:
    prepared = run_flow().report
    del prepared.runs[1:]
    alone, whole = encoded(prepared), encoded(flow.report)
    assert alone["observations"] == whole["observations"]
    assert all(seen["has_data"] for seen in alone["observations"])


def test_times_can_be_left_out(flow) -> None:
    with_times = encoded(flow.report, with_times=True)
    times = [moment["seconds"] for run in with_times["runs"] for moment in run["moments"]]
    assert sum(times) > 0
    without = [moment["seconds"] for run in encoded(flow.report)["runs"] for moment in run["moments"]]
    assert set(without) == {None}


def test_infinite_errors_are_null(flow) -> None:
    errors = {1: NodeError(float("inf"), 0.0, False), 2: NodeError(12.3456, 0.123456, True)}
    assert encoded(flow.report, errors=errors)["errors"] == [[1, None, 0.0, 0], [2, 12.35, 0.1235, 1]]


def test_the_coverage_of_a_run_is_that_of_its_model(run_flow) -> None:
    flow = run_flow()
    data = encode(flow.report, title="", with_times=False, errors=None)
    found = [run["coverage"] for run in data["runs"]]
    lines = [str(coverage(model)) for model in (flow.prepared, flow.converted)]
    assert [one["line"] for one in found] == lines
    assert found[-1]["quantized"] > 0
    assert lines[-1].startswith(f"{found[-1]['quantized']} of {found[-1]['total']} float operators")
