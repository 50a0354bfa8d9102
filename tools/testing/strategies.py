"""Hypothesis strategies: programs, shapes, annotations, specs, pipelines, near-misses of a pattern."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch.fx import GraphModule, Node

from ...backends.pipelines import CONVERT, PREPARE
from ...errors import PipelineError
from ...ir.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from ...ir.specs import QuantizationSpec
from ...matchers.capture import capture
from ...passes import Pipeline
from .generate import SHAPES
from .illegal import FAULTS, IllegalQuantizer
from .operators import OPERATORS
from .programs import Program, Step, build
from .quantizing import ACTIVATIONS, WEIGHTS, Choices, DrawnQuantizer
from .subjects import Subject

__all__ = [
    "Dynamic",
    "NearMiss",
    "choices",
    "dynamic_modules",
    "illegal_quantizers",
    "near_misses",
    "per_channel_specs",
    "per_tensor_specs",
    "pipelines",
    "programs",
    "quantizers",
    "shapes",
    "steps",
    "subjects",
]


def steps() -> st.SearchStrategy[Step]:
    """One step. The numbers are as many in every step, so that shrinking one leaves the others alone."""
    small = st.integers(0, 7)
    return st.builds(Step, st.sampled_from(list(OPERATORS)), small, small, st.integers(0, 41))


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of tensors, some of them without elements or without dimensions."""
    return st.sampled_from(list(SHAPES))


def programs(max_steps: int = 6, *, is_training: bool = False) -> st.SearchStrategy[Program]:
    """Programs of up to ``max_steps`` operators."""
    return st.builds(
        Program,
        shapes(),
        st.lists(steps(), max_size=max_steps).map(tuple),
        st.integers(0, 2),
        st.integers(0, 99),
        st.just(is_training),
    )


def choices() -> st.SearchStrategy[Choices]:
    """The annotation of one operator."""
    return st.builds(
        Choices,
        st.integers(0, len(ACTIVATIONS) - 1),
        st.integers(0, len(WEIGHTS) - 1),
        st.integers(-1, len(ACTIVATIONS) - 1),
        st.booleans(),
        st.sampled_from((0, 0, 0, 0, 0, 0, 0, 1, 2, 3)),
        st.booleans(),
    )


def subjects(max_steps: int = 6, *, is_training: bool = False) -> st.SearchStrategy[Subject]:
    """Programs and how they are annotated."""
    annotations = st.lists(choices(), max_size=4).map(tuple)
    return st.builds(Subject, programs(max_steps, is_training=is_training), annotations)


def quantizers(*, is_qat: bool = False) -> st.SearchStrategy[DrawnQuantizer]:
    """Quantizers that annotate any operator of any graph in one way or another, with few exceptions legally.

    The exceptions: points that share in a circle, or with one that is not annotated.
    """
    annotations = st.lists(choices(), min_size=1, max_size=4).map(tuple)
    return st.builds(DrawnQuantizer, annotations, st.just(is_qat))


def illegal_quantizers() -> st.SearchStrategy[IllegalQuantizer]:
    """Quantizers that annotate one operator of every graph that has one in a way that is to be refused."""
    return st.builds(IllegalQuantizer, quantizers(), st.sampled_from(list(FAULTS)), st.integers(0, 7))


@attrs.frozen(eq=False)
class Dynamic:
    """An exported model whose inputs have a dynamic first dimension, where its operators allow that.

    Args:
        program: what was exported.
        gm: the export.
        inputs: that it was exported with.
        others: inputs with another first dimension; the same one where the model fixes it.
    """

    program: Program
    gm: GraphModule
    inputs: tuple[torch.Tensor, ...]
    others: tuple[torch.Tensor, ...]


@st.composite
def dynamic_modules(draw: st.DrawFn, max_steps: int = 3) -> Dynamic:
    """Models of up to ``max_steps`` operators, exported with a dynamic first dimension."""
    shape = draw(st.sampled_from([(4, 3), (4, 2, 4, 4), (4, 3, 5)]))
    program = attrs.evolve(draw(programs(max_steps)), shape=shape)
    gm = build(program)
    sizes = (shape, (draw(st.integers(2, 6)), *shape[1:]))
    generator = torch.Generator().manual_seed(program.seed)
    inputs, others = (tuple(torch.randn(s, generator=generator) for _ in range(2)) for s in sizes)
    batch = {0: torch.export.Dim.AUTO}
    exported = torch.export.export(gm, inputs, dynamic_shapes=(batch, batch)).module()
    assert isinstance(exported, GraphModule)
    try:
        exported(*others)
    except AssertionError:  # of a guard: its operators fix the dimension
        others = inputs
    return Dynamic(program, exported, inputs, others)


_RANGES = {
    torch.uint8: [(0, 255), (0, 127), (0, 15)],
    torch.int8: [(-128, 127), (-127, 127), (-8, 7)],
    torch.int16: [(-(2**15), 2**15 - 1)],
}


@st.composite
def per_tensor_specs(draw: st.DrawFn) -> QuantizationSpec:
    """Specs with one scale a tensor."""
    dtype = draw(st.sampled_from(list(_RANGES)))
    low, high = draw(st.sampled_from(_RANGES[dtype]))
    qscheme = draw(st.sampled_from([torch.per_tensor_affine, torch.per_tensor_symmetric]))
    observer = draw(st.sampled_from([MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver]))
    return QuantizationSpec(dtype, observer, low, high, qscheme)


@st.composite
def per_channel_specs(draw: st.DrawFn, axes: int = 2) -> QuantizationSpec:
    """Specs with one scale a channel, along one of the first ``axes`` dimensions."""
    low, high = draw(st.sampled_from(_RANGES[torch.int8]))
    qscheme = draw(st.sampled_from([torch.per_channel_affine, torch.per_channel_symmetric]))
    observer = draw(st.sampled_from([PerChannelMinMaxObserver, MovingAveragePerChannelMinMaxObserver]))
    return QuantizationSpec(torch.int8, observer, low, high, qscheme, draw(st.integers(0, axes - 1)))


@st.composite
def pipelines(draw: st.DrawFn, whole: Pipeline | None = None) -> Pipeline:
    """``whole`` (prepare and convert, if not given) with passes left out or run twice, where that fits."""
    result = Pipeline((*PREPARE, *CONVERT)) if whole is None else whole
    for pass_ in result:
        edit = draw(st.sampled_from(["keep", "leave out", "twice"]))
        try:
            if edit == "leave out":
                result = result.without(pass_.name)
            elif edit == "twice":
                result = result.after(pass_.name, pass_)
        except PipelineError:
            continue
    return result


@attrs.frozen
class NearMiss:
    """A graph that is almost an occurrence of a pattern.

    Args:
        kind: what is wrong with it; ``"match"`` where nothing is.
        gm: the graph.
    """

    kind: str
    gm: GraphModule = attrs.field(eq=False)


@st.composite
def near_misses(draw: st.DrawFn, function: Callable[..., Any], example_inputs: tuple[Any, ...]) -> NearMiss:
    """The graph of ``function``, or one with a value read by someone else, or an operator in between."""
    gm = capture(function, example_inputs)
    copy = GraphModule(gm, torch.fx.Graph())
    copy.graph = torch.fx.Graph()
    results = copy.graph.graph_copy(gm.graph, {})
    copy.graph.output(results)
    inner = [n for n in copy.graph.nodes if n.op == "call_function" and _is_read_once_inside(n)]
    kinds = ["match", "read twice", "operator between"] if inner else ["match"]
    kind = draw(st.sampled_from(kinds))
    if kind != "match":
        node = draw(st.sampled_from(inner))
        with copy.graph.inserting_after(node):
            other = copy.graph.call_function(torch.ops.aten.neg.default, (node,))
        if kind == "read twice":
            output = copy.graph.output_node()
            output.args = ((*output.all_input_nodes, other),)
        else:
            node.replace_all_uses_with(other, delete_user_cb=lambda user: user is not other)
    copy.recompile()
    return NearMiss(kind, copy)


def _is_read_once_inside(node: Node) -> bool:
    return len(node.users) == 1 and next(iter(node.users)).op == "call_function"
