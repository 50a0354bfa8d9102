"""Explanations of generated graphs: every operator has one at every stage, and sharing is as resolved."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given, settings
from lowbit import (
    MinMaxObserver,
    X86InductorQuantizer,
    convert_pt2e,
    decisions,
    explain,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
    why_shared,
)
from lowbit.backends.pipelines import PREPARE
from lowbit.errors import NotCalibratedError
from lowbit.ir.sharing import resolve_sharing
from lowbit.passes import PassContext, PassManager
from lowbit.tools.testing import DrawnQuantizer, Program, Subject, build, programs, subjects
from lowbit.tools.testing.programs import example_inputs

QUIET = pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")
PRESET = get_default_x86_inductor_quantization_config(reduce_range=True)
ACTIVATION = attrs.evolve(PRESET.input_activation, observer_or_fake_quant_ctr=MinMaxObserver)
QUICK = attrs.evolve(PRESET, input_activation=ACTIVATION, output_activation=ACTIVATION)


@QUIET
@given(programs())
@settings(max_examples=8)
def test_every_operator_of_every_stage_has_an_explanation(program: Program) -> None:
    prepared = prepare_pt2e(build(program), X86InductorQuantizer().set_global(QUICK))
    stages = [prepared]
    prepared(*example_inputs(program))
    try:
        stages.append(convert_pt2e(prepared))
        stages.append(lower_pt2e(stages[-1], "x86_inductor"))
    except NotCalibratedError:
        pass  # a tensor without elements shows nothing
    for model in stages:
        for decision in decisions(model):
            (found,) = explain(model, decision.node).operators
            assert (found.node, found.status) == (decision.node, decision.status)
            assert (found.pattern or found.reason) == decision.reason
            assert str(found).startswith(f"%{decision.node} (")
            # What a larger pattern lacks is said of operators of smaller ones only.
            assert all(miss.found <= miss.size and miss.detail for miss in found.nearest)
            assert model is not prepared or bool(found.tensors) <= (found.status == "quantized")


@QUIET
@given(subjects(max_steps=4))
@settings(max_examples=20)
def test_points_share_in_the_prepared_model_as_they_were_annotated(subject: Subject) -> None:
    gm, quantizer = build(subject.program), DrawnQuantizer(subject.choices)
    annotated = PassManager(()).run(gm, PREPARE.until("annotate"), PassContext(quantizer=quantizer))
    prepared = prepare_pt2e(gm, quantizer)
    points = [
        (group.index, point if isinstance(point, tuple) else (point,))
        for group in resolve_sharing(annotated.graph).groups
        for point in group.points
    ]
    edges = [(index, f"{p[0].name} -> {p[1].name}") for index, p in points if len(p) == 2]
    for (one, a), (other, b) in itertools.islice(itertools.combinations(edges, 2), 12):
        found = why_shared(prepared, a, b)
        assert found.shares == (one == other)
        assert bool(found.chain) == found.shares
        assert bool(found.why_not) != found.shares
        assert found.group == (one if found.shares else None)
