"""A QConfig against what a backend takes: the specs that follow, or why there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import torch
from torch import nn

from ...errors import LowbitError, SpecError
from ...ir.observers import FakeQuantizeBase, FixedQParamsFakeQuantize, FixedQParamsObserver
from ...ir.specs import (
    CAST_DTYPES,
    ConcreteSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    storage_dtype,
)
from .dtype_config import DTypeConfig, DTypeWithConstraints
from .qconfig import QConfig, reuse_input_observer

__all__ = ["Grid", "Observation", "Observed", "Refused", "Specs", "choose_specs", "observe"]


@attrs.frozen
class Grid:
    """What the parameters of a tensor lie within, whatever they turn out to be.

    Args:
        dtype: the storage dtype.
        quant_min: the smallest quantized value; None for casts.
        quant_max: the largest.
        smallest_scale: the smallest scale there may be, 0 if nothing is known.
    """

    dtype: torch.dtype
    quant_min: int | None
    quant_max: int | None
    smallest_scale: float

    def serves(self, wanted: Grid) -> bool:
        """Whether a tensor with parameters within this is one with parameters within ``wanted``."""
        return (self.dtype, self.quant_min, self.quant_max) == (
            wanted.dtype,
            wanted.quant_min,
            wanted.quant_max,
        ) and self.smallest_scale >= wanted.smallest_scale


@attrs.frozen(eq=False)
class Observed:
    """What a constructor of a QConfig makes.

    Args:
        dtype: the storage dtype; float32 where nothing is quantized.
        is_dynamic: whether parameters are found at run time.
        reuses_input: whether they are those of the operator's input.
        spec: what it amounts to; None where nothing is quantized, or the input's parameters are reused.
        module: the observer itself, to look at; None where there is none.
    """

    dtype: torch.dtype = torch.float32
    is_dynamic: bool = False
    reuses_input: bool = False
    spec: ConcreteSpec | None = None
    module: nn.Module | None = None

    @property
    def grid(self) -> Grid:
        """What its parameters lie within."""
        # Of a fake quantizer the parameters are those of the observer inside.
        observer: Any = getattr(self.module, "activation_post_process", self.module)
        low, high, smallest = (getattr(observer, name, None) for name in ("quant_min", "quant_max", "eps"))
        if isinstance(self.spec, FixedQParamsQuantizationSpec):
            smallest = self.spec.scale
        return Grid(self.dtype, low, high, 0.0 if smallest is None else float(smallest))


@attrs.frozen
class Refused:
    """Why a QConfig does not do: a reason code for the ledger, and a sentence."""

    reason: str
    detail: str


@attrs.frozen(eq=False)
class Specs:
    """How the tensors of an operator are quantized; None leaves them float.

    Args:
        input: the activations that are read.
        output: the result.
        weight: the weight.
        bias: the bias.
        grid: what the parameters of activations lie within; None if they are float, or found at run time.
        reuses_input: whether input and output have the parameters that the input has anyway.
    """

    input: ConcreteSpec | None = None
    output: ConcreteSpec | None = None
    weight: QuantizationSpec | None = None
    bias: QuantizationSpec | None = None
    grid: Grid | None = None
    reuses_input: bool = False


_FLOAT: Final = Observed()


@attrs.frozen(eq=False)
class Observation:
    """What the two constructors of a QConfig make."""

    activation: Observed
    weight: Observed

    @property
    def trains(self) -> bool:
        """Whether one of them is a fake quantizer."""
        return any(isinstance(each.module, FakeQuantizeBase) for each in (self.activation, self.weight))


def observe(qconfig: QConfig) -> Observation:
    """What the constructors of ``qconfig`` make.

    Raises:
        SpecError: one makes no observer.
    """
    return Observation(_observed(qconfig.activation), _observed(qconfig.weight))


def _observed(constructor: Callable[[], nn.Module] | None) -> Observed:
    if constructor is None or constructor is nn.Identity:
        return _FLOAT
    if constructor is reuse_input_observer:
        return Observed(reuses_input=True)
    try:
        made: Any = constructor()
    except LowbitError:
        raise
    except Exception as error:
        # A user's constructor raises whatever it does.
        raise SpecError(
            f"a QConfig has {constructor!r}, which makes no observer: {type(error).__name__}: {error}",
            hint="bind what it needs with with_args(…): it is called without arguments",
        ) from error
    dtype = getattr(made, "dtype", None)
    if not isinstance(made, nn.Module) or not isinstance(dtype, torch.dtype):
        raise SpecError(
            f"a QConfig has {constructor!r}, which makes a {type(made).__name__}, no observer",
            hint="pass an observer class or its .with_args(…)",
        )
    dtype, dynamic = storage_dtype(dtype), bool(getattr(made, "is_dynamic", False))
    if dtype.is_floating_point and dtype not in CAST_DTYPES:
        return Observed(module=made)
    return Observed(dtype, dynamic, spec=_spec(constructor, made, dtype, dynamic), module=made)


def _spec(
    constructor: Callable[..., nn.Module], made: Any, dtype: torch.dtype, dynamic: bool
) -> ConcreteSpec:
    if isinstance(made, (FixedQParamsObserver, FixedQParamsFakeQuantize)):
        scale, zero_point = made.calculate_qparams()
        return FixedQParamsQuantizationSpec(
            dtype, float(scale), int(zero_point), made.quant_min, made.quant_max, made.qscheme
        )
    # The range is left to the constructor: it may halve one that it is given.
    return QuantizationSpec(
        dtype,
        constructor,
        qscheme=None if dtype in CAST_DTYPES else getattr(made, "qscheme", None),
        ch_axis=getattr(made, "ch_axis", None),
        is_dynamic=dynamic,
    )


def choose_specs(
    observation: Observation, dtype_configs: list[DTypeConfig], has_weight: bool
) -> Specs | Refused:
    """What a QConfig asks for, if it agrees with one of ``dtype_configs``; the first that it agrees with.

    Args:
        observation: what the QConfig makes.
        dtype_configs: what the backend takes.
        has_weight: whether the operator has a weight, so that what is said of one counts.

    Returns:
        The specs, or why there are none: of the config whose dtypes agree, if there is one, else that
        no dtypes do. Reasons are ``dtypes-not-supported``, ``quantization-range``, ``scale-too-small`` and
        ``parameters-not-fixed``.
    """
    activation, weight = observation.activation, observation.weight
    refused: list[Refused] = []
    for config in dtype_configs:
        if activation.reuses_input:
            return Specs(reuses_input=True)
        if not _dtypes_agree(config, activation, weight, has_weight):
            continue
        violated = (
            _violation("activation", activation, config.input_dtype_with_constraints)
            or _violation("activation", activation, config.output_dtype_with_constraints)
            or (_violation("weight", weight, config.weight_dtype_with_constraints) if has_weight else None)
        )
        if violated is None:
            return _specs(config, activation, weight)
        refused.append(violated)
    if refused:
        return refused[0]
    asked = f"{'dynamic ' if activation.is_dynamic else ''}{_short(activation.dtype)} activations" + (
        f" and {_short(weight.dtype)} weights" if has_weight else ""
    )
    taken = " or ".join(_describe(config, has_weight) for config in dtype_configs) or "nothing"
    return Refused("dtypes-not-supported", f"the QConfig asks for {asked}; the backend takes {taken}")


def _dtypes_agree(config: DTypeConfig, activation: Observed, weight: Observed, has_weight: bool) -> bool:
    dynamic = bool(config.is_dynamic)
    wanted_output = torch.float32 if dynamic else activation.dtype
    half = activation.dtype is weight.dtype is torch.float16 and not dynamic
    wanted_bias = torch.float16 if half else torch.float32
    return (
        _agree(config.input_dtype, activation.dtype)
        and (config.input_dtype is None or dynamic == activation.is_dynamic)
        and _agree(config.output_dtype, wanted_output)
        and (not has_weight or _agree(config.weight_dtype, weight.dtype))
        and (not has_weight or _agree(config.bias_dtype, wanted_bias))
    )


def _agree(taken: torch.dtype | None, wanted: torch.dtype) -> bool:
    return taken is None or storage_dtype(taken) is wanted


def _violation(what: str, observed: Observed, taken: DTypeWithConstraints) -> Refused | None:
    """The first constraint of ``taken`` that ``observed`` breaks."""
    if taken.dtype is None or storage_dtype(taken.dtype) is not observed.dtype or observed.spec is None:
        return None
    grid = observed.grid
    low, high = grid.quant_min, grid.quant_max
    bounds = taken.quant_min_lower_bound, taken.quant_max_upper_bound
    if low is not None and high is not None:
        below = bounds[0] is not None and low < bounds[0]
        if below or (bounds[1] is not None and high > bounds[1]):
            return Refused(
                "quantization-range",
                f"the {what}'s range [{low}, {high}] is not within the backend's [{bounds[0]}, {bounds[1]}]",
            )
    smallest = taken.scale_min_lower_bound
    if smallest is not None and grid.smallest_scale < smallest:
        return Refused(
            "scale-too-small",
            f"the {what}'s scale may be {grid.smallest_scale}, the backend takes {smallest} and more",
        )
    if taken.scale_exact_match is not None:
        fixed = observed.spec
        wanted = taken.scale_exact_match, taken.zero_point_exact_match
        if not isinstance(fixed, FixedQParamsQuantizationSpec) or (fixed.scale, fixed.zero_point) != wanted:
            return Refused(
                "parameters-not-fixed",
                f"the backend takes scale {wanted[0]} and zero point {wanted[1]} only: observe it with a "
                "FixedQParamsObserver",
            )
    return None


def _specs(config: DTypeConfig, activation: Observed, weight: Observed) -> Specs:
    half = config.bias_dtype is torch.float16 and isinstance(weight.spec, QuantizationSpec)
    quantizes_weight = isinstance(weight.spec, QuantizationSpec) and config.weight_dtype is not None
    # Cast at run time, an activation would be cast back at once.
    read = None if activation.is_dynamic and activation.dtype in CAST_DTYPES else activation.spec
    return Specs(
        input=read,
        output=None if activation.is_dynamic else activation.spec,
        weight=weight.spec if quantizes_weight else None,  # pyright: ignore[reportArgumentType]
        grid=None if activation.is_dynamic or activation.spec is None else activation.grid,
        bias=weight.spec if half else None,  # pyright: ignore[reportArgumentType]
    )


def _describe(config: DTypeConfig, has_weight: bool) -> str:
    kind = "dynamic " if config.is_dynamic else ""
    read = f"{kind}{_short(config.input_dtype)} activations"
    return f"{read} and {_short(config.weight_dtype)} weights" if has_weight else read


def _short(dtype: torch.dtype | None) -> str:
    return "any" if dtype is None else str(storage_dtype(dtype)).removeprefix("torch.")
