"""What a backend is: data."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from ..ir.quantizer import Quantizer
from ..matchers.operator_pattern import OperatorPattern
from ..passes.pipeline import Pipeline
from .by_hand import ByHand
from .capabilities import Capabilities, Preset, capabilities_of
from .finding import Finding

__all__ = ["Backend"]


@attrs.frozen(eq=False)
class Backend:
    """A target that graphs are quantized for.

    Args:
        name: kebab- or snake-case name, unique among registered backends.
        patterns: what it can run in low precision.
        quantizer: makes its quantizer, configured with its default preset.
        prepare: FLOAT → OBSERVED.
        convert: OBSERVED → QDQ.
        lower: QDQ → LOWERED; None where another program takes converted models from here.
        lowered_by: that program and how it is called, in one sentence.
        prepare_qat: FLOAT → OBSERVED, for quantization-aware training; None where the backend has no presets
            for it.
        presets: the configurations that its quantizer may be given, by name; the one to take comes first.
        device: type of the device that its kernels run on, None for any.
        architecture: of the processors that its kernels are for, None for any that the device may have: two
            backends of one device type whose architectures differ have no machine in common.
        is_available: whether they run on this machine.
        is_default: whether it is taken where nobody names a backend, if its kernels run on this machine.
        checks: what it finds on this machine that matters to its kernels, for ``lowbit doctor``; asked where
            they run.
        by_hand: what its quantizer annotates without a pattern.
        parts: of a composition, the backends that it is made of.
    """

    name: str
    patterns: tuple[OperatorPattern, ...]
    quantizer: Callable[[], Quantizer]
    prepare: Pipeline
    convert: Pipeline
    lower: Pipeline | None
    lowered_by: str = ""
    prepare_qat: Pipeline | None = None
    presets: tuple[Preset, ...] = ()
    device: str | None = None
    architecture: str | None = None
    is_available: Callable[[], bool] = lambda: True
    is_default: bool = False
    checks: Callable[[], Iterable[Finding]] = lambda: ()
    by_hand: tuple[ByHand, ...] = ()
    parts: tuple[Backend, ...] = ()

    def capabilities(self) -> Capabilities:
        """What it can quantize: a cell for each pattern, and each ``by_hand``, under each preset.

        Of a composition, the cells of its parts.
        """
        if self.parts:
            return Capabilities(tuple(cell for part in self.parts for cell in part.capabilities()))
        return capabilities_of(
            self.name, (*self.patterns, *self.by_hand), self.presets, is_lowered=self.lower is not None
        )
