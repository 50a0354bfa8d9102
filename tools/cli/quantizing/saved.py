"""What a saved float graph is quantized with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import attrs
from torch.fx import GraphModule

from ....ir.quantizer import Quantizer
from .batches import batches_for, told_in_the_data
from .calibration_data import find_data
from .model_inputs import inputs_of
from .target import check_left_float, find_target, make_quantizer

__all__ = ["ToQuantize", "to_quantize"]


@attrs.frozen(eq=False)
class ToQuantize:
    """What a float graph is quantized with.

    Args:
        quantizer: of the backend and preset.
        batches: calibration data.
        notes: on what was chosen for it.
        told: to calibrate within: what is wrong with the data is said in their words.
    """

    quantizer: Quantizer
    batches: list[Any]
    notes: tuple[str, ...]
    told: AbstractContextManager[None]


def to_quantize(
    gm: GraphModule,
    backend: str | None,
    preset: str | None,
    calibration: str,
    left_float: tuple[str, ...] = (),
) -> ToQuantize:
    """The quantizer and the batches that options name, checked against the float graph ``gm``.

    Raises:
        OptionError, UnknownNameError, CalibrationDataError: as of ``lowbit quantize``.
    """
    load = find_data(calibration)
    target = find_target(backend, preset)
    check_left_float(gm, left_float, target.backend)
    found = batches_for(inputs_of(gm), load(), batch_size=None, steps=None)
    return ToQuantize(
        make_quantizer(target, left_float),
        list(found.batches),
        (*target.notes, *found.notes),
        told_in_the_data(found.place),
    )
