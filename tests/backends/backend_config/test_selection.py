"""Which QConfig applies where: the precedence of a QConfigMapping."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import MinMaxObserver, QConfig, QConfigMapping, prepare_fx
from lowbit.backends.backend_config import get_native_backend_config
from lowbit.backends.backend_config.observers import default_weight_observer
from lowbit.backends.backend_config.rules import read_rules
from lowbit.backends.backend_config.selection import select_qconfigs
from lowbit.backends.backend_config.units import Unit, key_of, read_units
from lowbit.errors import UnknownNameError
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(2, 2, 1)
        self.conv1 = nn.Conv2d(2, 2, 1)
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.relu(self.conv0(x))))
        return F.linear(F.linear(x, self.weight), self.weight)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.foo = nn.Sequential(Block(), Block())
        self.conv0 = nn.Conv2d(2, 2, 1)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(F.relu(self.conv0(self.foo(x)))))


def qconfig(number: int) -> QConfig:
    """QConfigs that can be told apart."""
    return QConfig(MinMaxObserver.with_args(eps=2.0**-number), default_weight_observer)


A, B, C, D, E = map(qconfig, range(5))
CLASSES = read_rules(get_native_backend_config()).classes
UNITS = read_units(torch.export.export(Model().eval(), (torch.randn(1, 2, 4, 4),)).module().graph, CLASSES)


def chosen(mapping: QConfigMapping) -> list[tuple[str, str, QConfig | None]]:
    """Module, name of the operator and QConfig of each unit, in order."""
    return [(u.module, u.nodes[0].name, q) for u, q in select_qconfigs(UNITS, mapping).items()]


def of(mapping: QConfigMapping) -> dict[str, QConfig | None]:
    return {name: q for _, name, q in chosen(mapping)}


def test_the_units_of_the_model() -> None:
    assert [(unit.module, unit.nodes[0].name) for unit in UNITS] == [
        ("foo.0.conv0", "conv2d"),
        ("foo.0", "relu"),
        ("foo.0.conv1", "conv2d_1"),
        ("foo.0", "relu_1"),
        ("foo.0", "linear"),
        ("foo.0", "linear_1"),
        ("foo.1.conv0", "conv2d_2"),
        ("foo.1", "relu_2"),
        ("foo.1.conv1", "conv2d_3"),
        ("foo.1", "relu_3"),
        ("foo.1", "linear_2"),
        ("foo.1", "linear_3"),
        ("conv0", "conv2d_4"),
        ("", "relu_4"),
        ("linear", "linear_4"),
        ("linear", "linear_5"),
    ]


def test_each_setting_wins_over_those_before_it() -> None:
    mapping = QConfigMapping()
    name = "conv2d_3"
    assert of(mapping)[name] is None
    for setting, expected in (
        (lambda: mapping.set_global(A), A),
        (lambda: mapping.set_object_type(nn.Conv2d, B), B),
        (lambda: mapping.set_module_name_regex(r"foo\.1.*", C), C),
        (lambda: mapping.set_module_name("foo.1", D), D),
        (lambda: mapping.set_module_name_object_type_order("foo.1", nn.Conv2d, 1, E), E),
    ):
        setting()
        assert of(mapping)[name] == expected
    # What each selects, and no more.
    assert of(mapping) == {
        **{f"conv2d{i}": B for i in ("", "_1", "_4")},
        "relu": A,
        "relu_1": A,
        "linear": A,
        "linear_1": A,
        "conv2d_2": D,
        "relu_2": D,
        "conv2d_3": E,
        "relu_3": D,
        "linear_2": D,
        "linear_3": D,
        "relu_4": A,
        "linear_4": A,
        "linear_5": A,
    }


def test_the_order_of_setting_them_does_not_matter() -> None:
    mapping = QConfigMapping().set_module_name("foo.1", D).set_module_name_regex("foo.1.*", C)
    mapping.set_object_type(nn.Conv2d, B).set_global(A)
    assert of(mapping)["conv2d_3"] == D


def test_none_is_a_setting_too() -> None:
    mapping = QConfigMapping().set_global(A).set_module_name("foo.1", None)
    assert {module for module, _, q in chosen(mapping) if q is None} == {
        "foo.1",
        "foo.1.conv0",
        "foo.1.conv1",
    }


def test_the_empty_name_is_the_whole_model() -> None:
    mapping = QConfigMapping().set_global(A).set_object_type(nn.Conv2d, B)
    mapping.set_module_name("", C).set_module_name("foo.1", D)
    assert {(module.startswith("foo.1"), q) for module, _, q in chosen(mapping)} == {(True, D), (False, C)}


def test_the_handbooks_regexes() -> None:
    class Bar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv0, self.linear = nn.Conv2d(2, 2, 1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv0(x))

    model = nn.Module()
    model.foo = nn.ModuleDict({"bar": Bar(), "baz": nn.ModuleDict({"relu": nn.ReLU()})})
    model.forward = lambda x: model.foo["baz"]["relu"](model.foo["bar"](x))
    exported = torch.export.export(model, (torch.randn(1, 2, 4, 4),), strict=False).module()
    mapping = (
        QConfigMapping()
        .set_module_name_regex("foo.*bar.*conv[0-9]+", A)
        .set_module_name_regex("foo.*bar.*", B)
        .set_module_name_regex("foo.*", C)
    )
    found = select_qconfigs(read_units(exported.graph, CLASSES), mapping)
    assert {u.module: q for u, q in found.items()} == {
        "foo.bar.conv0": A,
        "foo.bar.linear": B,
        "foo.baz.relu": C,
    }


def test_functions_by_any_of_their_names_and_by_the_class_around_them() -> None:
    for name in (F.relu, torch.relu, "relu", "relu_"):
        mapping = QConfigMapping().set_object_type(name, A)
        assert [n for n, q in of(mapping).items() if q] == ["relu", "relu_1", "relu_2", "relu_3", "relu_4"]
    mapping.set_object_type(Block, B)
    assert of(mapping)["relu"] == of(mapping)["linear"] == B
    assert of(mapping)["relu_4"] == A
    assert of(mapping)["conv2d"] is None
    # Modules and functions are told apart.
    assert of(QConfigMapping().set_object_type(F.linear, A))["linear_4"] is None
    assert of(QConfigMapping().set_object_type(nn.Linear, A))["linear"] is None


def test_calls_are_counted_in_their_module() -> None:
    mapping = QConfigMapping().set_module_name_object_type_order("foo.0", F.linear, 1, A)
    mapping.set_module_name_object_type_order("", nn.Linear, 1, B)
    assert {n: q for n, q in of(mapping).items() if q} == {"linear_1": A, "linear_5": B}


NAMES = ["", "foo", "foo.0", "foo.1", "foo.1.conv0", "conv0", "linear"]
TYPES = [nn.Conv2d, nn.Linear, Block, F.linear, F.relu, nn.ReLU]
REGEXES = ["foo.*", r"foo\.1", ".*conv[01]", "linear", ""]
QCONFIGS = st.sampled_from([None, A, B, C, D, E])


def strongest(unit: Unit, mapping: QConfigMapping, counts: Counter) -> QConfig | None:
    """The handbook's list of settings, from the strongest to the weakest."""
    for (name, kind, index), q in reversed(mapping.module_name_object_type_order_qconfigs.items()):
        if name == unit.scope and key_of(kind) in unit.keys and counts[name, key_of(kind)] == index:
            return q
    around = [unit.module]
    while "." in around[-1]:
        around.append(around[-1].rpartition(".")[0])
    for name in (*around, ""):
        if name in mapping.module_name_qconfigs:
            return mapping.module_name_qconfigs[name]
    for regex, q in mapping.module_name_regex_qconfigs.items():
        if re.match(regex, unit.module):
            return q
    for key in (unit.scope_key, *unit.keys):
        for kind, q in reversed(mapping.object_type_qconfigs.items()):
            if key_of(kind) == key:
                return q
    return mapping.global_qconfig


@settings(max_examples=200)
@given(
    QCONFIGS,
    st.lists(st.tuples(st.sampled_from(TYPES), QCONFIGS), max_size=4),
    st.lists(st.tuples(st.sampled_from(REGEXES), QCONFIGS), max_size=3),
    st.lists(st.tuples(st.sampled_from(NAMES), QCONFIGS), max_size=3),
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(TYPES), st.integers(0, 2), QCONFIGS), max_size=3
    ),
)
def test_precedence_of_any_settings(everywhere, types, regexes, names, orders) -> None:
    mapping = QConfigMapping().set_global(everywhere)
    for row in types:
        mapping.set_object_type(*row)
    for row in regexes:
        mapping.set_module_name_regex(*row)
    for row in names:
        mapping.set_module_name(*row)
    for row in orders:
        mapping.set_module_name_object_type_order(*row)
    found = select_qconfigs(UNITS, mapping)
    counts: Counter = Counter()
    for unit in UNITS:
        assert found[unit] == strongest(unit, mapping, counts)
        counts.update((unit.scope, key) for key in unit.keys)


@pytest.mark.parametrize(
    ("mapping", "nearest"),
    [
        (QConfigMapping().set_module_name("foo.0.conv2", A), "foo.0.conv0"),
        (QConfigMapping().set_module_name_object_type_order("fooo", F.linear, 0, A), "foo"),
        (QConfigMapping().set_module_name_regex("bar.*", A), "foo"),
    ],
)
def test_a_name_that_the_model_does_not_have(mapping: QConfigMapping, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as raised:
        prepare_fx(Model().eval(), mapping, (torch.randn(1, 2, 4, 4),))
    assert nearest in raised.value.hint


@pytest.mark.parametrize(("name", "kind", "found"), [("", nn.Linear, 2), ("foo", nn.Conv2d, 0)])
def test_a_call_that_the_model_does_not_have(name: str, kind: type[nn.Module], found: int) -> None:
    mapping = QConfigMapping().set_global(A).set_module_name_object_type_order(name, kind, 2, None)
    with pytest.raises(UnknownNameError, match=f"module '{name}', which has {found} of them"):
        prepare_fx(Model().eval(), mapping, (torch.randn(1, 2, 4, 4),))


def test_a_function_that_is_not_torchs() -> None:
    with pytest.raises(UnknownNameError, match="not a torch function"):
        prepare_fx(Model().eval(), QConfigMapping().set_object_type(of, A), (torch.randn(1, 2, 4, 4),))
