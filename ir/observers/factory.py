"""From a spec to its observer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ...errors import SpecError
from ..specs import ConcreteSpec, DerivedQuantizationSpec, FixedQParamsQuantizationSpec
from .derived import DerivedObserver
from .partial import ObserverConstructor
from .unobserved import FixedQParamsObserver

__all__ = ["create_observer"]

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
    fields = {name: getattr(spec, name, None) for name in _FIELDS}
    given = {name: value for name, value in fields.items() if value is not None}
    if isinstance(spec, FixedQParamsQuantizationSpec):
        return FixedQParamsObserver(spec.scale, spec.zero_point, **given)
    if isinstance(spec, DerivedQuantizationSpec):
        if len(derived_from) != len(spec.derived_from):
            raise SpecError(
                f"a spec derived from {len(spec.derived_from)} points got {len(derived_from)} observers",
                hint="hand in the observer of each point, in the order of derived_from",
            )
        return DerivedObserver(derived_from, spec.derive_qparams_fn, **given)
    constructor = spec.observer_or_fake_quant_ctr
    observer: Any = constructor(**_accepted(constructor, given))
    if not isinstance(observer, nn.Module):
        raise SpecError(
            f"the observer constructor {constructor!r} returned a {type(observer).__name__}",
            hint="observer_or_fake_quant_ctr makes a torch.nn.Module",
        )
    return observer


def _accepted(constructor: Callable[..., object], keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of ``keywords`` that ``constructor`` takes."""
    signature = inspect.signature(
        constructor.factory if isinstance(constructor, ObserverConstructor) else constructor
    )
    parameters = signature.parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return keywords
    by_name = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {name: value for name, value in keywords.items() if name in by_name}
