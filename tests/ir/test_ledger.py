"""The ledger: one decision a node, the latest standing."""

from __future__ import annotations

import copy
import operator

import attrs
import pytest
import torch
from lowbit.ir.gone import Gone, gone_by_name
from lowbit.ir.ledger import Decision, Ledger
from lowbit.ir.near_miss import NearMiss
from torch import nn
from torch.fx import Node

aten = torch.ops.aten


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2))

    def forward(self, x):
        return torch.tanh(self.inner(x))


@pytest.fixture
def nodes() -> dict[str, Node]:
    gm = torch.export.export(Model(), (torch.ones(1, 2),)).module()
    return {n.name: n for n in gm.graph.nodes}


def test_a_decision_says_what_why_and_where(nodes) -> None:
    ledger = Ledger()
    ledger.missed("no-pattern", nodes["tanh"], "nothing runs it")
    (decision,) = ledger.decisions
    assert decision == Decision(
        node="tanh",
        target="aten.tanh.default",
        status="float",
        reason="no-pattern",
        detail="nothing runs it",
        module="",
        source=decision.source,
    )
    assert decision.source.endswith("return torch.tanh(self.inner(x))")


def test_the_latest_entry_stands_and_the_order_is_that_of_first_mention(nodes) -> None:
    ledger = Ledger()
    ledger.missed("not-configured", nodes["linear"])
    ledger.missed("no-pattern", nodes["tanh"])
    ledger.quantized(nodes["linear"], "linear")
    assert [(d.node, d.status, d.reason) for d in ledger.decisions] == [
        ("linear", "quantized", "linear"),
        ("tanh", "float", "no-pattern"),
    ]
    assert ledger.decisions[0].module == "inner.0"


def test_a_ledger_knows_which_nodes_it_has(nodes) -> None:
    ledger = Ledger()
    ledger.quantized(nodes["linear"], "linear")
    assert nodes["linear"] in ledger
    assert nodes["tanh"] not in ledger
    assert Ledger().decisions == ()


def test_keeping_decisions_forgets_the_others_and_settles_the_order(nodes) -> None:
    ledger = Ledger()
    ledger.missed("no-pattern", nodes["tanh"])
    ledger.missed("not-configured", nodes["linear"])
    ledger.keep(["linear", "tanh"])
    assert [d.node for d in ledger.decisions] == ["linear", "tanh"]
    ledger.keep(["tanh"])
    assert [d.node for d in ledger.decisions] == ["tanh"]
    assert (ledger.reason_of(nodes["tanh"]), ledger.reason_of(nodes["linear"])) == ("no-pattern", None)


def test_each_body_has_a_part_of_its_own(nodes) -> None:
    ledger = Ledger()
    inside, deeper = (ledger.inside(name, ()) for name in ("true_graph_0", "true_graph_0.body_graph_0"))
    for each in (deeper, inside):
        each.missed("no-pattern", nodes["tanh"])
        each.quantized(nodes["linear"], "linear")
    ledger.quantized(nodes["linear"], "linear", kernel="onednn", runs_at="call")
    inside.retire({"tanh"})
    inside.keep(["linear"])
    assert [(d.node, d.reason) for d in ledger.decisions] == [
        ("linear", "linear"),
        ("true_graph_0.body_graph_0.tanh", "no-pattern"),
        ("true_graph_0.body_graph_0.linear", "linear"),
        ("true_graph_0.linear", "training-only"),
    ]
    assert nodes["tanh"] not in inside
    assert nodes["tanh"] in deeper
    assert deeper.is_of_the_model_of(ledger)
    assert not ledger.copy().is_of_the_model_of(ledger)
    assert Ledger.of(ledger.entries) == ledger


def test_what_more_a_kernel_could_do_is_noted_where_it_runs(nodes) -> None:
    ledger = Ledger()
    inside = ledger.inside("body", ())
    for each in (ledger, inside):
        each.quantized(nodes["linear"], "linear", "runs as k", kernel="k", runs_at="call")
        each.missed("no-pattern", nodes["tanh"])
    inside.moved({"call": "larger"})
    for _ in range(2):  # as often as the pass runs
        ledger.noted({"call": ("not-merged", "it is by itself")})
    told = {d.node: (d.runs_at, d.note, d.detail) for d in ledger.decisions}
    assert told == {
        "linear": ("call", "not-merged", "runs as k; it is by itself"),
        "tanh": ("", "", ""),
        "body.linear": ("body.larger", "", "runs as k"),
        "body.tanh": ("", "", ""),
    }


def test_what_a_pass_took_out_is_no_decision_and_is_known(nodes) -> None:
    ledger = Ledger()
    inside = ledger.inside("body", ())
    ledger.removed(nodes["linear"], "folded", by="fold", into=nodes["tanh"])
    inside.removed(nodes["tanh"], "unread", by="sweep")
    copied = ledger.copy()
    ledger.removed(nodes["tanh"], "identity", by="sweep", into=nodes["x"])
    assert ledger.decisions == ()
    assert [(g.node, g.why, g.into, g.by, g.module) for g in ledger.gone] == [
        ("linear", "folded", "tanh", "fold", "inner.0"),
        ("body.tanh", "unread", "", "sweep", ""),
        ("tanh", "identity", "x", "sweep", ""),
    ]
    assert [g.node for g in copied.gone] == ["linear", "body.tanh"]
    assert Ledger.of(ledger.entries, ledger.gone_entries) == ledger
    # What stands for an operator may be gone too: then it is what stands for that.
    (linear,) = gone_by_name(ledger.gone, "inner")
    assert linear.into == "x"
    assert gone_by_name(ledger.gone, "inn") == gone_by_name(ledger.gone, "") == ()
    (tanh,) = gone_by_name(ledger.gone, "body.tanh")
    assert str(tanh) == "%body.tanh was left out by the pass sweep: nothing reads its result"
    # A text may say anything.
    around = [Gone("a", "identity", "b", "p"), Gone("b", "identity", "a", "p")]
    assert [g.into for g in gone_by_name(around, "a")] == ["b"]


def test_the_nearest_miss_stays_with_a_decision_that_is_float(nodes) -> None:
    far, near = (NearMiss("p", found, 3, "different-target", "x", "it is not") for found in (1, 2))
    ledger = Ledger()
    ledger.missed("no-pattern", nodes["tanh"])
    for miss in (far, near, far):
        ledger.almost(nodes["tanh"], miss)
    ledger.missed("no-kernel", nodes["tanh"])
    assert [(d.reason, d.nearest) for d in ledger.decisions] == [("no-kernel", near)]
    inside = ledger.inside("body", ())
    inside.missed("no-pattern", nodes["tanh"])
    inside.almost(nodes["tanh"], near)
    assert ledger.decisions[1].nearest == attrs.evolve(near, node="body.x")
    ledger.quantized(nodes["tanh"], "p")
    assert ledger.decisions[0].nearest is None


def test_functions_are_written_as_in_python(nodes) -> None:
    nodes["tanh"].target = operator.getitem
    ledger = Ledger()
    ledger.missed("no-pattern", nodes["tanh"])
    assert ledger.decisions[0].target == "operator.getitem"


def test_a_copy_is_independent(nodes) -> None:
    ledger = Ledger()
    ledger.quantized(nodes["linear"], "linear")
    other = ledger.copy()
    other.missed("no-pattern", nodes["tanh"])
    ledger.missed("not-configured", nodes["linear"])
    assert [d.status for d in other.decisions] == ["quantized", "float"]
    assert [d.status for d in ledger.decisions] == ["float"]


def test_decisions_outlive_their_graph_and_copies_of_models(nodes) -> None:
    ledger = Ledger()
    ledger.quantized(nodes["linear"], "linear")
    expected = ledger.decisions
    # Models carry their ledger in meta, which copy.deepcopy copies as well.
    assert copy.deepcopy(ledger).decisions == expected
    nodes["linear"].meta.clear()
    assert ledger.decisions == expected
