"""The flow that the demo shows: export → prepare → calibrate → convert → lower."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ...backends.x86_inductor import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    has_vnni,
)
from ...passes.instruments import Instrument, PassRecord, Timing
from ...quantize_pt2e import calibrate, convert_pt2e, lower_pt2e, prepare_pt2e

__all__ = ["QuantizedModel", "quantize"]


@attrs.frozen(eq=False)
class QuantizedModel:
    """A model on its way through the flow.

    Args:
        exported: the float graph.
        converted: the graph with quantize and dequantize operators; what one saves.
        lowered: the graph with int8 kernels; what one runs.
        passes: what each pass of each verb did, by the name of the verb.
    """

    exported: GraphModule
    converted: GraphModule
    lowered: GraphModule
    passes: dict[str, list[PassRecord]]


def quantize(
    model: nn.Module,
    calibration: Iterable[Tensor],
    *,
    example: Tensor,
    instruments: Sequence[Instrument] = (),
) -> QuantizedModel:
    """Quantize ``model`` (in eval mode) for X86 with the default static int8 configuration.

    On CPUs without VNNI it is the one of reduced range.

    Args:
        model: takes one tensor.
        calibration: batches of the shape of ``example``.
        example: the input that is exported with.
        instruments: what looks on while the passes of all verbs run.
    """
    exported = torch.export.export(model, (example,)).module()
    preset = get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    quantizer = X86InductorQuantizer().set_global(preset)

    timings = {"prepare": Timing(), "convert": Timing(), "lower": Timing()}
    prepared = prepare_pt2e(exported, quantizer, instruments=(timings["prepare"], *instruments))
    calibrate(prepared, calibration, progress=False)
    converted = convert_pt2e(prepared, instruments=(timings["convert"], *instruments))
    lowered = lower_pt2e(converted, instruments=(timings["lower"], *instruments))
    records = {verb: timing.records for verb, timing in timings.items()}
    return QuantizedModel(exported, converted, lowered, records)
