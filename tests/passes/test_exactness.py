"""Conversion changes no number: the Q/DQ graph computes exactly what the prepared one means.

The oracle walks over the prepared graph and puts torch's own fake quantization where an observer is called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import Quantizer, convert_pt2e, prepare_pt2e
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.observers import (
    MinMaxObserver,
)
from lowbit.ir.specs import (
    PER_CHANNEL_QSCHEMES,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from lowbit.ir.verifiers import is_observer
from lowbit.tools.testing import per_channel_specs, per_tensor_specs
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten


class FakeQuantized(Interpreter):
    """Runs a prepared graph, and quantizes and dequantizes where an observer stands."""

    def __init__(self, prepared: GraphModule) -> None:
        super().__init__(prepared)
        # The search for a histogram's range takes a while.
        self.qparams = {
            name: module.calculate_qparams()
            for name, module in prepared.named_modules()
            if is_observer(module)
        }

    def call_module(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        observer = self.fetch_attr(target)
        if not is_observer(observer):
            return super().call_module(target, args, kwargs)
        (x,) = args
        scale, zero_point = self.qparams[target]
        bounds = observer.quant_min, observer.quant_max
        if observer.qscheme in PER_CHANNEL_QSCHEMES:
            return torch.fake_quantize_per_channel_affine(x, scale, zero_point, observer.ch_axis, *bounds)
        return torch.fake_quantize_per_tensor_affine(x, scale.item(), zero_point.item(), *bounds)


class Annotator(Quantizer):
    def __init__(self, annotate_node: Callable[[Node], None]) -> None:
        self.annotate_node = annotate_node

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function":
                self.annotate_node(node)
        return model


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3, bias=False)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, groups=2)

    def forward(self, x):
        y = self.first(x).relu()
        return torch.cat([self.second(y) + y, y], 1).mean((2, 3))


class Elementwise(nn.Module):
    def forward(self, x):
        y = x.sigmoid() * x
        return (x + x).tanh() - torch.clamp(y, min=x)


MODELS = {
    Linears: (4, 5),
    Convolutions: (2, 3, 5, 5),
    Elementwise: (3, 4),
}


@functools.cache
def exported(model: type[nn.Module]) -> GraphModule:
    torch.manual_seed(0)
    return torch.export.export(model().eval(), (torch.ones(MODELS[model]),)).module()


def annotation(draw: Callable[[st.SearchStrategy], Any], node: Node) -> QuantizationAnnotation:
    """Any annotation of one operator: each tensor float, with a spec of its own, or that of the first."""
    inputs: dict[Node, QuantizationSpecBase | None] = {}
    for source in node.all_input_nodes:
        value = source.meta["val"]
        kinds = [st.none(), per_tensor_specs()]
        if value.dim() >= 2:
            kinds.append(per_channel_specs())
        if inputs and next(iter(inputs.values())) is not None and source.op != "get_attr":
            first = next(iter(inputs))
            if first.meta["val"].shape == value.shape:
                kinds.append(st.just(SharedQuantizationSpec((first, node))))
        inputs[source] = draw(st.one_of(kinds))
    return QuantizationAnnotation(
        inputs, draw(st.one_of(st.none(), per_tensor_specs())), allow_implicit_sharing=draw(st.booleans())
    )


def data(shape: tuple[int, ...], seed: int, exact: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if exact:  # quarters: products and sums of a few are exact, and many lie half-way between two integers
        return torch.randint(-16, 17, shape, generator=generator) / 4
    return torch.randn(shape, generator=generator) * 3


@pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")
@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=40)
@given(draw=st.data(), seed=st.integers(0, 2**16), exact=st.booleans())
def test_the_converted_model_computes_what_the_prepared_one_means(
    model: type[nn.Module], draw: st.DataObject, seed: int, exact: bool
) -> None:
    gm, shape = exported(model), MODELS[model]
    prepared = prepare_pt2e(gm, Annotator(lambda node: set_annotation(node, annotation(draw.draw, node))))
    calibration = [data(shape, seed + i, exact) for i in range(2)]
    for x in calibration:
        prepared(x)
    # Without weights there is nothing to fold.
    folds = (True, False) if gm.graph.find_nodes(op="get_attr") else (True,)
    converted = [convert_pt2e(prepared, fold_quantize=fold) for fold in folds]
    meant = FakeQuantized(prepared)
    # The last one saturates.
    for x in (*calibration, 2 * calibration[0]):
        expected = meant.run(x)
        for gm in converted:
            found = gm(x)
            assert found.dtype is expected.dtype
            assert torch.equal(found, expected)


def test_the_oracle_sees_a_difference() -> None:
    """What makes the test above worth something: a step off in one scale is found."""

    def annotate_node(node: Node) -> None:
        if node.target is aten.linear.default:
            spec = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
            set_annotation(node, QuantizationAnnotation({node.args[0]: spec}))

    prepared = prepare_pt2e(exported(Linears), Annotator(annotate_node))
    x = data((4, 5), 0, exact=False)
    prepared(x)
    converted = convert_pt2e(prepared)
    expected = FakeQuantized(prepared).run(x)
    assert torch.equal(converted(x), expected)
    assert not torch.equal(prepared(x), expected)
    for node in converted.graph.nodes:
        if "quantize_per_tensor" in str(node.target):
            node.args = (node.args[0], node.args[1] * 1.01, *node.args[2:])
    converted.recompile()
    assert not torch.equal(converted(x), expected)
