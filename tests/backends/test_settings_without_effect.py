"""Settings that select nothing, or decide about nothing, are not silent: every setter of every quantizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import QConfigMapping, prepare_fx
from lowbit.backends import get_backend
from lowbit.backends.backend_config import QConfig, get_default_qconfig, get_native_backend_config
from lowbit.backends.backend_config.quantizer import BackendConfigQuantizer
from lowbit.backends.x86_inductor import X86InductorQuantizer
from lowbit.errors import (
    IneffectiveSettingWarning,
    NothingQuantizedWarning,
    PassFailedError,
    UnknownNameError,
)
from lowbit.passes import Annotate, Normalize, PassContext, PassManager, Pipeline
from torch import Tensor, nn
from torch.fx import GraphModule


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.softmax = nn.Linear(8, 8), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.expm1(self.softmax(self.linear(x)))


class Text(nn.Module):
    """``drop`` has no operator in inference, ``spare`` is called nowhere, ``blocks`` only holds others."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(20, 8), nn.Sequential(Block(), Block())
        self.drop, self.spare = nn.Dropout(0.5), nn.Linear(8, 8)

    def forward(self, i: Tensor) -> Tensor:
        return self.drop(self.blocks(self.embedding(i)))


class Linaer(nn.Module):
    """Nearly one of the model's."""


INDICES = (torch.arange(6),)
EXPORTED = torch.export.export(Text().eval(), INDICES).module()
BACKENDS = ("x86_inductor", "xpu_inductor", "arm_inductor", "xnnpack", "embedding")


def annotate(quantizer: Any) -> None:
    assert isinstance(EXPORTED, GraphModule)
    context = PassContext(quantizer=quantizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        PassManager().run(EXPORTED, Pipeline((Normalize(), Annotate())), context)


def setters(quantizer: Any) -> list[str]:
    return [name for name in dir(quantizer) if name.startswith("set_") and name != "set_global"]


# What each setter is given: nothing of the model, operators without a pattern, an operator with one.
GIVEN: dict[str, tuple[Any, Any, Any]] = {
    "set_module_name": ("blocks.0.linaer", "blocks.0.softmax", "blocks.0.linear"),
    "set_module_type": (nn.Conv3d, nn.Softmax, nn.Linear),
    "set_function_type": (F.conv3d, torch.expm1, F.linear),
    "set_object_type": (nn.LSTM, torch.expm1, nn.Linear),
    "set_operator_type": (torch.ops.aten.conv3d.default, torch.ops.aten.expm1, torch.ops.aten.linear.default),
}
NEAREST = {
    "set_module_name": "blocks.0.linear",
    "set_module_type": "torch.nn.modules",
    "set_function_type": "expm1",
    "set_object_type": "torch.nn.modules",
    "set_operator_type": "expm1",
}
CASES = [(name, setter) for name in BACKENDS for setter in setters(get_backend(name).quantizer())]


def given(backend: str, setter: str) -> tuple[Any, Any, Any]:
    found = GIVEN[setter.removesuffix("_qconfig")]
    if backend != "embedding":
        return found
    own = {"set_module_name": "embedding", "set_module_type": nn.Embedding, "set_function_type": F.embedding}
    return found[0], found[1], own[setter]


def test_every_setter_has_a_case() -> None:
    assert {setter.removesuffix("_qconfig") for _, setter in CASES} == set(GIVEN)
    assert len(CASES) == 3 * 6 + 5 + 3


@pytest.mark.parametrize(("backend", "setter"), CASES)
def test_a_setting_of_nothing_is_an_error(backend: str, setter: str) -> None:
    quantizer, config = get_backend(backend).quantizer(), get_backend(backend).presets[0].config()
    for each in (config, None):
        getattr(quantizer, setter)(given(backend, setter)[0], each)
        with pytest.raises(UnknownNameError, match="selects no operator of the model") as caught:
            annotate(quantizer)
        assert NEAREST[setter.removesuffix("_qconfig")] in caught.value.hint


@pytest.mark.parametrize(("backend", "setter"), CASES)
def test_a_setting_of_what_has_no_pattern_is_a_warning(backend: str, setter: str) -> None:
    quantizer, config = get_backend(backend).quantizer(), get_backend(backend).presets[0].config()
    _, without_pattern, with_pattern = given(backend, setter)
    getattr(quantizer, setter)(without_pattern, config)
    with pytest.warns(
        IneffectiveSettingWarning, match="changes nothing: nothing here has a pattern"
    ) as caught:
        annotate(quantizer)
    assert any(name in str(caught[0].message) for name in ("softmax", "expm1"))
    # Float is what it is, and was asked for; and what has a pattern is decided about.
    getattr(quantizer, setter)(without_pattern, None)
    getattr(quantizer, setter)(with_pattern, None)
    annotate(quantizer)


@pytest.mark.parametrize(("backend", "setter"), [(b, s) for b, s in CASES if "module_name" not in s])
def test_a_setting_that_others_outweigh_is_a_warning(backend: str, setter: str) -> None:
    quantizer, config = get_backend(backend).quantizer(), get_backend(backend).presets[0].config()
    getattr(quantizer, setter)(given(backend, setter)[2], None)
    for name in ("blocks", "embedding"):
        quantizer.set_module_name(name, config if (name == "embedding") == (backend == "embedding") else None)
    with pytest.warns(IneffectiveSettingWarning, match="settings that count more .* module name '"):
        annotate(quantizer)


def test_a_module_name_that_longer_ones_outweigh_is_a_warning() -> None:
    quantizer, config = (
        get_backend("x86_inductor").quantizer(),
        get_backend("x86_inductor").presets[0].config(),
    )
    quantizer.set_module_name("blocks", None)
    for block in ("blocks.0", "blocks.1"):
        quantizer.set_module_name(block, config)
    with pytest.warns(
        IneffectiveSettingWarning, match="'blocks' changes nothing: .*'blocks.0', .*'blocks.1'"
    ):
        annotate(quantizer)


@pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")
def test_what_was_decided_about_a_model_that_failed_does_not_count() -> None:
    class Part(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(self.part, nn.Linear):
                return torch.cond(x.sum() > 0, self.part, torch.sin, (x,))
            return self.part(x)

    class FailsOnce(X86InductorQuantizer):
        validated = 0

        def validate(self, model: GraphModule) -> None:
            self.validated += 1
            if self.validated == 1:
                raise RuntimeError("once")

    quantizer = FailsOnce().set_module_name("part", get_backend("x86_inductor").presets[0].config())
    good, idle = (
        torch.export.export(Part(part).eval(), (torch.ones(2, 8),)).module()
        for part in (nn.Linear(8, 8), nn.Softmax(-1))
    )
    assert isinstance(good, GraphModule)
    assert isinstance(idle, GraphModule)
    passes = Pipeline((Normalize(), Annotate()))
    with pytest.raises(PassFailedError, match="once"):
        PassManager().run(good, passes, PassContext(quantizer=quantizer))
    with pytest.warns(IneffectiveSettingWarning, match="'part' changes nothing"):
        PassManager().run(idle, passes, PassContext(quantizer=quantizer))
    PassManager().run(good, passes, PassContext(quantizer=quantizer))


# QConfigMapping: names must be in the model, and every setting must be about something.

A, B = get_default_qconfig("onednn"), get_default_qconfig("qnnpack")


def prepared(mapping: QConfigMapping) -> None:
    prepare_fx(Text().eval(), mapping.set_object_type(nn.Embedding, None), INDICES)


NAMES: dict[str, Callable[[QConfigMapping], QConfigMapping]] = {
    "set_module_name": lambda m: m.set_module_name("blocks.0.linaer", A),
    "set_module_name_regex": lambda m: m.set_module_name_regex("block_[0-9]", A),
    "set_module_name_object_type_order": lambda m: m.set_module_name_object_type_order("blocs", F.relu, 0, A),
}
IDLE: dict[str, tuple[Callable[[QConfigMapping], QConfigMapping], str]] = {
    "a type": (lambda m: m.set_object_type(nn.LSTM, A), "object type LSTM .* nothing is called there"),
    "a type, to be float": (lambda m: m.set_object_type(Linaer, None), "the nearest .* Linear"),
    "a type that holds others": (lambda m: m.set_object_type(nn.Sequential, None), "object type Sequential"),
    "a function": (lambda m: m.set_object_type(F.conv2d, A), "object type conv2d"),
    "a method": (lambda m: m.set_object_type("cumsum", A), "object type cumsum"),
    "an unused module": (lambda m: m.set_module_name("spare", A), "module name 'spare' .* nothing is called"),
    "dropout": (lambda m: m.set_module_name("drop", None), "module name 'drop' .* nothing is called"),
    "a regex of one that holds others": (
        lambda m: m.set_module_name_regex("blocks$", None),
        r"regex 'blocks\$' .* nothing is called there; the nearest where something is: blocks.1",
    ),
    "a function without pattern": (lambda m: m.set_object_type(torch.expm1, A), "no pattern .* expm1"),
    "a call without pattern": (
        lambda m: m.set_module_name_object_type_order("blocks.0", torch.expm1, 0, A),
        "call 0 of expm1 in module 'blocks.0' changes nothing: the backend has no pattern",
    ),
    "a type, outweighed": (
        lambda m: m.set_object_type(nn.Linear, B).set_module_name("blocks", A),
        "object type Linear .* count more .* module name 'blocks'",
    ),
    "a regex, outweighed": (
        lambda m: m.set_module_name_regex("blocks.*", None).set_module_name("blocks", A),
        r"regex 'blocks.\*' .* count more",
    ),
    "a regex behind another": (
        lambda m: m.set_module_name_regex("blocks", A).set_module_name_regex("blocks.*linear", None),
        "regex 'blocks.*linear' .* count more .* regex 'blocks'",
    ),
}


@pytest.mark.parametrize("setter", NAMES)
def test_a_name_that_the_model_does_not_have_is_an_error(setter: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        prepared(NAMES[setter](QConfigMapping().set_global(A)))
    assert "blocks" in caught.value.hint


@pytest.mark.parametrize("case", IDLE)
def test_a_setting_of_a_mapping_that_changes_nothing_is_a_warning(case: str) -> None:
    setting, said = IDLE[case]
    with pytest.warns(IneffectiveSettingWarning, match=said):
        prepared(setting(QConfigMapping().set_global(A)))


def test_settings_that_decide_about_something_and_defaults_are_silent() -> None:
    mapping = lowbit.get_default_qconfig_mapping("onednn").set_module_name_regex("blocks.0", B)
    mapping.set_object_type(nn.Linear, A).set_module_name("blocks.1.softmax", None)
    mapping.set_module_name_object_type_order("blocks.0", nn.Linear, 0, None)
    # Float is what it is, and was asked for.
    prepared(mapping.set_object_type(torch.expm1, None))


def test_every_setter_of_a_mapping_has_a_case() -> None:
    found = {name for name in dir(QConfigMapping) if name.startswith("set_")} - {"set_global"}
    assert found == {*NAMES, "set_object_type"}


def test_a_quantizer_of_a_mapping_by_itself_warns_too() -> None:
    mapping = QConfigMapping().set_global(QConfig(None, None)).set_module_name("nowhere", A)
    with pytest.warns(IneffectiveSettingWarning, match="'nowhere'"):
        annotate(BackendConfigQuantizer(get_native_backend_config(), mapping))
