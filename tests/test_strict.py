"""Strict mode, in which what is silent otherwise is an error, and the coverage line of every verb."""

from __future__ import annotations

import logging
import warnings

import attrs
import pytest
import torch
from lowbit import (
    Coverage,
    QConfigMapping,
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    coverage,
    decisions,
    get_default_qconfig_mapping,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_fx,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends import Backend, get_backend
from lowbit.errors import (
    IneffectiveSettingWarning,
    NothingLoweredWarning,
    NothingQuantizedWarning,
    StrictModeError,
)
from lowbit.matchers.operator_pattern import Refusal
from torch import nn
from torch.fx import GraphModule

PRESET = get_default_x86_inductor_quantization_config(reduce_range=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 4)
        self.soft = nn.Softmax(-1)

    def forward(self, x):
        parts = torch.split(self.soft(self.head(self.body(x))), 2, -1)
        return parts[0] + parts[1]


def exported(model: nn.Module | None = None, *, training: bool = False) -> GraphModule:
    torch.manual_seed(0)
    model = (model or Net()).train(training)
    return torch.export.export(model, (torch.randn(2, 4),)).module()  # pyright: ignore


def quantizer() -> X86InductorQuantizer:
    return X86InductorQuantizer().set_global(PRESET)


def converted(model: GraphModule) -> GraphModule:
    calibrate(model, [(torch.randn(2, 4),)], progress=False)
    return convert_pt2e(model)


def test_a_model_that_is_as_asked_for_passes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepare_pt2e(exported(), quantizer(), strict=True)
    lowered = lower_pt2e(converted(prepared), strict=True)
    assert all(d.status == "quantized" for d in decisions(lowered) if d.intended)


def test_nothing_quantized_is_an_error() -> None:
    with pytest.raises(StrictModeError, match="annotated no tensor") as caught:
        prepare_pt2e(exported(nn.Softmax(-1)), quantizer(), strict=True)
    assert isinstance(caught.value.__cause__, NothingQuantizedWarning)
    assert "strict=True" in caught.value.hint


def test_a_setting_without_effect_is_an_error() -> None:
    idle = quantizer().set_module_name_qconfig("soft", PRESET)
    with pytest.warns(IneffectiveSettingWarning):
        prepare_pt2e(exported(), idle)
    with pytest.raises(StrictModeError, match="'soft' changes nothing"):
        prepare_pt2e(exported(), idle, strict=True)


def mapping(regex: str) -> QConfigMapping:
    return get_default_qconfig_mapping().set_module_name_regex(
        regex, get_default_qconfig_mapping().global_qconfig
    )


def test_a_regular_expression_that_only_a_container_matches_is_an_error() -> None:
    x = (torch.randn(2, 4),)
    with pytest.raises(StrictModeError, match="body"):
        prepare_fx(Net().eval(), mapping("body$"), x, strict=True)
    assert coverage(prepare_fx(Net().eval(), mapping("body.*"), x, strict=True)).quantized


def test_training_that_rounds_nothing_is_an_error() -> None:
    with pytest.raises(StrictModeError, match="training rounds nothing"):
        prepare_qat_pt2e(exported(training=True), quantizer(), strict=True)


def refusing() -> Backend:
    """X86, with a kernel of linear that takes nothing."""
    backend = get_backend("x86_inductor")

    @attrs.frozen
    class No:
        name: str = "none"

        def refuses(self, call):
            return Refusal("no-float16-arithmetic", "not today")

    patterns = tuple(attrs.evolve(p, kernel=No()) if "linear" in p.name else p for p in backend.patterns)
    return attrs.evolve(backend, patterns=patterns)


def test_an_operator_that_was_to_be_lowered_and_was_not_is_an_error() -> None:
    model = converted(prepare_pt2e(exported(), quantizer()))
    with pytest.warns(NothingLoweredWarning, match=r"none of the 2 operators .*\(no-float16-arithmetic\)"):
        lower_pt2e(model, refusing())
    with pytest.raises(StrictModeError, match="2 operators read low precision and have no kernel") as caught:
        lower_pt2e(model, refusing(), strict=True)
    first, second = caught.value.where
    assert first.startswith("%linear (aten.linear.default): no-float16-arithmetic\n")
    assert "not today" in first
    assert second.startswith("%linear_1 ")


def test_filters_of_warnings_are_as_they_were() -> None:
    before = list(warnings.filters)
    prepare_pt2e(exported(), quantizer(), strict=True)
    assert list(warnings.filters) == before


def test_coverage_counts_operators_and_reasons() -> None:
    found = coverage(prepare_pt2e(exported(), quantizer()))
    # Picking the parts of a split is none.
    assert found.quantized == 3
    assert found.total == found.quantized + sum(count for _, count in found.left_float)
    assert {"no-pattern": 1, "pointwise": 1}.items() <= dict(found.left_float).items()
    assert found.share == found.quantized / found.total
    assert found.backend == "x86_inductor"


def test_the_most_frequent_reason_comes_first() -> None:
    line = str(Coverage(20, (("weight-not-constant", 2), ("no-pattern", 1)), backend="xnnpack"))
    assert line.partition("; ")[::2] == (
        "20 of 23 float operators quantized for xnnpack",
        "3 left float: weight-not-constant 2, no-pattern 1",
    )
    assert str(Coverage(2, ())) == "2 of 2 float operators quantized"
    assert (Coverage(0, ()).share, str(Coverage(0, ()))) == (0.0, "0 of 0 float operators quantized")


def test_a_model_that_no_verb_has_seen_is_of_no_operators() -> None:
    assert coverage(exported()) == Coverage(0, ())


def test_every_verb_logs_the_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lowbit"):
        prepared = prepare_pt2e(exported(), quantizer())
        lowered = lower_pt2e(converted(prepared))
    lines = [record.getMessage() for record in caplog.records if record.name == "lowbit"]
    assert lines == [
        f"prepare: {coverage(prepared)}",
        f"convert: {coverage(prepared)}",
        f"lower: {coverage(lowered)}",
    ]


def test_nothing_is_counted_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("lowbit").setLevel(logging.WARNING)
    try:
        monkeypatch.setattr("lowbit.verb_results.coverage_of", None)
        prepare_pt2e(exported(), quantizer())
    finally:
        logging.getLogger("lowbit").setLevel(logging.NOTSET)
