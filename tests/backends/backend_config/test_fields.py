"""The fields of a BackendPatternConfig that name modules: which have an effect, and which are only kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowbit import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    QConfigMapping,
    convert_fx,
    decisions,
    move_exported_model_to_eval,
    prepare_fx,
    prepare_qat_fx,
)
from lowbit.backends.backend_config import get_default_qat_qconfig_mapping, get_default_qconfig
from lowbit.errors import NothingQuantizedWarning
from torch import nn
from torch.fx import GraphModule

INT8 = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float)
X = torch.linspace(-2, 3, 24).reshape(4, 6)
Set = Callable[[BackendPatternConfig], Any]


class Other(nn.Module):
    """Must never be made."""

    def __init__(self) -> None:
        raise AssertionError("made")


def never(*args: object) -> None:
    raise AssertionError("called")


def config(setting: Set = lambda config: None, *, linear: bool = True, fused: bool = False) -> BackendConfig:
    """Linear with ReLU, with ``setting``; linear by itself, and the module that both become."""
    both = BackendPatternConfig((nn.Linear, nn.ReLU)).add_dtype_config(INT8)
    setting(both)
    made = BackendConfig("mine").set_backend_pattern_config(both)
    if linear:
        made.set_backend_pattern_config(BackendPatternConfig(nn.Linear).add_dtype_config(INT8))
    if fused:
        made.set_backend_pattern_config(BackendPatternConfig(Other).add_dtype_config(INT8))
    return made


def converted(backend_config: BackendConfig, *, is_qat: bool = False) -> GraphModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    if is_qat:
        mapping = get_default_qat_qconfig_mapping("onednn")
        prepared = prepare_qat_fx(model.train(), mapping, (X,), backend_config=backend_config)
    else:
        mapping = QConfigMapping().set_global(get_default_qconfig("onednn"))
        prepared = prepare_fx(model.eval(), mapping, (X,), backend_config=backend_config)
    prepared(X)
    return convert_fx(move_exported_model_to_eval(prepared) if is_qat else prepared)


def reasons(model: GraphModule) -> list[str]:
    return [d.reason for d in decisions(model)]


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.parametrize(
    "setting",
    [
        lambda c: c.set_qat_module(Other),
        lambda c: c.set_reference_quantized_module(Other),
        lambda c: c.set_root_module(Other),
    ],
    ids=["qat_module", "reference_quantized_module", "root_module"],
)
def test_what_is_only_kept(setting: Set, is_qat: bool) -> None:
    without, with_it = converted(config(), is_qat=is_qat), converted(config(setting), is_qat=is_qat)
    assert str(with_it.graph) == str(without.graph)
    assert torch.equal(with_it(X), without(X))
    assert reasons(with_it) == ["linear-relu"] * 2
    made = config(setting)
    kept = BackendConfig.from_dict(made.to_dict())
    assert kept.to_dict() == made.to_dict()
    assert Other in made.configs[0].to_dict().values()


def test_a_fuser_method_says_that_the_pattern_runs_as_another_module() -> None:
    def fuses(c: BackendPatternConfig) -> None:
        c.set_fuser_method(never)

    def fuses_into_root(c: BackendPatternConfig) -> None:
        c.set_fuser_method(never).set_root_module(nn.Linear)

    def fuses_into_other(c: BackendPatternConfig) -> None:
        c.set_fuser_method(never).set_fused_module(Other).set_root_module(nn.Linear)

    with pytest.warns(NothingQuantizedWarning):
        assert reasons(converted(config(fuses, linear=False))) == ["fused-only"] * 2
    assert reasons(converted(config(fuses_into_root))) == ["linear-relu"] * 2
    # The config of the fused module counts, and where there is none nothing does.
    assert reasons(converted(config(fuses_into_other, fused=True))) == ["linear-relu"] * 2
    with pytest.warns(NothingQuantizedWarning):
        assert reasons(converted(config(fuses_into_other))) == ["fused-only"] * 2


@pytest.mark.parametrize(
    "setter", ["set_qat_module", "set_reference_quantized_module", "set_root_module", "set_fuser_method"]
)
def test_what_a_field_does_is_said_where_it_is_set(setter: str) -> None:
    said = " ".join((getattr(BackendPatternConfig, setter).__doc__ or "").split())
    assert any(
        words in said for words in ("nothing here is done with it", "has an effect where", "not called here")
    )
