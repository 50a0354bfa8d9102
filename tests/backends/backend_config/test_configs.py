"""BackendConfig, BackendPatternConfig, DTypeConfig, QConfig and QConfigMapping as data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
    MinMaxObserver,
    ObservationType,
    QConfig,
    QConfigMapping,
)
from lowbit.backends import backend_config as bc
from lowbit.backends.backend_config import MatchAllNode, qconfig
from lowbit.backends.backend_config.observers import default_weight_observer
from lowbit.errors import PatternError, SpecError, UnknownNameError, UnsupportedError
from torch import nn

BUILT_IN = [
    bc.get_native_backend_config,
    bc.get_fbgemm_backend_config,
    bc.get_x86_backend_config,
    bc.get_qnnpack_backend_config,
    bc.get_onednn_backend_config,
    bc.get_executorch_backend_config,
]
INT8 = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float)


class Fused(nn.Sequential):
    """A fused module of a user's."""


def fuse(is_qat: bool, conv: nn.Module, relu: nn.Module) -> nn.Module:
    return Fused(conv, relu)


def full() -> BackendPatternConfig:
    return (
        BackendPatternConfig((nn.Conv2d, nn.ReLU))
        .set_observation_type(ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT)
        .set_dtype_configs([INT8, DTypeConfig(is_dynamic=True)])
        .set_root_module(nn.Conv2d)
        .set_qat_module(nn.Conv1d)
        .set_reference_quantized_module(nn.Conv3d)
        .set_fused_module(Fused)
        .set_fuser_method(fuse)
    )


def test_a_dtype_config_with_and_without_constraints() -> None:
    bounds = DTypeWithConstraints(torch.quint8, quant_min_lower_bound=0, quant_max_upper_bound=255)
    config = DTypeConfig(input_dtype=bounds, output_dtype=torch.quint8)
    assert config.input_dtype is config.output_dtype is torch.quint8
    assert config.input_dtype_with_constraints is bounds
    assert config.output_dtype_with_constraints == DTypeWithConstraints(torch.quint8)
    assert config.weight_dtype is config.bias_dtype is config.is_dynamic is None
    assert config.to_dict() == {
        "input_dtype": bounds,
        "output_dtype": DTypeWithConstraints(torch.quint8),
    }
    assert DTypeConfig.from_dict(config.to_dict()) == config
    assert DTypeConfig.from_dict(INT8.to_dict()) == INT8 != config
    # Constraints survive without a dtype too.
    bounds_only = DTypeConfig(DTypeWithConstraints(quant_min_lower_bound=0))
    assert DTypeConfig.from_dict(bounds_only.to_dict()) == bounds_only


def test_a_pattern_config_survives_its_dictionary() -> None:
    written = full().to_dict()
    assert written == {
        "pattern": (nn.Conv2d, nn.ReLU),
        "observation_type": ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT,
        "dtype_configs": [INT8.to_dict(), {"is_dynamic": True}],
        "root_module": nn.Conv2d,
        "qat_module": nn.Conv1d,
        "reference_quantized_module_for_root": nn.Conv3d,
        "fused_module": Fused,
        "fuser_method": fuse,
    }
    assert BackendPatternConfig.from_dict(written).to_dict() == written
    nested = BackendPatternConfig().set_pattern_complex_format((torch.add, nn.Conv2d, MatchAllNode)).to_dict()
    assert nested["pattern_complex_format"] == (torch.add, nn.Conv2d, MatchAllNode)
    assert BackendPatternConfig.from_dict(nested).to_dict() == nested


@pytest.mark.parametrize("make", BUILT_IN, ids=lambda make: make.__name__)
def test_a_backend_config_survives_its_dictionary(make: Callable[[], BackendConfig]) -> None:
    config = make()
    again = BackendConfig.from_dict(config.to_dict())
    assert again.name == config.name
    assert again.to_dict() == config.to_dict()
    assert len(config.configs) > 40


def test_the_later_config_of_a_pattern_stands_in_the_place_of_the_first() -> None:
    first, other, second = (BackendPatternConfig(p) for p in (nn.Linear, F.linear, nn.Linear))
    config = BackendConfig("mine").set_backend_pattern_configs([first, other])
    config.set_backend_pattern_config(second)
    assert config.configs == [second, other]
    config.configs.clear()
    assert len(config.configs) == 2
    assert config.set_name("yours").name == "yours"


def test_a_sequence_and_its_nested_form_are_one_pattern() -> None:
    sequence = BackendPatternConfig((nn.Conv2d, nn.BatchNorm2d, nn.ReLU))
    nested = BackendPatternConfig().set_pattern_complex_format((nn.ReLU, (nn.BatchNorm2d, nn.Conv2d)))
    assert BackendConfig().set_backend_pattern_configs([sequence, nested]).configs == [nested]


def test_a_qconfig_mapping_survives_its_dictionary() -> None:
    one, two = qconfig.default_qconfig, qconfig.default_dynamic_qconfig
    mapping = (
        QConfigMapping()
        .set_global(one)
        .set_object_type(nn.Linear, two)
        .set_object_type("reshape", None)
        .set_module_name_regex("foo.*bar.*conv[0-9]+", one)
        .set_module_name_regex("foo.*", two)
        .set_module_name("module1", one)
        .set_module_name_object_type_order("foo.bar", F.linear, 0, two)
    )
    assert mapping.to_dict() == {
        "": one,
        "object_type": [(nn.Linear, two), ("reshape", None)],
        "module_name_regex": [("foo.*bar.*conv[0-9]+", one), ("foo.*", two)],
        "module_name": [("module1", one)],
        "module_name_object_type_order": [("foo.bar", F.linear, 0, two)],
    }
    assert QConfigMapping.from_dict(mapping.to_dict()) == mapping
    assert QConfigMapping.from_dict({}) == QConfigMapping()


def test_a_regex_set_again_keeps_its_place() -> None:
    mapping = QConfigMapping().set_module_name_regex("a.*", None).set_module_name_regex("b.*", None)
    mapping.set_module_name_regex("a.*", qconfig.default_qconfig)
    assert list(mapping.module_name_regex_qconfigs) == ["a.*", "b.*"]
    assert mapping.module_name_regex_qconfigs["a.*"] == qconfig.default_qconfig


def test_qconfigs_are_equal_by_value() -> None:
    def make() -> QConfig:
        return QConfig(MinMaxObserver.with_args(quant_min=0, quant_max=127), default_weight_observer)

    assert make() == make() == qconfig.default_qconfig
    assert make() != qconfig.default_per_channel_qconfig


@pytest.mark.parametrize(
    ("backend", "reduces", "per_channel"),
    [("x86", True, True), ("fbgemm", True, True), ("onednn", False, True), ("qnnpack", False, False)],
)
def test_default_qconfigs(backend: str, reduces: bool, per_channel: bool) -> None:
    for config in (
        bc.get_default_qconfig(backend),
        bc.get_default_qat_qconfig(backend, version=0),
        bc.get_default_qat_qconfig(backend),
    ):
        activation, weight = config.activation(), config.weight()
        assert (activation.dtype, activation.quant_min, activation.quant_max) == (
            torch.uint8,
            0,
            127 if reduces else 255,
        )
        assert (weight.dtype, weight.quant_min, weight.quant_max) == (torch.int8, -128, 127)
        assert (weight.qscheme is torch.per_channel_symmetric) == per_channel
    mapping = bc.get_default_qconfig_mapping(backend)
    assert mapping.global_qconfig == bc.get_default_qconfig(backend)
    transposed = mapping.object_type_qconfigs[nn.ConvTranspose2d]
    assert transposed is not None
    assert (transposed.weight().qscheme is torch.per_channel_symmetric) == (backend == "onednn")


@pytest.mark.parametrize(
    ("misuse", "error", "found"),
    [
        (lambda: DTypeConfig(input_dtype=8), SpecError, "8"),
        (lambda: DTypeConfig(bias_dtype="float"), SpecError, "bias_dtype"),
        (lambda: DTypeConfig.from_dict({"input_type": torch.quint8}), UnknownNameError, "input_type"),
        (lambda: DTypeWithConstraints(quant_min_lower_bound=1, quant_max_upper_bound=0), SpecError, "above"),
        (lambda: DTypeWithConstraints(scale_exact_match=0.5), SpecError, "zero_point_exact_match"),
        (lambda: BackendPatternConfig((nn.Conv2d,)), PatternError, "1 part"),
        (lambda: BackendPatternConfig((nn.Conv2d, nn.ReLU) * 2), PatternError, "4 part"),
        (lambda: BackendPatternConfig(nn.Linear(1, 1)), PatternError, "Linear"),
        (lambda: BackendPatternConfig(3), PatternError, "3"),
        (
            lambda: BackendPatternConfig(nn.Linear).set_pattern_complex_format(nn.Linear),
            PatternError,
            "already",
        ),
        (lambda: BackendPatternConfig(nn.Linear).set_observation_type(1), SpecError, "1"),
        (lambda: BackendPatternConfig(nn.Linear).add_dtype_config(torch.quint8), SpecError, "quint8"),
        (lambda: BackendPatternConfig(nn.Linear).set_root_module(nn.Linear(1, 1)), SpecError, "root_module"),
        (lambda: BackendPatternConfig(nn.Linear).set_fuser_method(3), SpecError, "3"),
        (lambda: BackendPatternConfig.from_dict({"patern": nn.Linear}), UnknownNameError, "patern"),
        (lambda: BackendPatternConfig.from_dict([]), SpecError, "dictionary"),
        (lambda: BackendConfig().set_backend_pattern_config(BackendPatternConfig()), PatternError, "pattern"),
        (lambda: BackendConfig().set_backend_pattern_config(nn.Linear), SpecError, "Linear"),
        (lambda: BackendConfig.from_dict({"config": []}), UnknownNameError, "config"),
        (lambda: QConfig(MinMaxObserver(), default_weight_observer), SpecError, "activation"),
        (lambda: QConfig(MinMaxObserver, 8), SpecError, "weight"),
        (lambda: QConfigMapping().set_global(MinMaxObserver), SpecError, "MinMaxObserver"),
        (lambda: QConfigMapping().set_object_type(nn.Linear(1, 1), None), SpecError, "Linear"),
        (lambda: QConfigMapping().set_module_name_regex("(", None), SpecError, "regular expression"),
        (
            lambda: QConfigMapping().set_module_name_object_type_order("", nn.Linear, -1, None),
            SpecError,
            "-1",
        ),
        (lambda: QConfigMapping.from_dict({"object_types": []}), UnknownNameError, "object_types"),
        (lambda: QConfigMapping.from_dict({"object_type": {nn.Linear: None}}), SpecError, "object_type"),
        (lambda: bc.get_default_qconfig("x68"), UnknownNameError, "x68"),
        (lambda: bc.get_default_qconfig(version=1), UnsupportedError, "version 1"),
        (lambda: bc.get_default_qat_qconfig_mapping(version=2), UnsupportedError, "version 2"),
        (qconfig.reuse_input_observer, UnsupportedError, "observes nothing"),
    ],
)
def test_misuse_is_an_error_that_says_what_to_do(misuse, error: type, found: str) -> None:
    with pytest.raises(error) as raised:
        misuse()
    assert found in raised.value.found
    assert raised.value.hint
