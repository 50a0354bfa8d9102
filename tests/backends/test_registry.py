"""Backends by name, and what a backend is made of."""

from __future__ import annotations

from collections.abc import Iterator

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
