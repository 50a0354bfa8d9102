"""From a spec to its observer or fake quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...errors import SpecError
from ..specs import ConcreteSpec, DerivedQuantizationSpec, FixedQParamsQuantizationSpec, QuantizationSpec
from ..wording import with_article
from .derived import DerivedObserver
from .derived_fake_quantize import DerivedFakeQuantize
from .fake_quantize import FixedQParamsFakeQuantize
from .partial import accepted_keywords, names_parameter
from .unobserved import FixedQParamsObserver

__all__ = ["create_fake_quantize", "create_observer"]

_FIELDS = ("dtype", "quant_min", "quant_max", "qscheme", "ch_axis", "is_dynamic")


def create_observer(spec: ConcreteSpec, *, derived_from: Sequence[nn.Module] = ()) -> nn.Module:
    """Make a new observer (or fake quantizer) that finds what ``spec`` asks for.

    The constructor of a ``QuantizationSpec`` may be any callable. It is handed those fields of the spec that
    are not None and that its signature names (all of them if it takes ``**kwargs``); they win over arguments
    bound by ``with_args``.

    Args:
        spec: what to find.
        derived_from: the observers of the points of a ``DerivedQuantizationSpec``, in their order.

    Returns:
        A module in which nothing was observed yet.

    Raises:
        SpecError: the constructor does not return a module, ``derived_from`` does not fit the spec, or the
            observer refuses the spec's fields.
    """
    if isinstance(spec, FixedQParamsQuantizationSpec):
        return FixedQParamsObserver(spec.scale, spec.zero_point, **_fields(spec))
    if isinstance(spec, DerivedQuantizationSpec):
        _check_sources(spec, derived_from)
        return DerivedObserver(derived_from, spec.derive_qparams_fn, **_fields(spec))
    return _construct(spec, _fields(spec))


def create_fake_quantize(
    spec: ConcreteSpec, *, derived_from: Sequence[nn.Module] = (), shape: Sequence[int] | None = None
) -> nn.Module:
    """Make a new module that does in training what ``spec`` asks for; :func:`create_observer` for training.

    Fixed and derived parameters quantize in training too. A ``QuantizationSpec`` gets what its constructor
    makes, which may be a plain observer.

    Args:
        spec: what to find.
        derived_from: the modules of the points of a ``DerivedQuantizationSpec``, in their order.
        shape: the shape of the tensor, if it is known. A ``LearnableFakeQuantize`` of channels needs it,
            since it has parameters from the start.

    Returns:
        A module in which nothing was observed yet.

    Raises:
        SpecError: as :func:`create_observer`.
    """
    if isinstance(spec, FixedQParamsQuantizationSpec):
        fixed = FixedQParamsObserver.with_args(scale=spec.scale, zero_point=spec.zero_point)
        return FixedQParamsFakeQuantize(fixed, **_fields(spec))
    if isinstance(spec, DerivedQuantizationSpec):
        _check_sources(spec, derived_from)
        return DerivedFakeQuantize(derived_from, spec.derive_qparams_fn, **_fields(spec))
    fields = _fields(spec)
    if (
        shape is not None
        and spec.ch_axis is not None
        and names_parameter(spec.observer_or_fake_quant_ctr, "channels")
    ):
        fields["channels"] = int(shape[spec.ch_axis])
    return _construct(spec, fields)


def _fields(spec: ConcreteSpec) -> dict[str, Any]:
    fields = {name: getattr(spec, name, None) for name in _FIELDS}
    return {name: value for name, value in fields.items() if value is not None}


def _check_sources(spec: DerivedQuantizationSpec, sources: Sequence[nn.Module]) -> None:
    if len(sources) != len(spec.derived_from):
        raise SpecError(
            f"a spec derived from {len(spec.derived_from)} points got {len(sources)} observers",
            hint="hand in the observer of each point, in the order of derived_from",
        )


def _construct(spec: QuantizationSpec, keywords: dict[str, Any]) -> nn.Module:
    constructor = spec.observer_or_fake_quant_ctr
    observer: Any = constructor(**accepted_keywords(constructor, keywords))
    if not isinstance(observer, nn.Module):
        raise SpecError(
            f"the observer constructor {constructor!r} returned {with_article(type(observer).__name__)}",
            hint="observer_or_fake_quant_ctr makes a torch.nn.Module",
        )
    return observer
