"""Properties of a backend as a whole."""

from __future__ import annotations

import copy
import re

import torch

from ...backends.registry import get_backend
from ...ir.annotation import get_annotation
from ...ir.points import annotated_points
from ...ir.snapshot import take_snapshot
from ...ir.stages import Stage
from ...ir.verifiers import verify
from ...passes import Pipeline
from ...quantize_pt2e import lower_pt2e
from .expect import expect, expect_equal
from .flow import Flows
from .zoo import is_read_by_reader

__all__ = ["PROPERTIES"]


def has_a_name_of_its_own(flows: Flows) -> None:
    """The backend is found by its name, which can be part of a composition's."""
    backend = flows.backend
    expect(re.fullmatch("[a-z][a-z0-9_-]*", backend.name) is not None, "the name is not kebab- or snake-case")
    expect(get_backend(backend.name) is backend, "get_backend(name) gives another backend")


def has_patterns_with_names_of_their_own(flows: Flows) -> None:
    """There are patterns, and no name stands for two."""
    names = [each.name for each in (*flows.backend.patterns, *flows.backend.by_hand)]
    expect(bool(names), "the backend has no patterns")
    expect_equal(sorted(names), sorted(set(names)), "names of patterns")


def has_presets_with_names_of_their_own(flows: Flows) -> None:
    """There are presets, no name stands for two, and equal calls make equal configurations."""
    names = [preset.name for preset in flows.backend.presets]
    expect(bool(names), "the backend has no presets")
    expect_equal(sorted(names), sorted(set(names)), "names of presets")
    for preset in flows.backend.presets:
        expect_equal(preset.config(), preset.config(), f"two configurations of {preset.name}")


def prepares_float_models(flows: Flows) -> None:
    """``prepare`` leads from FLOAT to OBSERVED."""
    _leads(flows.backend.prepare, Stage.FLOAT, Stage.OBSERVED)


def converts_observed_models(flows: Flows) -> None:
    """``convert`` leads from OBSERVED to QDQ."""
    _leads(flows.backend.convert, Stage.OBSERVED, Stage.QDQ)


def lowers_or_says_who_does(flows: Flows) -> None:
    """``lower`` leads from QDQ to LOWERED; without it there is a sentence about who lowers."""
    lower = flows.backend.lower
    if lower is None:
        expect(bool(flows.backend.lowered_by), "there is neither a lower pipeline nor lowered_by")
    else:
        _leads(lower, Stage.QDQ, Stage.LOWERED)


def trains_if_it_has_presets_for_it(flows: Flows) -> None:
    """There is a pipeline for training where there is a preset for it, and nowhere else."""
    has_preset = any(preset.config().is_qat for preset in flows.backend.presets)
    expect_equal(flows.backend.prepare_qat is not None, has_preset, "prepare_qat, and a preset with is_qat")
    if flows.backend.prepare_qat is not None:
        _leads(flows.backend.prepare_qat, Stage.FLOAT, Stage.OBSERVED)


def writes_its_pipelines_as_text(flows: Flows) -> None:
    """The text of each pipeline reads back as the pipeline."""
    backend = flows.backend
    for pipeline in (backend.prepare, backend.convert, backend.lower, backend.prepare_qat):
        if pipeline is not None:
            expect_equal(Pipeline.parse(str(pipeline)), pipeline, "a pipeline read back")


def makes_its_own_quantizer(flows: Flows) -> None:
    """``quantizer()`` makes a new one each time, which names the backend and is configured."""
    first, second = flows.backend.quantizer(), flows.backend.quantizer()
    expect(first is not second, "two calls make one quantizer")
    expect_equal(getattr(first, "backend_name", None), flows.backend.name, "backend_name of the quantizer")


def has_a_cell_for_each_pattern_and_preset(flows: Flows) -> None:
    """The table has each pattern, and what is annotated by hand, under each preset, once."""
    found = [(cell.pattern, cell.preset) for cell in flows.backend.capabilities()]
    names = [each.name for each in (*flows.backend.patterns, *flows.backend.by_hand)]
    wanted = [(name, preset.name) for name in names for preset in flows.backend.presets]
    expect_equal(sorted(found), sorted(wanted), "cells")


def has_a_pattern_for_each_preset(flows: Flows) -> None:
    """No preset is without a pattern that it quantizes."""
    for preset in flows.backend.presets:
        cells = [cell for (_, name), cell in flows.cells.items() if name == preset.name]
        expect(any(cell.supported for cell in cells), f"no pattern is quantized under {preset.name}")


def describes_the_same_everywhere(flows: Flows) -> None:
    """The quantizer tells what the backend does."""
    told = getattr(flows.backend.quantizer(), "quantization_capabilities", None)
    expect(told is not None, "the quantizer has no quantization_capabilities()")
    if told is not None:
        expect_equal(told(), flows.backend.capabilities(), "the quantizer's table")


def annotates_nothing_but_patterns(flows: Flows) -> None:
    """Every annotation belongs to the operators of a branch, or to a reader."""
    own = {branch.path for branch in flows.zoo.branches}
    for run in flows.runs:
        strays = [
            node.name
            for path, annotations in run.annotations.items()
            for node, _ in annotations
            if path not in own and not is_read_by_reader(node)
        ]
        expect_equal(strays, [], f"annotated under {run.preset.name} outside of any pattern")


def annotates_alike_every_time(flows: Flows) -> None:
    """Two runs annotate the same points with the same specs."""
    config = flows.backend.presets[0].config()
    first, second = (flows.annotate(flows.quantizer(config)) for _ in range(2))
    expect_equal(_points(first[0]), _points(second[0]), "annotations, made twice")
    expect_equal(first[1], second[1], "decisions, made twice")


def annotates_nothing_without_configuration(flows: Flows) -> None:
    """``set_global(None)`` leaves everything float, and says so."""
    annotated, decisions = flows.annotate(flows.quantizer(None))
    expect_equal(len(annotated_points(annotated.graph)), 0, "annotated points without configuration")
    expect_equal(
        [d.node for d in decisions if d.status == "quantized"], [], "quantized without configuration"
    )
    expect(all(d.reason for d in decisions), "something is left float without a reason")


def leaves_float64_alone(flows: Flows) -> None:
    """In a model of float64 nothing is quantized, and every operator has a reason."""
    exported: torch.fx.GraphModule | None = None
    for preset in flows.backend.presets:
        config = preset.config()
        if config.is_qat:
            continue
        exported = exported or flows.zoo.export(torch.float64)
        annotated, decisions = flows.annotate(flows.quantizer(config), exported)
        own = [node for node in annotated.graph.nodes if get_annotation(node) and not is_read_by_reader(node)]
        expect_equal([node.name for node in own], [], f"annotated in float64 under {preset.name}")
        expect_equal([d.node for d in decisions if not d.reason], [], "left float without a reason")


def changes_nothing_it_is_handed(flows: Flows) -> None:
    """The exported model is what it was, whatever was made of it."""
    before = take_snapshot(flows.exported).digest
    expect(bool(flows.runs), "the backend has no presets")
    expect_equal(take_snapshot(flows.exported).digest, before, "the exported model, before and after")


def gives_copies_that_compute_alike(flows: Flows) -> None:
    """A copy of a converted model gives what the model gives."""
    run = flows.runs[0]
    with torch.no_grad():
        copied = copy.deepcopy(run.converted)(*flows.zoo.inputs)
    for ours, theirs in zip(run.converted_results, copied, strict=True):
        equal = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        expect(equal, "a copy of the converted model computes something else")


def lowers_alike_every_time(flows: Flows) -> None:
    """Two lowered models of one converted model have the same graph."""
    run = flows.runs[0]
    if run.lowered is not None:
        again = lower_pt2e(run.converted, flows.backend, pack_weights=flows.backend.is_available())
        expect_equal(str(again.graph), str(run.lowered.graph), "lowered twice")


def writes_its_table_as_text(flows: Flows) -> None:
    """The table as text has a line for each pattern and each ``by_hand``, and the same at every call."""
    text = str(flows.backend.capabilities())
    expect_equal(str(flows.backend.capabilities()), text, "the table, written twice")
    lines = [line.split()[1] for line in text.splitlines()[1:]]
    names = [each.name for each in (*flows.backend.patterns, *flows.backend.by_hand)]
    expect_equal(lines, names, "lines of the table")


def keeps_the_rules_of_stages(flows: Flows) -> None:
    """Converted and lowered graphs pass the verifiers."""
    for run in flows.runs:
        verify(run.converted, Stage.QDQ)
        if run.lowered is not None:
            verify(run.lowered, Stage.LOWERED)


PROPERTIES = (
    has_a_name_of_its_own,
    has_patterns_with_names_of_their_own,
    has_presets_with_names_of_their_own,
    prepares_float_models,
    converts_observed_models,
    lowers_or_says_who_does,
    trains_if_it_has_presets_for_it,
    writes_its_pipelines_as_text,
    makes_its_own_quantizer,
    has_a_cell_for_each_pattern_and_preset,
    has_a_pattern_for_each_preset,
    describes_the_same_everywhere,
    changes_nothing_it_is_handed,
    annotates_nothing_but_patterns,
    annotates_alike_every_time,
    annotates_nothing_without_configuration,
    leaves_float64_alone,
    keeps_the_rules_of_stages,
    gives_copies_that_compute_alike,
    lowers_alike_every_time,
    writes_its_table_as_text,
)


def _leads(pipeline: Pipeline, first: Stage, last: Stage) -> None:
    passes = tuple(pipeline)
    expect(bool(passes), "a pipeline has no passes")
    expect(
        first in passes[0].requires, f"a pipeline starts with {passes[0].name}, which is not for {first.name}"
    )
    ends = [p.ensures for p in passes if p.ensures is not None]
    expect_equal(ends[-1:], [last], "the stage that a pipeline leaves")


def _points(annotated: torch.fx.GraphModule) -> str:
    return str(annotated_points(annotated.graph))
