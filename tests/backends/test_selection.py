"""Which configuration applies where: precedence, float parts, and settings that select nothing."""

from __future__ import annotations

import operator

import attrs
import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit.backends.selection import operator_of_function
from lowbit.errors import NothingQuantizedWarning, SpecError, UnknownNameError
from lowbit.ir.annotation import is_annotated
from lowbit.ir.location import module_path
from lowbit.passes import Annotate, Normalize, PassContext
from torch import nn

CONFIG = lowbit.get_default_x86_inductor_quantization_config()
OTHER = lowbit.get_default_x86_inductor_quantization_config(reduce_range=True)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Block()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def quantized(quantizer, strict=False):
    """Module path of each annotated conv and linear → the quant_max of its input."""
    exported = torch.export.export(Net().eval(), (torch.randn(1, 4, 6, 6),), strict=strict).module()
    pipeline = lowbit.Pipeline((Normalize(), Annotate()))
    graph = lowbit.PassManager().run(exported, pipeline, PassContext(quantizer=quantizer)).graph
    weighted = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    found = {}
    for node in graph.nodes:
        if node.target in weighted and is_annotated(node):
            spec = node.meta["quantization_annotation"].input_qspec_map[node.args[0]]
            found[module_path(node.meta)] = spec.quant_max
    return found


@pytest.fixture
def quantizer():
    return lowbit.X86InductorQuantizer()


@pytest.mark.parametrize("strict", [False, True])
def test_global_reaches_everything(quantizer, strict):
    assert quantized(quantizer.set_global(CONFIG), strict) == {
        "first.conv": 255,
        "blocks.0.conv": 255,
        "blocks.1.conv": 255,
        "head": 255,
    }


@pytest.mark.parametrize("strict", [False, True])
def test_a_module_name_selects_what_is_under_it_and_nothing_beside_it(quantizer, strict):
    quantizer.set_global(CONFIG).set_module_name_qconfig("blocks.0", None)
    assert quantized(quantizer, strict) == {"first.conv": 255, "blocks.1.conv": 255, "head": 255}


def test_the_longer_of_two_module_names_wins(quantizer):
    quantizer.set_module_name_qconfig("blocks", CONFIG).set_module_name_qconfig("blocks.1", OTHER)
    assert quantized(quantizer) == {"blocks.0.conv": 255, "blocks.1.conv": 127}


def test_a_module_type_selects_modules_of_ones_own_too(quantizer):
    assert quantized(quantizer.set_module_type_qconfig(Block, CONFIG)) == {
        "first.conv": 255,
        "blocks.0.conv": 255,
        "blocks.1.conv": 255,
    }


def test_a_function_type_selects_calls_inside_modules(quantizer):
    assert quantized(quantizer.set_function_type_qconfig(F.linear, CONFIG)) == {"head": 255}


# That of the function counts less than all others.
@pytest.mark.filterwarnings("ignore::lowbit.errors.IneffectiveSettingWarning")
def test_name_wins_over_module_type_over_function_type_over_global(quantizer):
    quantizer.set_global(OTHER)
    quantizer.set_function_type_qconfig(F.conv2d, None)
    quantizer.set_module_type_qconfig(Block, CONFIG)
    quantizer.set_module_name_qconfig("first", OTHER)
    assert quantized(quantizer) == {
        "first.conv": 127,
        "blocks.0.conv": 255,
        "blocks.1.conv": 255,
        "head": 127,
    }


@pytest.mark.parametrize("module", ["a", "a.module.with.a.longer.name.than.those.of.torch"])
def test_the_innermost_of_two_module_types_wins(quantizer, monkeypatch, module):
    monkeypatch.setattr(Block, "__module__", module)
    quantizer.set_module_type_qconfig(nn.Conv2d, OTHER).set_module_type_qconfig(Block, CONFIG)
    quantizer.set_module_type_qconfig(Net, None)
    assert quantized(quantizer) == {"first.conv": 127, "blocks.0.conv": 127, "blocks.1.conv": 127}


def test_operators_of_a_pattern_follow_the_first_unless_a_setting_says_otherwise(quantizer):
    exported = torch.export.export(Block().eval(), (torch.randn(1, 4, 6, 6),)).module()
    pipeline = lowbit.Pipeline((Normalize(), Annotate()))

    def relu_is_annotated():
        graph = lowbit.PassManager().run(exported, pipeline, PassContext(quantizer=quantizer)).graph
        (relu,) = graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
        return is_annotated(relu)

    quantizer.set_module_type_qconfig(nn.Conv2d, CONFIG)
    assert relu_is_annotated()
    quantizer.set_module_type_qconfig(nn.ReLU, None)
    assert not relu_is_annotated()


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        (lambda q: q.set_module_name_qconfig("blocks.0.conw", CONFIG), "blocks.0.conv"),
        (lambda q: q.set_module_type_qconfig(nn.Conv3d, CONFIG), "torch.nn.modules.conv.Conv2d"),
        (lambda q: q.set_function_type_qconfig(F.conv3d, CONFIG), "conv2d"),
    ],
)
def test_a_setting_that_selects_nothing_is_an_error_with_the_nearest_name(quantizer, setting, near):
    setting(quantizer.set_global(CONFIG))
    with pytest.raises(UnknownNameError, match="selects no operator") as caught:
        quantized(quantizer)
    assert near in str(caught.value)


def test_mixed_modes_are_refused(quantizer):
    training = attrs.evolve(CONFIG, is_qat=True)
    dynamic = attrs.evolve(CONFIG, input_activation=attrs.evolve(CONFIG.input_activation, is_dynamic=True))
    quantizer.set_global(CONFIG)
    with pytest.raises(SpecError, match="static QAT configuration is mixed with a static PTQ"):
        quantizer.set_module_name_qconfig("head", training)
    with pytest.raises(SpecError, match="dynamic PTQ configuration is mixed with a static PTQ"):
        quantizer.set_module_type_qconfig(nn.Linear, dynamic)


@pytest.mark.parametrize(
    "setting",
    [
        lambda q: q.set_global("int8"),
        lambda q: q.set_function_type_qconfig(F.linear, CONFIG.input_activation),
        lambda q: q.set_module_type_qconfig(nn.Linear(2, 2), CONFIG),
        lambda q: q.set_module_name_qconfig(nn.Linear, CONFIG),
    ],
)
def test_what_is_no_setting_is_refused_at_once(quantizer, setting):
    with pytest.raises(SpecError, match="is no"):
        setting(quantizer)


def test_a_setting_that_is_replaced_does_not_count(quantizer):
    training = attrs.evolve(CONFIG, is_qat=True)
    quantizer.set_global(CONFIG).set_global(training)
    quantizer.set_module_name_qconfig("head", training).set_module_name_qconfig("head", None)
    quantizer.set_global(None).set_module_name_qconfig("head", CONFIG)
    assert quantized(quantizer) == {"head": 255}


def test_without_any_setting_nothing_is_quantized(quantizer):
    with pytest.warns(NothingQuantizedWarning):
        assert quantized(quantizer) == {}


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.conv2d, "conv2d"),
        (F.max_pool2d, "max_pool2d"),
        (F.relu_, "relu"),
        (torch.add, "add"),
        (operator.add, "add"),
        (operator.iadd, "add"),
        (operator.truediv, "div"),
        (torch.Tensor.add_, "add"),
    ],
)
def test_functions_are_known_by_their_operator(function, name):
    assert operator_of_function(function) == name


def test_what_is_not_a_torch_function_is_refused():
    with pytest.raises(UnknownNameError, match="not a torch function"):
        operator_of_function(lambda x: x)


class Clamps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.hardtanh(self.second(F.relu6(self.first(x))), -2.0, 2.0)


@pytest.mark.parametrize(
    ("function", "alone"), [(F.relu6, "first"), (F.hardtanh, "second")], ids=["relu6", "hardtanh"]
)
def test_functions_of_one_operator_are_told_apart(function, alone) -> None:
    """Both are aten.hardtanh in canonical graphs."""
    exported = torch.export.export(Clamps().eval(), (torch.randn(2, 8),)).module()
    quantizer = lowbit.X86InductorQuantizer().set_global(CONFIG)
    quantizer.set_function_type_qconfig(function, None)
    prepared = lowbit.prepare_pt2e(exported, quantizer)
    # The linear before the one that is left float is quantized alone.
    fused = {
        d.module for d in lowbit.decisions(prepared) if d.reason == "linear-hardtanh" and "linear" in d.target
    }
    assert fused == {"first", "second"} - {alone}
