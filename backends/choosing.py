"""Which presets of a backend there are to choose from, and in which order."""

from __future__ import annotations

from ..matchers.operator_pattern import Mode
from .base import Backend
from .capabilities import Preset, mode_of

__all__ = ["best_first", "presets_for_calibration", "presets_of_modes"]


def presets_for_calibration(backend: Backend) -> tuple[Preset, ...]:
    """The presets of ``backend``, or of the backends that it is made of, that are not for training.

    Each name once, in the order of the backend.
    """
    presets = [preset for part in backend.parts or (backend,) for preset in part.presets]
    found = {preset.name: preset for preset in presets if not preset.config().is_qat}
    return tuple(found.values())


def best_first(presets: tuple[Preset, ...]) -> tuple[Preset, ...]:
    """In the order of the backend, those behind that do not suit this machine."""
    return tuple(sorted(presets, key=lambda preset: not preset.suits()))


def presets_of_modes(backend: Backend, modes: tuple[Mode, ...]) -> tuple[Preset, ...]:
    """The presets for calibration that are of one of ``modes``, the best on this machine first."""
    return tuple(p for p in best_first(presets_for_calibration(backend)) if mode_of(p.config()) in modes)
