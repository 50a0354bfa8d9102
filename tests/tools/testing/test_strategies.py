"""What the strategies draw goes through flows, or is refused by them in time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import PassContext, PassManager, Pipeline, Stage, convert_pt2e, lower_pt2e, prepare_pt2e
from lowbit.backends.pipelines import PREPARE
from lowbit.errors import LowbitError, NotCalibratedError, PassFailedError, SharingError, StageError
from lowbit.ir.observers import create_observer
from lowbit.ir.specs import QuantizationSpec
from lowbit.ir.stages import get_stage
from lowbit.ir.verifiers import verify
from lowbit.tools.testing import (
    FAULTS,
    Choices,
    DrawnQuantizer,
    Dynamic,
    IllegalQuantizer,
    Program,
    Step,
    Subject,
    build,
    choices,
    dynamic_modules,
    illegal_quantizers,
    per_channel_specs,
    per_tensor_specs,
    pipelines,
    programs,
    quantizers,
    shapes,
    steps,
    subjects,
)
from torch.fx import GraphModule

pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.LowbitWarning")


@settings(max_examples=40)
@given(programs(3), quantizers())
def test_legal_annotations_go_through_or_say_why_not(program: Program, quantizer: DrawnQuantizer) -> None:
    try:
        prepared = prepare_pt2e(build(program), quantizer)
    except SharingError:
        if not any(choice.anchor for choice in quantizer.choices):
            raise
    else:
        verify(prepared, Stage.OBSERVED)


REFUSED_BY = ("annotate", "resolve-sharing", "insert-observers")
"""The last makes all observers, and finds dtypes that there are none of, before it inserts the first."""


def _passes_until_refused(gm: GraphModule, quantizer: IllegalQuantizer) -> tuple[str, LowbitError]:
    for pass_ in PREPARE:
        try:
            gm = PassManager(()).run(gm, Pipeline((pass_,)), PassContext(quantizer=quantizer))
        except LowbitError as error:
            return pass_.name, error
    raise AssertionError(f"nothing refuses an {quantizer.fault}")


@settings(max_examples=60)
@given(programs(3).filter(lambda p: bool(p.steps)), illegal_quantizers())
def test_illegal_annotations_are_refused_before_anything_is_inserted(
    program: Program, quantizer: IllegalQuantizer
) -> None:
    # As it is annotated: of some operators nothing is left.
    gm = PassManager(()).run(build(program), PREPARE.until("fold-batch-norm"))
    if not any(node.op == "call_function" for node in gm.graph.nodes):
        return
    name, error = _passes_until_refused(gm, quantizer)
    assert name in REFUSED_BY, error
    assert not isinstance(error, (PassFailedError, StageError)), error


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_refused_in_the_whole_flow(fault: str) -> None:
    quantizer = IllegalQuantizer(DrawnQuantizer((Choices(1, 1),)), fault)
    with pytest.raises(LowbitError) as caught:
        prepare_pt2e(build(Program((2, 3), (Step("linear", option=1), Step("relu")))), quantizer)
    assert caught.value.pass_name in REFUSED_BY
    assert not isinstance(caught.value, PassFailedError)


@settings(max_examples=6)
@given(dynamic_modules(), quantizers())
def test_dynamic_shapes_go_through_the_whole_flow(dynamic: Dynamic, quantizer: DrawnQuantizer) -> None:
    legal = attrs.evolve(quantizer, choices=[attrs.evolve(c, anchor=0) for c in quantizer.choices])
    # Each pass keeps its contract on numbers, at another size than that of the export.
    options: dict[str, Any] = {"verify": "numeric", "example_inputs": dynamic.others}
    prepared = prepare_pt2e(dynamic.gm, legal, **options)
    prepared(*dynamic.inputs)
    converted = convert_pt2e(prepared, **options)
    reference = convert_pt2e(prepared, use_reference_representation=True, **options)
    lowered = lower_pt2e(converted, "x86_inductor", **options)
    for x in (dynamic.inputs, dynamic.others):
        with torch.no_grad():
            want = converted(*x)
            for gm in (reference, lowered):
                got = gm(*x)
                assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in want]


@settings(max_examples=60)
@given(st.one_of(per_tensor_specs(), per_channel_specs()), shapes())
def test_specs_make_observers(spec: QuantizationSpec, shape: tuple[int, ...]) -> None:
    observer = create_observer(spec)
    x = torch.randn(2, 3, *shape)
    observer(x)
    if not x.numel():
        with pytest.raises(NotCalibratedError):
            observer.calculate_qparams()
        return
    scale, zero_point = observer.calculate_qparams()
    assert scale.numel() == zero_point.numel() == (1 if spec.ch_axis is None else x.shape[spec.ch_axis])
    assert bool((scale > 0).all())
    assert bool(((zero_point >= spec.quant_min) & (zero_point <= spec.quant_max)).all())


@settings(max_examples=40)
@given(subjects(2), pipelines())
def test_pipelines_run_or_say_why_not(subject: Subject, pipeline: Pipeline) -> None:
    gm = build(subject.program)
    if not pipeline or Stage.FLOAT not in next(iter(pipeline)).requires:
        return
    try:
        gm = PassManager(()).run(gm, pipeline, subject.context())
    except (NotCalibratedError, SharingError):
        return  # none of the observers saw data, or points share in a circle
    verify(gm, get_stage(gm))


def test_all_that_can_be_drawn_is() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=300, database=None)
    @given(steps(), choices(), shapes(), illegal_quantizers())
    def draw(step: Step, choice: Choices, shape: tuple[int, ...], quantizer: IllegalQuantizer) -> None:
        seen.update((step.operator, quantizer.fault, str(shape), f"anchor {choice.anchor}"))

    draw()
    assert {*FAULTS, "(0, 3)", "()", "anchor 0", "anchor 1", "linear"} <= seen.keys()


def test_nothing_is_added_to_a_view_of_itself() -> None:
    # Transposed, elements would be read after they are written to; torch refuses.
    graph = build(Program((2, 2), (Step("identity", option=1), Step("in_place", 0, 1, option=5)))).graph
    targets = [node.target for node in graph.nodes]
    assert torch.ops.aten.mul_.Tensor in targets
    assert torch.ops.aten.add_.Tensor not in targets


def test_no_mean_is_of_nothing() -> None:
    # Observers refuse what is no number.
    program = Program(
        (0, 3), (Step("in_place", 0, 0, option=1), Step("move", option=1), Step("reduce", option=1))
    )
    assert torch.ops.aten.mean.dim not in {node.target for node in build(program).graph.nodes}
    program = attrs.evolve(program, shape=(2, 3))
    assert torch.ops.aten.mean.dim in {node.target for node in build(program).graph.nodes}
