"""A backend that a package registers has what those of lowbit have: a default, presets, lines in doctor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from lowbit.backends import Backend, Finding, Preset, get_backend, register_backend, registry
from lowbit.backends.xnnpack import get_symmetric_quantization_config
from lowbit.tools.cli.quantizing.target import find_target


@pytest.fixture
def own() -> Iterator[Backend]:
    """A backend like XNNPACK whose first preset suits machines with the variable ``WIDE``."""
    before = dict(registry._backends)
    backend = attrs.evolve(
        get_backend("xnnpack"),
        name="own",
        presets=(
            Preset(
                "wide",
                get_symmetric_quantization_config,
                suits=lambda: "WIDE" in os.environ,
                unsuited="WIDE is not set",
            ),
            Preset("narrow", lambda: get_symmetric_quantization_config(is_per_channel=True)),
        ),
        checks=lambda: [Finding("width", "narrow", "slow", "set WIDE")],
    )
    yield register_backend(backend)
    registry._backends.clear()
    registry._backends.update(before)


def test_the_first_preset_that_suits_is_taken(own: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_target("own", None)
    assert target.preset == "narrow"
    assert target.notes == (
        "WIDE is not set, so the preset is narrow. To quantize for machines where it is otherwise: "
        "--preset wide",
    )
    assert not find_target("own", "wide").notes
    monkeypatch.setenv("WIDE", "1")
    assert (find_target("own", None).preset, find_target("own", None).notes) == ("wide", ())


def test_it_is_quantized_for(own: Backend, project: Path, lowbit: Any) -> None:
    words = ("quantize", "net:module", "--calibration", "net:batches", "--backend", "own", "--json")
    data = json.loads(lowbit(*words).stdout)
    assert data["preset"] == "narrow"
    assert "WIDE is not set" in data["notes"][0]
    listed = json.loads(lowbit("backends", "--json").stdout)["backends"]
    assert next(each for each in listed if each["name"] == "own")["default_preset"] == "narrow"
    assert "presets: wide, narrow; narrow by default" in lowbit("backends").stdout


def test_doctor_asks_it(own: Backend, lowbit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowbit.tools.cli.doctor._compiler", lambda: ())
    found = json.loads(lowbit("doctor", "--json").stdout)["findings"]
    assert {"name": "own: width", "found": "narrow", "status": "slow", "means": "set WIDE"} in found
    register_backend(attrs.evolve(own, name="elsewhere", is_available=lambda: False))
    found = json.loads(lowbit("doctor", "--json").stdout)["findings"]
    assert not any(each["name"].startswith("elsewhere:") for each in found), "it does not run here"


def test_the_backend_that_is_taken_where_none_is_named(own: Backend, lowbit: Any, project: Path) -> None:
    for name in ("x86_inductor", "arm_inductor"):
        registry._backends[name] = attrs.evolve(get_backend(name), is_available=lambda: False)
    said = lowbit("quantize", "net:module", code=2).stderr
    assert "no backend was named, and none is for it" in said
    register_backend(attrs.evolve(own, name="first", is_default=True))
    assert find_target(None, None).backend.name == "first"
    assert "taken where none is named" in lowbit("backends").stdout
    register_backend(attrs.evolve(own, name="second", is_default=True))
    assert "several are for this machine: first, second" in lowbit("quantize", "net:module", code=2).stderr


def test_parts_of_a_composition_follow_the_one_that_finds_ranges() -> None:
    both = find_target("embedding+x86_inductor", None)
    assert both.preset in ("static", "static-7-bit")
    assert [each.name for each in both.presets.values()] == ["weight-only", both.preset]
