"""Nodes, specs and annotations in a few words, which never hold an address."""

from __future__ import annotations

import functools
import operator

import pytest
import torch
from lowbit.ir.observers import HistogramObserver, MinMaxObserver
from lowbit.ir.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from lowbit.ir.text import format_annotation, format_arguments, format_spec, format_target, format_value
from torch.fx import Graph

graph = Graph()
X, Y = graph.placeholder("x"), graph.placeholder("y")
Z = graph.create_node("call_function", torch.ops.aten.add.Tensor, (X, Y), name="z")


def derive(observers):
    return observers[0].calculate_qparams()


def make():
    return MinMaxObserver()


class Own(QuantizationSpecBase):
    pass


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (QuantizationSpec(torch.uint8, MinMaxObserver), "u8 MinMaxObserver"),
        (
            QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, torch.per_channel_symmetric, 0),
            "i8 [-127, 127] per_channel_symmetric axis 0 MinMaxObserver",
        ),
        (QuantizationSpec(torch.int8, MinMaxObserver, is_dynamic=True), "i8 dynamic MinMaxObserver"),
        (
            QuantizationSpec(torch.uint8, HistogramObserver.with_args(eps=0.25)),
            "u8 HistogramObserver.with_args(eps=0.25)",
        ),
        (QuantizationSpec(torch.uint8, functools.partial(MinMaxObserver, eps=0.25)), "u8 partial"),
        (QuantizationSpec(torch.uint8, make), "u8 make"),
        (FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 3), "u8 scale 0.00390625 zero_point 3"),
        (SharedQuantizationSpec(X), "as %x"),
        (SharedQuantizationSpec((X, Z)), "as %x→%z"),
        (SharedQuantizationSpec("ab"), "as a str, which is no point"),
        (DerivedQuantizationSpec([(X, Z), Y], derive, torch.int32), "i32 from %x→%z, %y"),
        (Own(), "Own"),
        (torch.int8, "dtype"),
    ],
)
def test_specs_in_a_few_words(spec, text: str) -> None:
    assert format_spec(spec) == text


def test_annotations_show_what_is_quantized() -> None:
    uint8 = QuantizationSpec(torch.uint8, MinMaxObserver)
    assert format_annotation(((X, uint8), (Y, None)), SharedQuantizationSpec(X), False, True) == (
        "{%x: u8 MinMaxObserver; out: as %x; no implicit sharing}"
    )
    assert format_annotation((), None, True, True) == "{annotated}"
    assert format_annotation((), None, True, False) == "{}"


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((X, [Y, None], 1), {}, "%x, [%y, None], 1"),
        ((1, 1.0, True, "a"), {"alpha": X}, "1, 1.0, True, 'a', alpha=%x"),
        ((torch.uint8, torch.float8_e4m3fn), {}, "u8, torch.float8_e4m3fn"),
        (((X, (Y,)),), {"dtype": torch.float32}, "[%x, [%y]], dtype=f32"),
    ],
)
def test_arguments_as_they_would_be_written(args, kwargs, text: str) -> None:
    assert format_arguments(args, kwargs) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.empty(2, 3), "f32[2, 3]"),
        (torch.empty((), dtype=torch.bool), "bool[]"),
        (torch.empty(1, dtype=torch.float8_e4m3fn), "float8_e4m3fn[1]"),
        ((torch.empty(1), 3, [torch.empty(2)]), "(f32[1], ?, (f32[2]))"),
        (3, ""),
        (None, ""),
    ],
)
def test_values_by_dtype_and_shape(value, text: str) -> None:
    assert format_value(value) == text


def test_targets_by_name() -> None:
    assert format_target("call_function", torch.ops.aten.add.Tensor) == "aten.add.Tensor"
    assert format_target("call_function", operator.getitem) == "getitem"
    assert format_target("call_function", torch.ops.higher_order.cond) == "cond"
    assert format_target("call_module", "layer.0") == "self.layer.0"
    assert format_target("call_method", "relu") == "relu"
