"""What operators mean in float64 that do not simply run in it (a part of :mod:`.oracle`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from . import quantized_decomposed as qd

__all__ = ["MEANINGS", "REMEMBERED", "exact", "rounded"]

_aten = torch.ops.aten


def exact(value: Any) -> Any:
    """``value``, a tensor or several, its float tensors in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    return pytree.tree_map_only(torch.Tensor, exact, value)


def _dequantize(q: torch.Tensor, scale: Any, zero_point: Any, axis: int | None = None) -> torch.Tensor:
    # In place and no more often than need be, as weights are large.
    result = q.double()
    if not isinstance(zero_point, torch.Tensor) or zero_point.any():
        result.sub_(_spread(zero_point, q.dim(), axis))
    return result.mul_(_spread(scale, q.dim(), axis))


def _spread(parameter: Any, dimensions: int, axis: int | None) -> Any:
    """A scale or zero point as a number, or as a float64 tensor along ``axis`` of one with ``dimensions``."""
    if not isinstance(parameter, torch.Tensor):
        return 0 if parameter is None else parameter
    shape = [-1 if i == axis else 1 for i in range(dimensions)]
    return parameter.double().view([] if axis is None else shape)


def _choose(op: Any) -> Callable[..., Any]:
    return lambda x, *rest: exact(op(x.float(), *rest))


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` in float64, its values those that ``dtype`` has."""
    return x.to(dtype).double()


def _nothing(*_: object) -> None:
    return None


_GOLDEN: Final = 5**0.5 / 2 - 0.5


def _dropout(x: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    # Nothing is drawn at random, so that runs can be compared: multiples of the golden ratio spread evenly.
    if not train or p == 0.0:
        return x
    kept = (torch.arange(x.numel(), dtype=torch.float64, device=x.device) * _GOLDEN).frac_().view(
        x.shape
    ) >= p
    return x.double() * kept / (1.0 - p) if p < 1.0 else x.double() * 0.0


MEANINGS: Final[Mapping[object, Callable[..., Any]]] = {
    qd.QUANTIZE_PER_TENSOR: lambda x, *rest: qd.QUANTIZE_PER_TENSOR(x.float(), *rest),
    qd.QUANTIZE_PER_TENSOR_DYNAMIC: lambda x, *rest: qd.QUANTIZE_PER_TENSOR_DYNAMIC(x.float(), *rest),
    qd.QUANTIZE_PER_CHANNEL: lambda x, scale, *rest: qd.QUANTIZE_PER_CHANNEL(x.float(), scale.float(), *rest),
    qd.DEQUANTIZE_PER_TENSOR: lambda q, scale, zero_point, *_: _dequantize(q, scale, zero_point),
    qd.DEQUANTIZE_PER_TENSOR_DYNAMIC: lambda q, scale, zero_point, *_: _dequantize(q, scale, zero_point),
    qd.DEQUANTIZE_PER_CHANNEL: lambda q, scale, zero_point, axis, *_: _dequantize(q, scale, zero_point, axis),
    qd.CHOOSE_QPARAMS: _choose(qd.CHOOSE_QPARAMS),
    qd.CHOOSE_QPARAMS_SYMMETRIC: _choose(qd.CHOOSE_QPARAMS_SYMMETRIC),
    qd.CONVERT_ELEMENT_TYPE: rounded,
    _aten.dropout.default: _dropout,
    # Checks of dtypes, which are others here, and of sizes, which the run itself finds.
    _aten._assert_tensor_metadata.default: _nothing,
    _aten._assert_scalar.default: _nothing,
}
"""What operators mean that do not simply run in float64; called with the positional arguments."""

REMEMBERED: Final = qd.QUANTIZE_OPS | qd.DEQUANTIZE_OPS
