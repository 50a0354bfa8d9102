"""For whom a model is quantized: a backend, and the preset that its quantizer has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import attrs

from ....backends.base import Backend
from ....backends.capabilities import Preset, mode_of
from ....backends.composable import ComposableQuantizer
from ....backends.registry import get_backend
from ....backends.x86_inductor import X86_INDUCTOR, has_vnni
from ....errors import OptionError, UnsupportedError
from ....ir.quantizer import Quantizer
from ....matchers.operator_pattern import Mode
from ....passes.registry import unknown_name

__all__ = ["Target", "default_backend", "find_target", "make_quantizer", "presets_for_calibration"]

_DEFAULTS = ("x86_inductor", "arm_inductor")


@runtime_checkable
class _Configurable(Protocol):
    """What is asked of a backend's quantizer."""

    def set_global(self, quantization_config: Any) -> Any: ...

    def set_module_name(self, module_name: str, quantization_config: None) -> Any: ...


@attrs.frozen(eq=False)
class Target:
    """A backend with a preset.

    Args:
        backend: the backend.
        preset: name of the preset.
        presets: the preset of that name of each part of the backend that has it; of the others, their own.
        note: what to say about the choice, if anything.
    """

    backend: Backend
    preset: str
    presets: dict[str, Preset]
    note: str = ""

    @property
    def needs_calibration(self) -> bool:
        """Whether ranges are found before the model runs, from data."""
        return any(_is_static(preset) for preset in self.presets.values())


def default_backend() -> str:
    """The backend of Inductor for the CPU of this machine.

    Raises:
        OptionError: there is none.
    """
    for name in _DEFAULTS:
        if get_backend(name).is_available():
            return name
    raise OptionError(
        "no backend was named, and none is for the CPU of this machine",
        hint="name one with --backend; lowbit backends lists them",
    )


def presets_for_calibration(backend: Backend) -> tuple[Preset, ...]:
    """The presets of ``backend`` that are not for training, each name once."""
    presets = [preset for part in _parts(backend) for preset in part.presets]
    found = {preset.name: preset for preset in presets if not preset.config().is_qat}
    return tuple(found.values())


def find_target(backend_name: str | None, preset_name: str | None) -> Target:
    """The backend and preset of these names, or what is right for this machine.

    Raises:
        UnknownNameError: no such backend or preset; the hint has the nearest.
        OptionError: the preset is for training, or there is no backend for this machine.
    """
    backend = get_backend(backend_name or default_backend())
    known = [preset.name for preset in presets_for_calibration(backend)]
    if not known:
        raise OptionError(
            f"the backend {backend.name} has no presets",
            hint="quantize in Python, with its quantizer: prepare_pt2e(exported, quantizer)",
        )
    note = ""
    if preset_name is None:
        preset_name = "static" if "static" in known else known[0]
        if preset_name == "static" and X86_INDUCTOR in _parts(backend) and not has_vnni():
            preset_name = "static-7-bit"
            note = (
                "this CPU has no VNNI, so activations have 7 bits (preset static-7-bit), with which its int8 "
                "kernels cannot overflow. To quantize for CPUs that have it: --preset static"
            )
    if preset_name not in known:
        raise _no_preset(backend, preset_name, known)
    chosen = {part.name: _preset_of(part, preset_name) for part in _parts(backend)}
    return Target(backend, preset_name, chosen, note)


def make_quantizer(target: Target, left_float: Iterable[str] = ()) -> Quantizer:
    """The backend's quantizer with the preset, and the modules named left float.

    Raises:
        UnsupportedError: the quantizer of the backend cannot be told so.
    """
    quantizer = target.backend.quantizer()
    parts = quantizer.quantizers if isinstance(quantizer, ComposableQuantizer) else (quantizer,)
    for part, (name, preset) in zip(parts, target.presets.items(), strict=True):
        if not isinstance(part, _Configurable):
            raise UnsupportedError(
                f"the quantizer of {name}, {type(part).__name__}, has no set_global and set_module_name",
                hint="derive it from PatternQuantizer, or quantize in Python",
            )
        part.set_global(preset.config())
        for module in left_float:
            part.set_module_name(module, None)
    return quantizer


def _parts(backend: Backend) -> tuple[Backend, ...]:
    return backend.parts or (backend,)


def _preset_of(part: Backend, name: str) -> Preset:
    presets = presets_for_calibration(part)
    return next((preset for preset in presets if preset.name == name), presets[0])


def _is_static(preset: Preset) -> bool:
    return mode_of(preset.config()) is Mode.STATIC


def _no_preset(backend: Backend, name: str, known: list[str]) -> Exception:
    if any(preset.name == name for part in _parts(backend) for preset in part.presets):
        return OptionError(
            f"the preset {name!r} is for training, and this command calibrates",
            hint=f"take {' or '.join(known)}; to train, use prepare_qat_pt2e in Python",
        )
    return unknown_name(f"preset of {backend.name}", name, tuple(known))
