"""Properties of a backend as a whole."""

from __future__ import annotations

import re

import torch

from ...backends.registry import get_backend
from ...ir.annotation import get_annotation
from ...ir.points import annotated_points
from ...ir.snapshot import take_snapshot
from ...ir.stages import Stage
from ...ir.verifiers import verify
from ...passes import Pipeline
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
    names = [pattern.name for pattern in flows.backend.patterns]
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
    """The table has each pattern under each preset, once."""
    found = [(cell.pattern, cell.preset) for cell in flows.backend.capabilities()]
    wanted = [(p.name, preset.name) for p in flows.backend.patterns for preset in flows.backend.presets]
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
    for run in flows.runs:
        own = {node for branch in flows.zoo.branches for node in run.nodes(branch, "annotated")}
        strays = [
            node.name
            for node in run.annotated.graph.nodes
            if get_annotation(node) is not None and node not in own and not is_read_by_reader(node)
        ]
        expect_equal(strays, [], f"annotated under {run.preset.name} outside of any pattern")


def annotates_alike_every_time(flows: Flows) -> None:
    """Two runs annotate the same points with the same specs."""
    for run in flows.runs:
        again = flows.annotate(run.config)
        expect_equal(_points(again), _points(run.annotated), f"annotations under {run.preset.name}, twice")


def annotates_nothing_without_configuration(flows: Flows) -> None:
    """``set_global(None)`` leaves everything float, and says so."""
    annotated, ledger = flows.annotate_noting(None)
    expect_equal(len(annotated_points(annotated.graph)), 0, "annotated points without configuration")
    quantized = [d.node for d in ledger.decisions if d.status == "quantized"]
    expect_equal(quantized, [], "quantized without configuration")


def leaves_float64_alone(flows: Flows) -> None:
    """In a model of float64 nothing is quantized, and every operator has a reason."""
    exported = flows.zoo.export(torch.float64)
    for preset in flows.backend.presets:
        config = preset.config()
        if config.input_activation is None:
            continue
        annotated, ledger = flows.annotate_noting(config, exported)
        own = [node for node in annotated.graph.nodes if get_annotation(node) and not is_read_by_reader(node)]
        expect_equal([node.name for node in own], [], f"annotated in float64 under {preset.name}")
        silent = [d.node for d in ledger.decisions if not d.reason]
        expect_equal(silent, [], "left float without a reason")


def changes_nothing_it_is_handed(flows: Flows) -> None:
    """The exported model is what it was, whatever was made of it."""
    before = take_snapshot(flows.exported).digest
    expect(bool(flows.runs), "the backend has no presets")
    expect_equal(take_snapshot(flows.exported).digest, before, "the exported model, before and after")


def keeps_the_rules_of_stages(flows: Flows) -> None:
    """Annotated, converted and lowered graphs pass the verifiers."""
    for run in flows.runs:
        verify(run.annotated, Stage.ANNOTATED)
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
)


def _leads(pipeline: Pipeline, first: Stage, last: Stage) -> None:
    passes = tuple(pipeline)
    expect(bool(passes), "a pipeline has no passes")
    expect(first in passes[0].requires, f"a pipeline starts with {passes[0].name}, which is not for {first.name}")
    ends = [p.ensures for p in passes if p.ensures is not None]
    expect_equal(ends[-1:], [last], "the stage that a pipeline leaves")


def _points(annotated: torch.fx.GraphModule) -> str:
    return str(annotated_points(annotated.graph))
