"""The manager: all of a pipeline on a copy, or nothing; and no pass gets away with a false report."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import ClassVar

import attrs
import pytest
import torch
from lowbit.errors import GraphInputError, LowbitError, PassFailedError, SpecError, StageError
from lowbit.ir.annotation import QuantizationAnnotation, get_annotation, set_annotation
from lowbit.ir.attributes import set_tensor
from lowbit.ir.location import locate
from lowbit.ir.observers import MinMaxObserver
from lowbit.ir.snapshot import take_snapshot
from lowbit.ir.specs import QuantizationSpec, SharedQuantizationSpec
from lowbit.ir.stages import Stage, get_stage
from lowbit.passes import PassContext, PassManager, Pipeline
from lowbit.passes.instruments import Change, Timing
from torch import nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver)


@attrs.frozen
class Step:
    """A pass made of a function."""

    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    action: Callable[[GraphModule], object]
    name: str = "step"
    ensures: Stage | None = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        return self.action(gm)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.register_buffer("offset", torch.ones(3, 1, 1))

    def forward(self, x):
        y = self.conv(x).relu()
        return torch.cond(y.sum() > 0, lambda y: y + self.offset, lambda y: y.neg(), (y,))


INPUT = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def gm() -> GraphModule:
    torch.manual_seed(0)
    gm = torch.export.export(Model().eval(), (INPUT,)).module()
    relu = the(gm, aten.relu.default)
    set_annotation(relu, QuantizationAnnotation({relu.args[0]: UINT8}, SharedQuantizationSpec(relu.args[0])))
    gm.meta["mine"] = "yes"
    return gm


def the(gm: GraphModule, target: object) -> Node:
    (node,) = gm.graph.find_nodes(op="call_function", target=target)
    return node


def run(gm: GraphModule, *actions: Callable[[GraphModule], object], **options) -> GraphModule:
    return PassManager(**options).run(gm, Pipeline(tuple(map(Step, actions))))


# -- what passes of these tests do


def replace_relu(gm: GraphModule) -> bool:
    the(gm, aten.relu.default).target = aten.neg.default
    return True


def change_everything(gm: GraphModule) -> bool:
    """Touch whatever a pass may touch."""
    for node in gm.graph.nodes:
        node.meta["touched"] = True
        if get_annotation(node):
            get_annotation(node).input_qspec_map.clear()
            get_annotation(node).output_qspec = None
    set_tensor(gm, "conv.weight", torch.zeros(3, 2, 1, 1))
    gm.conv.bias = nn.Parameter(torch.zeros(3))
    gm.register_buffer("new", torch.ones(1), persistent=False)
    gm.add_module("observer", MinMaxObserver())
    gm.meta["mine"] = "changed"
    relu = the(gm, aten.relu.default)
    with gm.graph.inserting_after(relu):
        observed = gm.graph.call_module("observer", (relu,))
    relu.replace_all_uses_with(observed, delete_user_cb=lambda user: user is not observed)
    body = gm.true_graph_0
    the(body, aten.add.Tensor).target = aten.sub.Tensor
    body.meta["mine"] = "changed"
    gm.graph.erase_node(gm.graph.find_nodes(op="call_module", target="_guards_fn")[0])
    return True


def fail(gm: GraphModule) -> bool:
    raise ZeroDivisionError("one over none")


@attrs.frozen(eq=False)
class Everything:
    """All of a graph module that a pass could change, by value and by identity."""

    gm: GraphModule
    snapshot: object
    text: tuple[str, ...]
    tensors: dict[str, tuple[int, int, list]]
    modules: dict[str, int]
    metas: list[dict]

    @classmethod
    def of(cls, gm: GraphModule) -> Everything:
        tensors = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
        return cls(
            gm=gm,
            snapshot=take_snapshot(gm),
            text=(take_snapshot(gm).digest, gm.code, gm.true_graph_0.code, str(gm.state_dict().keys())),
            tensors={name: (id(t), t._version, t.tolist()) for name, t in tensors.items()},
            modules={name: id(module) for name, module in gm.named_modules()},
            metas=[dict(gm.meta), dict(gm.true_graph_0.meta), *(dict(node.meta) for node in gm.graph.nodes)],
        )

    def assert_unchanged(self) -> None:
        now = Everything.of(self.gm)
        assert now.snapshot.same_as(self.snapshot)
        assert now.text == self.text
        assert now.tensors == self.tensors
        assert now.modules == self.modules
        assert now.metas == self.metas


# -- transactions


@pytest.mark.parametrize("failing", [fail, lambda gm: None, lambda gm: not change_everything(gm)])
def test_a_failing_pipeline_leaves_the_callers_module_as_it_was(gm: GraphModule, failing) -> None:
    before, expected = Everything.of(gm), gm(INPUT)
    actions = [failing] if failing not in (fail,) else [change_everything, fail]
    with pytest.raises(PassFailedError):
        run(gm, *actions)
    before.assert_unchanged()
    assert torch.equal(gm(INPUT), expected)


def test_a_pipeline_that_works_leaves_the_callers_module_as_it_was_too(gm: GraphModule) -> None:
    before, expected = Everything.of(gm), gm(INPUT)
    result = run(gm, change_everything)
    before.assert_unchanged()
    assert torch.equal(gm(INPUT), expected)
    # With weight and bias zero: relu(0) is not above 0, so the other branch, and nothing else, was taken.
    assert result(INPUT).tolist() == (-torch.zeros(1, 3, 4, 4)).tolist()
    assert result.observer.max_val.item() == 0.0
    assert result.meta["mine"] == "changed"


def test_a_failing_instrument_leaves_the_callers_module_as_it_was(gm: GraphModule) -> None:
    class Grumpy:
        def before(self, pass_, gm):
            pass

        def after(self, pass_, gm, change):
            raise StageError("I do not like it")

    before = Everything.of(gm)
    with pytest.raises(StageError, match="I do not like it") as caught:
        run(gm, change_everything, instruments=(Grumpy(),))
    assert caught.value.pass_name == "step"
    before.assert_unchanged()


def test_an_empty_pipeline_gives_a_copy(gm: GraphModule) -> None:
    copy = run(gm)
    assert copy is not gm
    assert torch.equal(copy(INPUT), gm(INPUT))
    assert take_snapshot(copy).digest == take_snapshot(gm).digest


# -- reports


def change_args(gm: GraphModule) -> None:
    node = the(gm, aten.conv2d.default)
    node.args = (*node.args[:3], [1, 1], [0, 0])


def change_annotation(gm: GraphModule) -> None:
    get_annotation(the(gm, aten.relu.default)).allow_implicit_sharing = False


def change_attribute(gm: GraphModule) -> None:
    set_tensor(gm, "conv.weight", gm.conv.weight.detach().clone())


def change_branch(gm: GraphModule) -> None:
    the(gm.true_graph_0, aten.add.Tensor).target = aten.sub.Tensor


def move(gm: GraphModule) -> None:
    first, second, *_ = gm.graph.nodes
    second.append(first)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_args, "0 added, 0 removed, 1 changed, 0 moved, 0 attributes"),
        (change_annotation, "0 added, 0 removed, 1 changed, 0 moved, 0 attributes"),
        (change_attribute, "0 added, 0 removed, 0 changed, 0 moved, 1 attributes"),
        (change_branch, "0 added, 0 removed, 0 changed, 0 moved, 1 attributes"),
        (move, "0 added, 0 removed, 0 changed, 1 moved, 0 attributes"),
    ],
)
def test_a_pass_that_denies_its_change_is_caught(gm: GraphModule, change, said: str) -> None:
    def lie(work: GraphModule) -> bool:
        change(work)
        return False

    before = Everything.of(gm)
    with pytest.raises(PassFailedError, match=f"said that it changed nothing, but it did: {said}") as caught:
        run(gm, lie)
    assert caught.value.pass_name == "step"
    assert caught.value.where, "the first lines of the diff"
    before.assert_unchanged()


@pytest.mark.parametrize("reported", [True, False])
def test_a_pass_that_writes_into_a_tensor_is_caught_whatever_it_says(gm: GraphModule, reported: bool) -> None:
    def write(work: GraphModule) -> bool:
        with torch.no_grad():
            work.conv.weight.mul_(2)
        return reported

    with pytest.raises(PassFailedError) as caught:
        run(gm, write)
    expected = "wrote into conv.weight" if reported else "said that it changed nothing"
    assert expected in caught.value.found
    assert caught.value.hint


def test_a_pass_may_claim_a_change_that_it_did_not_make(gm: GraphModule) -> None:
    # As Annotate does for a quantizer that found nothing.
    timing = Timing()
    run(gm, lambda work: True, instruments=(timing,))
    assert [record.changed for record in timing.records] == [False]


@pytest.mark.parametrize("returned", [None, 0, 1, "yes", torch.tensor(True)])
def test_the_report_is_a_bool(gm: GraphModule, returned: object) -> None:
    with pytest.raises(PassFailedError, match=r"the pass returned .* from run") as caught:
        run(gm, lambda work: returned)
    assert caught.value.pass_name == "step"


# -- errors


def test_what_a_pass_raises_is_wrapped_with_its_cause_and_the_name_of_the_pass(gm: GraphModule) -> None:
    with pytest.raises(PassFailedError) as caught:
        PassManager().run(gm, Pipeline((Step(lambda work: True, "first"), Step(fail, "second"))))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert str(caught.value).splitlines()[:2] == [
        "the pass raised ZeroDivisionError: one over none",
        "  in pass: second",
    ]


def test_an_error_of_lowbit_keeps_its_type_and_place_and_gets_the_name_of_the_pass(gm: GraphModule) -> None:
    def refuse(work: GraphModule) -> bool:
        raise SpecError("no such thing", where=locate(the(work, aten.conv2d.default)), hint="do not")

    with pytest.raises(SpecError) as caught:
        run(gm, refuse)
    text = str(caught.value)
    assert caught.value.__cause__ is None
    assert "  in pass: step\n" in text
    assert "  at: %conv2d (aten.conv2d.default)\n      module conv\n" in text
    assert "test_manager.py:" in text, "the source line"
    assert "y = self.conv(x).relu()" in text
    assert text.endswith("  do: do not")


def test_the_innermost_pass_is_named(gm: GraphModule) -> None:
    def outer(work: GraphModule) -> bool:
        PassManager().run(work, Pipeline((Step(fail, "inner"),)))
        return False

    with pytest.raises(PassFailedError) as caught:
        PassManager().run(gm, Pipeline((Step(outer, "outer"),)))
    assert caught.value.pass_name == "inner"


def test_interrupts_are_not_errors_of_the_pass(gm: GraphModule) -> None:
    def interrupt(work: GraphModule) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(gm, interrupt)


@pytest.mark.parametrize("thing", [nn.Linear(1, 1), None, "normalize"])
def test_only_graph_modules_are_run_on(thing: object) -> None:
    with pytest.raises(GraphInputError, match=f"a pipeline was run on a {type(thing).__name__}"):
        PassManager().run(thing, Pipeline())


# -- stages


def test_the_first_stage_is_checked_and_later_ones_recorded(gm: GraphModule) -> None:
    annotated = PassManager().run(gm, Pipeline((Step(lambda work: True, ensures=Stage.ANNOTATED),)))
    assert get_stage(annotated) is Stage.ANNOTATED
    assert get_stage(gm) is Stage.FLOAT
    with pytest.raises(StageError, match="runs at stage FLOAT, and the graph is at ANNOTATED") as caught:
        run(annotated, lambda work: True)
    assert caught.value.pass_name == "step"
    assert caught.value.hint


def test_a_broken_graph_is_found_behind_the_pass_that_broke_it(gm: GraphModule) -> None:
    def break_order(work: GraphModule) -> bool:
        relu = the(work, aten.relu.default)
        relu.append(relu.args[0])
        return True

    with pytest.raises(StageError, match="its input %conv2d stands after it") as caught:
        PassManager().run(gm, Pipeline((Step(break_order, "breaks"), Step(fail, "never-run"))))
    assert caught.value.pass_name == "breaks"


# -- code


def test_code_is_generated_once_a_module(gm: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    recompiled: list[str] = []
    original = GraphModule.recompile

    def recompile(self: GraphModule):
        # Making a graph module generates the code of its graph, which is empty when it is made for a copy.
        if len(self.graph.nodes):
            recompiled.append(type(self).__name__)
        return original(self)

    monkeypatch.setattr(GraphModule, "recompile", recompile)
    run(gm, change_everything, *[lambda work: True] * 5)
    assert len(recompiled) == 1 + 2, "the module and the two branches of cond"


def test_nested_graphs_are_changed_and_run(gm: GraphModule) -> None:
    def subtract(work: GraphModule) -> bool:
        change_branch(work)
        return True

    y = torch.nn.functional.conv2d(INPUT, gm.conv.weight, gm.conv.bias).relu()
    assert torch.equal(run(gm, subtract)(INPUT), y - 1)
    assert torch.equal(gm(INPUT), y + 1)


def test_a_nested_graph_in_a_plain_container_runs_as_changed() -> None:
    # torch's own recompile goes on to direct children only.
    class Model(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x.neg(), (x,))

    gm = torch.export.export(Model(), (torch.ones(2),)).module()
    container = nn.Module()
    container.body = gm.true_graph_0
    gm.container = container
    (reference,) = gm.graph.find_nodes(op="get_attr", target="true_graph_0", sort=True)
    reference.target = "container.body"
    delattr(gm, "true_graph_0")

    def subtract(work: GraphModule) -> bool:
        the(work.container.body, aten.add.Tensor).target = aten.sub.Tensor
        return True

    assert run(gm, subtract)(torch.ones(2)).tolist() == [0.0, 0.0]


# -- instruments


def test_instruments_look_on_in_order(gm: GraphModule) -> None:
    told: list[tuple[str, str, str]] = []

    @attrs.frozen
    class Teller:
        me: str

        def before(self, pass_, gm):
            told.append((self.me, "before", pass_.name))

        def after(self, pass_, gm, change: Change):
            told.append((self.me, "after", pass_.name))

    pipeline = Pipeline((Step(replace_relu, "a"), Step(lambda work: False, "b")))
    PassManager([Teller("one"), Teller("two")]).run(gm, pipeline)
    assert told == [
        (me, when, name) for name in ("a", "b") for when in ("before", "after") for me in ("one", "two")
    ]


def test_a_change_says_what_the_pass_did(gm: GraphModule) -> None:
    changes: list[Change] = []

    class Keep:
        def before(self, pass_, gm):
            pass

        def after(self, pass_, gm, change: Change):
            changes.append(change)

    run(gm, replace_relu, lambda work: False, instruments=(Keep(),))
    first, second = changes
    assert (first.index, second.index) == (0, 1)
    assert (first.changed, second.changed) == (True, False)
    assert [node.name for node in first.diff.changed] == ["relu"]
    assert not second.diff
    assert second.before is first.after
    assert first.seconds > 0


def test_garbage_collection_is_as_it_was_afterwards(gm: GraphModule) -> None:
    seen: list[bool] = []

    def look(work: GraphModule) -> bool:
        seen.append(gc.isenabled())
        return False

    assert gc.isenabled()
    run(gm, look)
    with pytest.raises(PassFailedError):
        run(gm, fail)
    assert gc.isenabled()
    gc.disable()
    try:
        run(gm, look)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert seen == [False, False]


def test_errors_without_a_pass_have_none() -> None:
    assert LowbitError("found").pass_name is None
