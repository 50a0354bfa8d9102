"""A model of which nothing is quantized, said in the words of the options."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

from torch.fx import GraphModule

from ....errors import NothingQuantizedWarning, StrictModeError
from ....quantize_pt2e import coverage
from .options import QuantizeOptions
from .target import Target, presets_for_calibration

__all__ = ["told_in_options", "warn_if_nothing_is_quantized"]


@contextmanager
def told_in_options(target: Target, options: QuantizeOptions) -> Generator[None]:
    """Leave out the warning of the pass, which speaks of quantizers; and so does the error of strict mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        try:
            yield
        except StrictModeError as error:
            if not isinstance(error.__cause__, NothingQuantizedWarning):
                raise
            raise StrictModeError(
                f"nothing is quantized for {target.backend.name} with the preset {target.preset}",
                hint=f"{_what_to_try(target, options)}; without --strict it is a warning",
            ) from error


def warn_if_nothing_is_quantized(prepared: GraphModule, target: Target, options: QuantizeOptions) -> None:
    """Warn with NothingQuantizedWarning, with the reasons and what to try."""
    found = coverage(prepared)
    if found.quantized:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in found.left_float)
    why = (
        f"all {found.total} float operators stay float ({reasons})"
        if reasons
        else "it has no float operators"
    )
    warnings.warn(
        NothingQuantizedWarning(
            f"nothing is quantized for {target.backend.name} with the preset {target.preset}: {why}. "
            f"To get on: {_what_to_try(target, options)}."
        ),
        stacklevel=2,
    )


def _what_to_try(target: Target, options: QuantizeOptions) -> str:
    others = [p.name for p in presets_for_calibration(target.backend) if p.name != target.preset]
    ways = [f"take another preset (--preset {', '.join(others)})"] if others else []
    ways += ["leave --left-float out"] if options.left_float else []
    ways += [f"see lowbit capabilities {target.backend.name} for what it quantizes"]
    return ", or ".join(ways)
