"""Backends by name, and what a backend is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch
from lowbit import X86InductorQuantizer, backends
from lowbit.backends import registry
from lowbit.backends.x86_inductor import X86_INDUCTOR
from lowbit.errors import PipelineError, UnknownNameError
from lowbit.ir.stages import Stage


@pytest.fixture
def restored() -> Iterator[None]:
    """Backends registered by the test are forgotten again."""
    before = dict(registry._backends)
    yield
    registry._backends.clear()
    registry._backends.update(before)


def test_x86_is_registered_on_import() -> None:
    assert backends.get_backend("x86_inductor") is X86_INDUCTOR
    assert "x86_inductor" in backends.backend_names()


def test_names_are_sorted(restored: None) -> None:
    for name in ("zz", "aa"):
        backends.register_backend(attrs.evolve(X86_INDUCTOR, name=name))
    assert list(backends.backend_names()) == sorted(backends.backend_names())


def test_registering_twice_is_fine_and_taking_a_name_is_not(restored: None) -> None:
    assert backends.register_backend(X86_INDUCTOR) is X86_INDUCTOR
    with pytest.raises(PipelineError, match="'x86_inductor' is taken"):
        backends.register_backend(attrs.evolve(X86_INDUCTOR))
    assert backends.get_backend("x86_inductor") is X86_INDUCTOR


def test_an_unknown_name_gets_the_nearest(restored: None) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'x86_inductor'") as error:
        backends.get_backend("x86_inducter")
    assert isinstance(error.value, KeyError)


def test_a_backend_takes_a_graph_from_float_to_lowered() -> None:
    pipelines = (X86_INDUCTOR.prepare, X86_INDUCTOR.convert, X86_INDUCTOR.lower)
    first = [next(iter(pipeline)).requires for pipeline in pipelines]
    ends = [[p.ensures for p in pipeline if p.ensures is not None][-1] for pipeline in pipelines]
    assert first == [{Stage.FLOAT}, {Stage.OBSERVED}, {Stage.QDQ}]
    assert ends == [Stage.OBSERVED, Stage.QDQ, Stage.LOWERED]


def test_the_default_quantizer_is_configured() -> None:
    quantizer = X86_INDUCTOR.quantizer()
    assert isinstance(quantizer, X86InductorQuantizer)
    assert quantizer.backend_name == X86_INDUCTOR.name
    model = torch.export.export(torch.nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 5, 5),)).module()
    annotated = quantizer.annotate(model)
    assert any("quantization_annotation" in node.meta for node in annotated.graph.nodes)


def test_pattern_names_are_unique_and_every_pattern_captures() -> None:
    names = [pattern.name for pattern in X86_INDUCTOR.patterns]
    assert len(set(names)) == len(names)
    for pattern in X86_INDUCTOR.patterns:
        assert len(pattern.parameters) == len(pattern.roles)
        assert pattern.size >= 1


# Backends that other packages offer.


class Offer:
    """An installed package with an entry point, as a folder with metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, name: str, module: str, target: str | None = None, *, package: str | None = None
    ) -> None:
        package = package or f"offers_{name}"
        (self.folder / f"{package}.py").write_text(module)
        metadata = self.folder / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(
            f"[lowbit.backends]\n{name} = {target or f'{package}:BACKEND'}\n"
        )


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: None) -> Offer:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Offer(tmp_path)


COPY = """
import attrs
from lowbit.backends.x86_inductor import X86_INDUCTOR
BACKEND = attrs.evolve(X86_INDUCTOR, name="{}")
"""


def test_offered_backends_are_loaded_when_they_are_asked_for(offer: Offer) -> None:
    offer("far", COPY.format("far"))
    offer("farther", "raise RuntimeError('not asked for')")
    assert {"far", "farther"} <= set(backends.backend_names())
    far = backends.get_backend("far")
    assert far.name == "far"
    assert backends.get_backend("far") is far
    assert backends.get_backend("embedding+far").name == "embedding+far"


def test_names_of_offered_backends_are_suggested(offer: Offer) -> None:
    offer("distant_machine", COPY.format("distant_machine"))
    with pytest.raises(UnknownNameError, match="did you mean 'distant_machine'"):
        backends.get_backend("distant_machin")


@pytest.mark.parametrize(
    ("module", "target", "match"),
    [
        (COPY.format("other"), None, "is a backend named 'other'"),
        ("BACKEND = 7", None, "which is int"),
        ("import there_is_no_such_module", None, "could not be loaded: No module named"),
        ("", None, "could not be loaded: .*BACKEND"),
        (COPY.format("broken"), "nowhere:BACKEND", "could not be loaded"),
    ],
)
def test_offers_that_are_broken(offer: Offer, module: str, target: str | None, match: str) -> None:
    offer("broken", module, target)
    sys.modules.pop("offers_broken", None)
    with pytest.raises(PipelineError, match=match) as error:
        backends.get_backend("broken")
    assert "offers_broken" in error.value.found
    assert "entry point broken = " in error.value.where[0]
    assert "broken" not in registry._backends


def test_two_packages_that_offer_one_name(offer: Offer) -> None:
    offer("far", COPY.format("far"))
    offer("far", COPY.format("far"), package="also_offers_far")
    with pytest.raises(PipelineError, match="both offer a backend named 'far'") as error:
        backends.get_backend("far")
    assert "packages also_offers_far and offers_far" in error.value.found or (
        "packages offers_far and also_offers_far" in error.value.found
    )
    assert len(error.value.where) == 2


def test_what_is_registered_goes_before_what_is_offered(offer: Offer) -> None:
    offer("x86_inductor", "raise RuntimeError('never')")
    assert backends.get_backend("x86_inductor") is X86_INDUCTOR


def test_a_name_of_a_composition_cannot_be_registered(restored: None) -> None:
    with pytest.raises(PipelineError, match="is that of a composition"):
        backends.register_backend(attrs.evolve(X86_INDUCTOR, name="a+b"))
