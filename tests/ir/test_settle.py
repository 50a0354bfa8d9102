"""The law of the ledger: after annotate, and to the end, each float operator has exactly one decision."""

from __future__ import annotations

import functools
from collections.abc import Callable

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    MinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    X86InductorQuantizer,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends import get_backend
from lowbit.backends.base import Backend
from lowbit.errors import NotCalibratedError, NothingQuantizedWarning
from lowbit.tools.models import digits_densenet, digits_mobilenet_v3, digits_resnet, lstm_tagger
from lowbit.tools.testing import DrawnQuantizer, Program, build, programs, subjects
from lowbit.tools.testing.programs import example_inputs
from torch import nn
from torch.fx import GraphModule

BACKENDS = ("x86_inductor", "arm_inductor", "xpu_inductor", "xnnpack", "embedding")
QUIET = pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")

Undecided = Callable[[GraphModule], list[str]]


@functools.cache
def quantizer_of(backend: Backend, *, is_qat: bool = False) -> Quantizer:
    """A quantizer whose ranges are quick to find, and have kernels on every CPU."""
    if backend.name != "x86_inductor":
        presets = {preset.name: preset for preset in backend.presets}
        return backend.quantizer() if not is_qat else _set(backend, presets["static-qat"].config())
    preset = get_default_x86_inductor_quantization_config(reduce_range=True, is_qat=is_qat)
    if is_qat:
        return X86InductorQuantizer().set_global(preset)
    activation = attrs.evolve(preset.input_activation, observer_or_fake_quant_ctr=MinMaxObserver)
    quick = attrs.evolve(preset, input_activation=activation, output_activation=activation)
    return X86InductorQuantizer().set_global(quick)


def _set(backend: Backend, config) -> Quantizer:
    return backend.quantizer().set_global(config)  # pyright: ignore[reportAttributeAccessIssue]


def go(program: Program, backend: Backend, undecided: Undecided) -> None:
    """Take the graph of ``program`` as far as the backend does, asking ``undecided`` on the way."""
    prepare = prepare_qat_pt2e if program.is_training else prepare_pt2e
    prepared = prepare(build(program), quantizer_of(backend, is_qat=program.is_training))
    assert undecided(prepared) == []
    prepared(*example_inputs(program))
    try:
        converted = convert_pt2e(prepared)
    except NotCalibratedError:
        return  # a tensor without elements shows nothing
    assert undecided(converted) == []
    assert undecided(convert_pt2e(prepared, use_reference_representation=True)) == []
    if backend.lower is not None and backend.device in {None, "cpu"}:
        lowered = lower_pt2e(converted, backend, pack_weights=False)
        assert undecided(lowered) == []
        assert {d.node for d in decisions(lowered)} == {d.node for d in decisions(prepared)}


@QUIET
@given(programs(), st.sampled_from(BACKENDS))
@settings(max_examples=50)
def test_of_generated_graphs(undecided: Undecided, program: Program, name: str) -> None:
    go(program, get_backend(name), undecided)


@QUIET
@given(programs(is_training=True), st.sampled_from(["x86_inductor", "xnnpack"]))
@settings(max_examples=40)
def test_in_training(undecided: Undecided, program: Program, name: str) -> None:
    go(program, get_backend(name), undecided)


@QUIET
@given(subjects())
@settings(max_examples=40)
def test_of_a_quantizer_that_writes_nothing_down(undecided: Undecided, subject) -> None:
    # Without the anchors, which may be illegal.
    quantizer = DrawnQuantizer([attrs.evolve(choices, anchor=0) for choices in subject.choices])
    prepared = prepare_pt2e(build(subject.program), quantizer)
    assert undecided(prepared) == []
    assert {d.reason for d in decisions(prepared) if d.status == "quantized"} <= {"annotated"}


MODELS = {
    "resnet": lambda: (digits_resnet(), torch.randn(2, 1, 8, 8)),
    "densenet": lambda: (digits_densenet(), torch.randn(2, 1, 8, 8)),
    "mobilenet": lambda: (digits_mobilenet_v3(), torch.randn(2, 1, 8, 8)),
    "lstm": lambda: (lstm_tagger(), torch.randint(10_000, (2, 8))),
}


@functools.cache
def exported(name: str) -> GraphModule:
    model, x = MODELS[name]()
    return torch.export.export(model.eval(), (x,)).module()


@QUIET
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_models(undecided: Undecided, model: str, backend: str) -> None:
    prepared = prepare_pt2e(exported(model), quantizer_of(get_backend(backend)))
    assert undecided(prepared) == []
    order = {node.name: i for i, node in enumerate(prepared.graph.nodes)}
    positions = [order[decision.node] for decision in decisions(prepared)]
    assert positions == sorted(positions)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        y = torch.cond(x.sum() > 0, lambda x: self.linear(x) + 1, lambda x: x.sin(), (x,))
        return self.linear(y)


def test_bodies_are_decided_about_too(undecided: Undecided) -> None:
    model = torch.export.export(Branches().eval(), (torch.ones(2, 4),)).module()
    prepared = prepare_pt2e(model, quantizer_of(get_backend("x86_inductor")))
    assert undecided(prepared) == []
    inside = [d for d in decisions(prepared) if "." in d.node]
    assert [(d.node.split(".")[0], d.target, d.status) for d in inside] == [
        ("true_graph_0", "aten.linear.default", "quantized"),
        ("true_graph_0", "aten.add.Tensor", "float"),
        ("false_graph_0", "aten.sin.default", "float"),
    ]


class Silent(Quantizer):
    """Quantizes what tanh reads, and writes nothing down."""

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.find_nodes(op="call_function", target=torch.ops.aten.tanh.default):
            spec = QuantizationSpec(torch.uint8, MinMaxObserver)
            node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[0]: spec})
        return model


class Net(nn.Module):
    def forward(self, x):
        return torch.softmax(torch.tanh(x), -1)


def reasons(quantizer: Quantizer) -> dict[str, str]:
    model = torch.export.export(Net(), (torch.ones(2, 4),)).module()
    return {d.node: f"{d.status}: {d.reason}" for d in decisions(prepare_pt2e(model, quantizer))}


def test_a_quantizer_need_not_write_to_the_ledger() -> None:
    assert reasons(Silent()) == {"tanh": "quantized: annotated", "softmax": "float: not-annotated"}


def test_an_annotation_counts_more_than_a_no_before_it() -> None:
    composed = ComposableQuantizer([quantizer_of(get_backend("xnnpack")), Silent()])
    assert reasons(composed) == {"tanh": "quantized: annotated", "softmax": "float: no-pattern"}


def test_of_two_quantizers_the_one_with_more_to_say_says_it() -> None:
    model = torch.export.export(nn.Sigmoid(), (torch.ones(2, 4),)).module()
    quantizer = ComposableQuantizer([EmbeddingQuantizer(), X86InductorQuantizer()])
    with pytest.warns(NothingQuantizedWarning):
        (decision,) = decisions(prepare_pt2e(model, quantizer))
    assert decision.reason == "pointwise"
