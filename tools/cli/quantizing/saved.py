"""What a saved float graph is quantized with."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from ....ir.quantizer import Quantizer
from .batches import batches_for
from .calibration_data import find_data
from .model_inputs import inputs_of
from .target import check_left_float, find_target, make_quantizer

__all__ = ["to_quantize"]


def to_quantize(
    gm: GraphModule,
    backend: str | None,
    preset: str | None,
    calibration: str,
    left_float: tuple[str, ...] = (),
) -> tuple[Quantizer, list[Any], tuple[str, ...]]:
    """The quantizer and the batches that options name, checked against the float graph ``gm``, and notes.

    Raises:
        OptionError, UnknownNameError, CalibrationDataError: as of ``lowbit quantize``.
    """
    load = find_data(calibration)
    target = find_target(backend, preset)
    check_left_float(gm, left_float, target.backend)
    found = batches_for(inputs_of(gm), load(), batch_size=None, steps=None)
    return make_quantizer(target, left_float), list(found.batches), (*target.notes, *found.notes)
