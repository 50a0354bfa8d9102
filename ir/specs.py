"""Quantization specs: how one tensor is to be quantized.

The five spec classes carry the names, fields and defaults of PyTorch's PT2 Export quantization tutorials, so
that a quantizer written for them works unchanged. Beyond that they are checked when they are made: a range
that its dtype cannot hold is an error here, not a wrong number later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from torch.fx import Node

from ..errors import SpecError

__all__ = [
    "CAST_DTYPES",
    "PER_CHANNEL_QSCHEMES",
    "SYMMETRIC_QSCHEMES",
    "ConcreteSpec",
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "FixedQParamsQuantizationSpec",
    "ObserverOrFakeQuantizeConstructor",
    "QuantizationConfig",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "SharedQuantizationSpec",
    "dtype_range",
    "spec_key",
    "storage_dtype",
]

EdgeOrNode: TypeAlias = "tuple[Node, Node] | Node"
"""A point: an input edge ``(producer, consumer)`` or a node's output."""

ObserverOrFakeQuantizeConstructor: TypeAlias = Callable[..., torch.nn.Module]

SYMMETRIC_QSCHEMES = frozenset({torch.per_tensor_symmetric, torch.per_channel_symmetric})
PER_CHANNEL_QSCHEMES = frozenset(
    {torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams}
)

CAST_DTYPES = frozenset({torch.float16, torch.bfloat16})
"""Dtypes that a spec means as a cast rather than as a quantization."""

_LEGACY_DTYPES = {torch.quint8: torch.uint8, torch.qint8: torch.int8, torch.qint32: torch.int32}


def storage_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or the plain integer dtype that a legacy quantized ``dtype`` is stored in."""
    return _LEGACY_DTYPES.get(dtype, dtype)


def dtype_range(dtype: torch.dtype) -> tuple[int, int] | None:
    """The closed range of values an integer ``dtype`` holds; None for floating-point dtypes."""
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        return None
    info = torch.iinfo(storage_dtype(dtype))
    return int(info.min), int(info.max)


def _check_range(dtype: torch.dtype, quant_min: int | None, quant_max: int | None, kind: str) -> None:
    if (quant_min is None) != (quant_max is None):
        raise SpecError(
            f"{kind} has quant_min={quant_min} and quant_max={quant_max}: one bound without the other",
            hint="give both bounds, or neither to use the whole range of the dtype",
        )
    if quant_min is None or quant_max is None:
        return
    if quant_min > quant_max:
        raise SpecError(
            f"{kind} has quant_min={quant_min} above quant_max={quant_max}",
            hint="swap the two bounds",
        )
    held = dtype_range(dtype)
    if held is not None and (quant_min < held[0] or quant_max > held[1]):
        raise SpecError(
            f"{kind} has the range [{quant_min}, {quant_max}], which {dtype} (range [{held[0]}, {held[1]}]) "
            "cannot hold",
            hint="narrow quant_min/quant_max or choose a wider dtype",
        )


def _check_channels(qscheme: torch.qscheme | None, ch_axis: int | None, is_dynamic: bool, kind: str) -> None:
    if ch_axis is not None and ch_axis < 0:
        raise SpecError(
            f"{kind} has ch_axis={ch_axis}",
            hint="count the axis from the front; weights of conv and linear have channels on axis 0",
        )
    if is_dynamic and qscheme in PER_CHANNEL_QSCHEMES:
        raise SpecError(
            f"{kind} is per-channel and dynamic",
            hint="dynamic quantization has one scale a tensor: use a per-tensor qscheme",
        )


class QuantizationSpecBase:
    """Base of every spec, for ``isinstance`` checks; it has no fields and no behaviour."""

    __slots__ = ()


@attrs.frozen(slots=True)
class QuantizationSpec(QuantizationSpecBase):
    """Quantize a tensor with parameters that an observer finds.

    Args:
        dtype: the dtype quantized values are stored in (``torch.int8``, ``torch.uint8``, …), or
            ``torch.float16`` for a cast instead of a quantization.
        observer_or_fake_quant_ctr: makes the observer (or fake quantizer); called with the other fields of
            the spec as keyword arguments.
        quant_min: smallest quantized value; None means the smallest of ``dtype``.
        quant_max: largest quantized value; None means the largest of ``dtype``.
        qscheme: ``torch.per_tensor_affine`` and the like; None leaves the observer's own default.
        ch_axis: the channel axis of a per-channel ``qscheme``.
        is_dynamic: find the parameters at run time, from each tensor itself.

    Raises:
        SpecError: bounds that contradict each other or the dtype, a negative ``ch_axis``, a per-channel
            dynamic spec.
    """

    dtype: torch.dtype
    observer_or_fake_quant_ctr: ObserverOrFakeQuantizeConstructor
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __attrs_post_init__(self) -> None:
        _check_range(self.dtype, self.quant_min, self.quant_max, "QuantizationSpec")
        constructor: object = self.observer_or_fake_quant_ctr
        # A module is callable too, but calling an observer observes.
        if not callable(constructor) or isinstance(constructor, torch.nn.Module):
            raise SpecError(
                f"QuantizationSpec has {constructor!r} as observer constructor",
                hint="pass an observer class or its .with_args(...), not an observer or None",
            )
        _check_channels(self.qscheme, self.ch_axis, self.is_dynamic, "QuantizationSpec")


@attrs.frozen(slots=True)
class FixedQParamsQuantizationSpec(QuantizationSpecBase):
    """Quantize a tensor with a scale and zero point known beforehand (a sigmoid's output, say).

    ``quant_min`` and ``quant_max`` default to the whole range of ``dtype``.

    Raises:
        SpecError: bounds that contradict each other or the dtype, a scale that is not positive and finite, a
            zero point outside the range, a per-channel ``qscheme``.
    """

    dtype: torch.dtype
    scale: float
    zero_point: int
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    is_dynamic: bool = False

    def __attrs_post_init__(self) -> None:
        _check_range(self.dtype, self.quant_min, self.quant_max, "FixedQParamsQuantizationSpec")
        if not 0.0 < self.scale < float("inf"):
            raise SpecError(
                f"FixedQParamsQuantizationSpec has scale={self.scale}",
                hint="a scale is a positive, finite number",
            )
        if self.qscheme in PER_CHANNEL_QSCHEMES:
            raise SpecError(
                f"FixedQParamsQuantizationSpec has one scale and the qscheme {self.qscheme}",
                hint="use a per-tensor qscheme, or a DerivedQuantizationSpec that returns a scale a channel",
            )
        held = dtype_range(self.dtype)
        low = self.quant_min if self.quant_min is not None else held[0] if held else None
        high = self.quant_max if self.quant_max is not None else held[1] if held else None
        if low is not None and high is not None and not low <= self.zero_point <= high:
            raise SpecError(
                f"FixedQParamsQuantizationSpec has zero_point={self.zero_point} outside [{low}, {high}]",
                hint="the real value 0 must be exactly representable",
            )


@attrs.frozen(slots=True)
class SharedQuantizationSpec(QuantizationSpecBase):
    """Quantize a tensor with the parameters of another point, its anchor.

    Sharing is transitive, and the anchor may come earlier or later in the graph.
    """

    edge_or_node: EdgeOrNode


def _as_points(points: Sequence[EdgeOrNode]) -> tuple[EdgeOrNode, ...]:
    return tuple(points)


@attrs.frozen(slots=True)
class DerivedQuantizationSpec(QuantizationSpecBase):
    """Quantize a tensor with parameters computed from those of other points (a bias, say).

    Args:
        derived_from: the points whose observers are handed to ``derive_qparams_fn``, in this order.
        derive_qparams_fn: takes the list of observers, returns ``(scale, zero_point)`` tensors.
        dtype: the dtype quantized values are stored in.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        qscheme: per-tensor or per-channel.
        ch_axis: the channel axis of a per-channel ``qscheme``.
        is_dynamic: find the parameters at run time.

    Raises:
        SpecError: as for :class:`QuantizationSpec`, and when it is derived from nothing.
    """

    derived_from: Sequence[EdgeOrNode] = attrs.field(converter=_as_points)
    derive_qparams_fn: Callable[[list[Any]], tuple[torch.Tensor, torch.Tensor]]
    dtype: torch.dtype
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __attrs_post_init__(self) -> None:
        _check_range(self.dtype, self.quant_min, self.quant_max, "DerivedQuantizationSpec")
        _check_channels(self.qscheme, self.ch_axis, self.is_dynamic, "DerivedQuantizationSpec")
        if not self.derived_from:
            raise SpecError(
                "DerivedQuantizationSpec is derived from nothing",
                hint="name the points whose observers derive_qparams_fn needs, or use a fixed spec",
            )


ConcreteSpec: TypeAlias = QuantizationSpec | FixedQParamsQuantizationSpec | DerivedQuantizationSpec
"""A spec that says itself how to quantize, rather than pointing at another."""


@attrs.frozen(slots=True)
class QuantizationConfig:
    """The specs a quantizer hands out by role; None leaves tensors of that role float."""

    input_activation: QuantizationSpec | None
    output_activation: QuantizationSpec | None
    weight: QuantizationSpec | None
    bias: QuantizationSpec | None
    is_qat: bool = False


def _constructor_key(value: object) -> Hashable:
    """A key equal for constructors that make equal observers.

    Two calls of ``functools.partial`` with the same parts compare unequal, so they are taken apart; anything
    unhashable is told apart by identity, which can only keep things separate that could have been shared.
    """
    if isinstance(value, functools.partial):
        return (
            _constructor_key(value.func),
            tuple(_constructor_key(v) for v in value.args),
            tuple((k, _constructor_key(v)) for k, v in sorted(value.keywords.items())),
        )
    if isinstance(value, Mapping):
        return tuple((k, _constructor_key(v)) for k, v in sorted(value.items()))
    try:
        hash(value)
    except TypeError:
        return ("by identity", id(value))
    return value


def spec_key(spec: ConcreteSpec) -> Hashable:
    """A key that two concrete specs share exactly when one observer can serve both.

    The observer constructor belongs to it: specs that agree in everything else but ask for different
    observers ask for different numbers.
    """
    fields = attrs.asdict(spec, recurse=False)
    return (type(spec).__name__, *(_constructor_key(v) for v in fields.values()))
