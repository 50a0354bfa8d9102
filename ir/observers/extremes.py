"""The smallest and largest value of a tensor, which is where bad data shows."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import CalibrationDataError

__all__ = ["check_observable", "finite_min_max", "flatten_dense"]


def check_observable(x: object) -> None:
    """Raise :class:`CalibrationDataError` unless ``x`` is a tensor of a real floating-point dtype."""
    if isinstance(x, Tensor) and x.is_floating_point():
        return
    what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
    raise CalibrationDataError(
        f"an observer was handed {what}",
        hint="only floating-point tensors are quantized: leave this point out of the annotations",
    )


def flatten_dense(x: Tensor) -> Tensor:
    """The elements of ``x`` in some order, without a copy when ``x`` is dense in any memory format."""
    by_stride = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
    return x.permute(by_stride).reshape(-1)


def finite_min_max(x: Tensor, ch_axis: int | None = None) -> tuple[Tensor, Tensor]:
    """The smallest and largest value of a non-empty ``x``, or of each of its channels.

    Args:
        x: floating-point tensor with at least one element.
        ch_axis: the channel axis; None for the extremes of the whole tensor.

    Returns:
        Two float32 tensors, of shape [] or [channels]. A zero is never negative, so that the result does not
        depend on which of two zeros comes first.

    Raises:
        CalibrationDataError: NaN, infinity, or a float64 value beyond float32 in ``x``; or no such axis.
    """
    if ch_axis is None:
        low, high = torch.aminmax(flatten_dense(x))
    else:
        if not -x.dim() <= ch_axis < x.dim():
            raise CalibrationDataError(
                f"an observer with ch_axis={ch_axis} was handed a tensor of shape {list(x.shape)}",
                hint="choose an axis that the tensor has",
            )
        low, high = torch.aminmax(x.movedim(ch_axis, 0).flatten(1), dim=1)
    # Rounding is monotone: the extremes of the rounded values are the rounded extremes.
    low, high = low.to(torch.float32) + 0.0, high.to(torch.float32) + 0.0
    # NaN and infinity show in the extremes, so good data are read only once.
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise _not_finite(x)
    return low, high


def _not_finite(x: Tensor) -> CalibrationDataError:
    values = x.to(torch.float32)
    kinds = {
        "NaN": values.isnan(),
        "+inf": values.isposinf() & x.isinf(),
        "-inf": values.isneginf() & x.isinf(),
        "beyond float32": values.isinf() & ~x.isinf(),
    }
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return CalibrationDataError(
        f"an observer met {found} among the {x.numel()} values of a tensor of shape {list(x.shape)}",
        hint="find the batch (or the operator) that makes them, and calibrate without it",
    )
