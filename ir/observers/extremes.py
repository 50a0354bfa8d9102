"""The smallest and largest value of a tensor, which is where bad data shows."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import CalibrationDataError
from ..wording import with_article
from .distributed import extremes_of_all_ranks

__all__ = ["bad_values", "check_observable", "finite_min_max", "flatten_dense", "not_finite"]


def check_observable(x: object) -> None:
    """Raise :class:`CalibrationDataError` unless ``x`` is a tensor of a real floating-point dtype."""
    if isinstance(x, Tensor) and x.is_meta:
        raise CalibrationDataError(
            "an observer was handed a tensor on the meta device, which has no values",
            hint="run the prepared model on real data, on a real device",
        )
    if isinstance(x, Tensor) and x.is_floating_point():
        return
    what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"{with_article(type(x).__name__)}"
    raise CalibrationDataError(
        f"an observer was handed {what}",
        hint="only floating-point tensors are quantized: leave this point out of the annotations",
    )


def flatten_dense(x: Tensor) -> Tensor:
    """The elements of ``x`` in some order, without a copy when ``x`` is dense in any memory format."""
    by_stride = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
    return x.permute(by_stride).reshape(-1)


def finite_min_max(x: Tensor, ch_axis: int | None = None) -> tuple[Tensor, Tensor]:
    """The smallest and largest value of ``x``, or of each of its channels.

    In the forward of ``DistributedDataParallel`` they are those of the ``x`` of all ranks.

    Args:
        x: floating-point tensor. Without elements its extremes are +inf and -inf.
        ch_axis: the channel axis; None for the extremes of the whole tensor.

    Returns:
        Two float32 tensors, of shape [] or [channels]. A zero is never negative, so that the result does not
        depend on which of two zeros comes first.

    Raises:
        CalibrationDataError: NaN, infinity, or a float64 value beyond float32 in ``x``; or no such axis.
    """
    if ch_axis is not None and not -x.dim() <= ch_axis < x.dim():
        raise CalibrationDataError(
            f"an observer with ch_axis={ch_axis} was handed a tensor of shape {list(x.shape)}",
            hint="choose an axis that the tensor has",
        )
    low, high = _min_max(x, ch_axis)
    # Rounding is monotone: the extremes of the rounded values are the rounded extremes.
    low, high = extremes_of_all_ranks(low.to(torch.float32), high.to(torch.float32))
    # NaN and infinity show in the extremes, so good data are read only once. Halves, for finite ones that
    # are float32's largest number apart.
    if not (high / 2 - low / 2 < torch.inf).all():
        raise not_finite(x)
    return low + 0.0, high + 0.0


def _min_max(x: Tensor, ch_axis: int | None) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        shape = [] if ch_axis is None else [x.shape[ch_axis]]
        return x.new_full(shape, torch.inf), x.new_full(shape, -torch.inf)
    if ch_axis is None:
        low, high = torch.aminmax(flatten_dense(x))
        return low, high
    channels = x.movedim(ch_axis, 0).flatten(1)
    # One reduction that finds both at once is 20 times slower along an axis (torch 2.13 on CPU).
    return channels.amin(1), channels.amax(1)


def not_finite(x: Tensor) -> CalibrationDataError:
    """The error that says what an observer met in ``x``."""
    text, _ = bad_values(x)
    return CalibrationDataError(
        f"an observer met {text or f'NaN or infinity on another rank, not in a tensor of {list(x.shape)}'}",
        hint="find the batch (or the operator) that makes them, and calibrate without it",
    )


def bad_values(x: Tensor) -> tuple[str, tuple[int, ...]]:
    """How many values of ``x`` are NaN, infinite or beyond float32, in words, and the index of the first.

    Without any the words are "" and the index is ().
    """
    values = x.to(torch.float32)
    kinds = {
        "NaN": values.isnan(),
        "+inf": values.isposinf() & x.isinf(),
        "-inf": values.isneginf() & x.isinf(),
        "beyond float32": values.isinf() & ~x.isinf(),
    }
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    if not found:
        return "", ()
    first = tuple((~values.isfinite()).nonzero()[0].tolist())
    at = f", the first at {list(first)}" if first else ""
    return f"{found} among the {x.numel()} values of a tensor of shape {list(x.shape)}{at}", first
