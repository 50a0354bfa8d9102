"""Which presets there are to choose from, and in which order."""

from __future__ import annotations

import attrs
import pytest
from lowbit.backends import get_backend
from lowbit.backends.annotation import mode_code, modes_of_code
from lowbit.backends.choosing import best_first, presets_for_calibration, presets_of_modes
from lowbit.matchers.operator_pattern import Mode

X86 = get_backend("x86_inductor")


def test_those_that_do_not_suit_this_machine_come_last() -> None:
    first, second, *others = presets_for_calibration(X86)
    here = (attrs.evolve(first, suits=lambda: False), attrs.evolve(second, suits=lambda: True), *others)
    assert [preset.name for preset in best_first(here)][-1] == first.name
    there = tuple(attrs.evolve(preset, suits=lambda: True) for preset in here)
    assert best_first(there) == there


def test_presets_for_training_are_none_to_calibrate_with() -> None:
    names = [preset.name for preset in presets_for_calibration(X86)]
    assert "static" in names
    assert not [name for name in names if "qat" in name]


@pytest.mark.parametrize("modes", [(Mode.STATIC,), (Mode.STATIC, Mode.DYNAMIC), (Mode.WEIGHT_ONLY,)])
def test_a_code_tells_its_modes(modes: tuple[Mode, ...]) -> None:
    assert modes_of_code(mode_code(modes)) == modes
    assert presets_of_modes(X86, modes)


@pytest.mark.parametrize("code", ["no-pattern", "in-place-only", "-only", ""])
def test_other_codes_are_of_no_mode(code: str) -> None:
    assert modes_of_code(code) == ()
