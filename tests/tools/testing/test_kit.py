"""The kit itself: programs are graphs, strategies draw what they say, what fails is shown small."""

from __future__ import annotations

import subprocess
import sys
from random import Random
from typing import Any, ClassVar

import attrs
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from lowbit import PassContext, Pipeline, Stage, SubgraphMatcherWithNameNodeMap
from lowbit.errors import StageError
from lowbit.ir.verifiers import verify
from lowbit.matchers.capture import capture
from lowbit.tools.testing import (
    Program,
    Step,
    build,
    laws,
    near_misses,
    per_channel_specs,
    per_tensor_specs,
    pipelines,
    programs,
    subjects,
)
from lowbit.tools.testing.canonical import canonical
from lowbit.tools.testing.generate import draw_subject
from lowbit.tools.testing.operators import OPERATORS
from lowbit.tools.testing.programs import example_inputs
from torch.fx import GraphModule

aten = torch.ops.aten


@settings(max_examples=50)
@given(programs())
def test_every_program_is_a_graph_that_runs(program: Program) -> None:
    gm = build(program)
    verify(gm, Stage.FLOAT)
    with torch.no_grad():
        results = gm(*example_inputs(program))
    for node, result in zip(gm.graph.output_node().all_input_nodes, results, strict=False):
        assert (node.meta["val"].dtype, node.meta["val"].dim()) == (result.dtype, result.dim())


def test_every_operator_comes_up() -> None:
    drawn = [draw_subject(Random(i), max_steps=5, is_training=False).program for i in range(150)]
    assert {step.operator for p in drawn for step in p.steps} == set(OPERATORS)
    targets = {str(node.target) for p in drawn for node in build(p).graph.nodes}
    for name in ("conv1d.default", "conv2d.padding", "batch_norm.default", "relu_.default", "chunk.default"):
        assert f"aten.{name}" in targets


def test_a_program_can_be_exported_with_a_dynamic_batch() -> None:
    gm = build(Program((2, 2, 4, 4), (Step("block", option=1), Step("relu"))))
    inputs = tuple(torch.randn(3, 2, 4, 4) for _ in range(2))
    batch = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(gm, inputs, dynamic_shapes=(batch, batch)).module()
    more = tuple(torch.randn(5, 2, 4, 4) for _ in range(2))
    assert torch.equal(exported(*more)[0], gm(*more)[0])


def test_the_same_numbers_make_the_same_subjects_in_every_process() -> None:
    code = (
        "from random import Random; from lowbit.tools.testing.generate import draw_subject as d;"
        "print([d(Random(f'0 {i}'), max_steps=5, is_training=False) for i in range(20)])"
    )
    # Hashes of text are others there than here.
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    here = [draw_subject(Random(f"0 {i}"), max_steps=5, is_training=False) for i in range(20)]
    assert there.strip() == str(here)


@settings(max_examples=30)
@given(subjects(3), per_tensor_specs(), per_channel_specs(), pipelines())
def test_strategies(subject: Any, per_tensor: Any, per_channel: Any, pipeline: Pipeline) -> None:
    assert len(subject.program.steps) <= 3
    assert per_tensor.ch_axis is None
    assert per_channel.ch_axis in (0, 1)
    assert Pipeline.parse(str(pipeline)) == pipeline


def linear_relu(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w, b).relu()


LINEAR_RELU = (torch.randn(2, 3), torch.randn(4, 3), torch.randn(4))


@settings(max_examples=30)
@given(near_misses(linear_relu, LINEAR_RELU))
def test_a_near_miss_is_not_matched(miss: Any) -> None:
    matches = SubgraphMatcherWithNameNodeMap(capture(linear_relu, LINEAR_RELU)).match(miss.gm.graph)
    assert bool(matches) == (miss.kind == "match")


def test_canonical_text_is_blind_to_names_and_to_nothing_else() -> None:
    program = Program((2, 3), (Step("linear", option=1), Step("relu")))
    first, second = build(program), build(program)
    for index, node in enumerate(second.graph.nodes):
        if node.op == "call_function":
            node._rename(f"other_{index}")
    assert canonical(first) == canonical(second)
    assert canonical(first) != canonical(build(attrs.evolve(program, seed=1)))


@attrs.frozen
class Replace:
    """Calls another operator in place of one; what is wrong with that depends on the two."""

    name: ClassVar[str] = "replace"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None
    old: Any
    new: Any

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        found = gm.graph.find_nodes(op="call_function", target=self.old)
        for node in found:
            node.target = self.new
        return bool(found)


BUGS = {
    "relu": (aten.relu.default, aten.neg.default),
    "sigmoid": (aten.sigmoid.default, aten.tanh.default),
    "tanh": (aten.tanh.default, aten.sigmoid.default),
    "hardswish": (aten.hardswish.default, aten.silu.default),
    "gelu": (aten.gelu.default, aten.relu.default),
    "add": (aten.add.Tensor, aten.sub.Tensor),
    "mul": (aten.mul.Tensor, aten.add.Tensor),
    "sub": (aten.sub.Tensor, aten.add.Tensor),
    "clone": (aten.clone.default, aten.neg.default),
    "flatten": (aten.flatten.using_ints, aten.unsqueeze.default),
    "max_pool2d": (aten.max_pool2d.default, aten.avg_pool2d.default),
    "avg_pool2d": (aten.avg_pool2d.default, aten.max_pool2d.default),
    "conv2d": (aten.conv2d.default, aten.conv1d.default),
    "linear": (aten.linear.default, aten.matmul.default),
    "cat": (aten.cat.default, aten.stack.default),
    "hardtanh": (aten.hardtanh.default, aten.clamp_min.default),
    "adaptive_avg_pool2d": (aten.adaptive_avg_pool2d.default, aten.adaptive_max_pool2d.default),
    "slice": (aten.slice.Tensor, aten.transpose.int),
    "softmax": (aten.softmax.int, aten.log_softmax.int),
    "batch_norm": (aten.batch_norm.default, aten.instance_norm.default),
}


def operators_shown(report: str) -> int:
    """How many operators the graph in ``report`` has, besides what takes results apart."""
    graph = report.partition("on the graph\n")[2].partition("\n\nwhich is")[0]
    return sum("call_function" in line and "getitem" not in line for line in graph.splitlines())


@pytest.mark.parametrize("name", BUGS)
def test_what_fails_is_shown_on_as_few_operators_as_there_can_be(name: str) -> None:
    with pytest.raises(laws.LawBroken) as caught:
        laws.check(Replace(*BUGS[name]), max_steps=2, laws=laws.LAWS[:4])
    text = str(caught.value)
    assert operators_shown(text) == 1, text
    assert "(Step(operator=" in text
    assert text.count("Step(operator=") == 1


@attrs.frozen
class Lies(Replace):
    """Replaces relu by relu."""

    name: ClassVar[str] = "lies"
    old: Any = aten.relu.default
    new: Any = aten.relu.default


@attrs.frozen
class ByName:
    """Does something where a node has a certain name."""

    name: ClassVar[str] = "by-name"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        found = [n for n in gm.graph.nodes if n.name == "relu_default"]
        for node in found:
            with gm.graph.inserting_after(node):
                again = gm.graph.call_function(aten.relu.default, (node,))
            node.replace_all_uses_with(again, delete_user_cb=lambda user, again=again: user is not again)
        return bool(found)


def test_laws_other_than_of_numbers() -> None:
    with pytest.raises(laws.LawBroken, match="lies breaks the law report-honest"):
        laws.check(Lies())
    with pytest.raises(laws.LawBroken, match="by-name breaks the law idempotent"):
        laws.check(ByName())
    others = tuple(law for law in laws.LAWS if law.__name__ != "idempotent")
    with pytest.raises(laws.LawBroken, match="by-name breaks the law blind-to-names"):
        laws.check(ByName(), laws=others)


def test_a_stage_that_no_graph_is_brought_to() -> None:
    @attrs.frozen
    class OfLowered(Lies):
        name: ClassVar[str] = "of-lowered"
        requires: ClassVar[frozenset[Stage]] = frozenset({Stage.LOWERED})

    with pytest.raises(StageError, match="no graph can be generated for the pass of-lowered"):
        laws.check(OfLowered())
