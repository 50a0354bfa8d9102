"""``explain``: by node, module and source line, at every stage."""

from __future__ import annotations

import copy
import json

import attrs
import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    explain,
    get_default_x86_inductor_quantization_config,
    prepare_pt2e,
)
from lowbit.backends import get_backend
from lowbit.errors import StageError, UnknownNameError
from lowbit.ir.meta import ORIGIN_KEY
from lowbit.ir.reasons import REASONS
from lowbit.ir.text import parse, to_tensors, to_text
from torch import nn


def only(model, about):
    (operator,) = explain(model, about).operators
    return operator


def test_a_whole_model(stages) -> None:
    explained = explain(stages.prepared)
    assert [each.node for each in explained.operators][:3] == ["conv2d", "batch_norm", "add"]
    assert (explained.coverage.quantized, explained.coverage.total) == (3, 11)
    text = str(explained)
    assert text.startswith("3 of 11 float operators quantized for x86_inductor; 8 left float: ")
    # Every reason once, with what to do, and every operator below its reason.
    for reason in {each.reason for each in explained.operators if each.status == "float"}:
        assert text.count(f"\n{reason}: {REASONS[reason].meaning}\n  do: ") == 1
    assert all(f"%{each.node} (" in text for each in explained.operators if each.status == "float")


def test_in_a_whole_model_neighbours_that_decide_are_named(stages) -> None:
    whole = explain(stages.prepared)
    pointing = [each for each in whole.operators if each.because]
    assert [each.node for each in pointing] == ["max_pool2d", "cat", "mean"]
    for each in pointing:
        (decides,) = each.because
        assert f"%{each.node} ({each.target}): {decides}" in str(whole) or each.module
        assert decides.node == only(stages.prepared, each.node).because[0].node
        assert decides.source
        assert each.advice == f"as for %{decides.node}: {REASONS[decides.reason].advice}"


def test_a_folded_batch_norm_is_part_of_its_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    exported = torch.export.export(model, (torch.randn(2, 3, 4, 4),)).module()
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(preset))
    first = "%batch_norm in 1 was folded into the weight and bias of %conv2d, by the pass fold-batch-norm"
    for stage in (prepared, copy.deepcopy(prepared), parse(to_text(prepared), to_tensors(prepared))):
        for about in ("1", "batch_norm", "%batch_norm"):
            found = explain(stage, about)
            assert [each.node for each in found.operators] == ["conv2d"]
            assert attrs.asdict(found)["gone"][0]["into"] == "conv2d"
            assert str(found).startswith(
                f"{first}\n\n%conv2d (aten.conv2d.default) is quantized as conv2d-relu\n"
            )
    assert explain(prepared, "0").gone == ()


class WithoutEffect(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.idle, self.first = nn.Tanh(), nn.Dropout(0.5)

    def forward(self, x):
        y = self.drop(self.bn(self.conv(self.first(x))))
        self.idle(y)
        return y.detach()


def prepared_for_x86(model: nn.Module, *inputs: torch.Tensor):
    exported = torch.export.export(model.eval(), inputs).module()
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    return prepare_pt2e(exported, X86InductorQuantizer().set_global(preset))


def test_what_a_pass_took_out_is_known_with_why() -> None:
    prepared = prepared_for_x86(WithoutEffect(), torch.randn(2, 3, 4, 4))
    for stage in (prepared, parse(to_text(prepared), to_tensors(prepared))):
        found = explain(stage, "drop")
        # The BatchNorm before the dropout is part of the convolution, so that stands for both.
        assert [(gone.node, gone.why, gone.into, gone.by) for gone in found.gone] == [
            ("dropout_1", "identity", "conv2d", "normalize")
        ]
        assert [each.node for each in found.operators] == ["conv2d"]
        (gone,) = explain(stage, "idle").gone
        assert str(gone) == "%tanh in idle was left out by the pass normalize: nothing reads its result"
        assert gone.source.endswith(": self.idle(y)")
        line = gone.source.partition(": ")[0].rpartition("/")[2]
        assert [each.node for each in explain(stage, line).gone] == ["tanh"]
        # What stands for it may be an input, of which there is no more to say.
        assert str(explain(stage, "first")) == (
            "%dropout in first was left out by the pass normalize: in inference it computes nothing, so %x "
            "stands for it"
        )
        assert [each.why for each in explain(stage, "detach").gone] == ["identity"]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x):
        return torch.cond(x.sum() > 0, self.folded, self.plain, (x,))

    def folded(self, x):
        return torch.relu(self.drop(self.bn(self.conv(x))))

    def plain(self, x):
        return self.conv(x) + 1


def test_what_a_pass_took_out_of_a_body_is_known() -> None:
    prepared = prepared_for_x86(Branches(), torch.randn(2, 3, 4, 4))
    (gone,) = explain(prepared, "true_graph_0.batch_norm").gone
    assert (gone.why, gone.into, gone.by) == ("folded", "true_graph_0.conv2d", "fold-batch-norm")
    (gone,) = explain(prepared, "true_graph_0.dropout").gone
    assert (gone.why, gone.into) == ("identity", "true_graph_0.conv2d")
    assert [each.node for each in explain(prepared, "bn").operators] == ["true_graph_0.conv2d"]
    (operator,) = explain(prepared, "true_graph_0.dropout").operators
    assert operator.node == "true_graph_0.conv2d"


def test_a_setting_for_what_a_pass_took_out_says_so() -> None:
    exported = torch.export.export(WithoutEffect().eval(), (torch.randn(2, 3, 4, 4),)).module()
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    quantizer = X86InductorQuantizer().set_global(preset).set_module_name("drop", None)
    with pytest.raises(
        UnknownNameError, match="left in the model: %dropout_1 in drop was left out by the pass"
    ):
        prepare_pt2e(exported, quantizer)


def test_a_node_that_stays_float(stages) -> None:
    found = only(stages.prepared, "linear")
    assert (found.status, found.reason, found.pattern) == ("float", "weight-not-constant", "")
    known = REASONS["weight-not-constant"]
    assert (found.meaning, found.advice) == (known.meaning, known.advice)
    assert [(miss.pattern, miss.reason) for miss in found.nearest] == [("linear", "weight-not-constant")]
    assert found.source.endswith("z = F.linear(joined, self.last.weight * 2, self.last.bias)")
    lines = str(found).splitlines()
    assert lines[0] == "%linear (aten.linear.default) stays float: weight-not-constant"
    assert f"  do:      {found.advice}" in lines


def test_a_node_that_is_quantized_and_could_be_fused_better(stages) -> None:
    found = only(stages.prepared, "%conv2d")
    assert (found.status, found.reason, found.pattern) == ("quantized", "", "conv2d")
    fusing, norm = found.nearest
    assert (fusing.pattern, fusing.reason, fusing.node) == ("conv2d-add", "second-user", "conv2d")
    assert (norm.pattern, norm.reason, norm.node) == ("batch-norm", "several-users", "batch_norm")
    assert "not folded: the output of conv2d is also read elsewhere" in str(found)


def test_scales_are_those_of_the_observers_the_pairs_and_the_kernels(stages) -> None:
    observer = stages.prepared.get_submodule("activation_post_process")
    scale, zero_point = (value.item() for value in observer.calculate_qparams())
    prepared, converted = (only(model, "first").tensors[0] for model in (stages.prepared, stages.converted))
    lowered = only(stages.lowered, "first").tensors[0]
    for found in (prepared, converted, lowered):
        assert found.scale == (pytest.approx(scale, rel=1e-6),) * 2
        assert found.zero_point == (zero_point, zero_point)
        assert found.channels == 1
    assert (prepared.tensor, prepared.role, prepared.observer) == ("x", "reads", "activation_post_process")
    assert (prepared.group, prepared.shared_by) == (0, 1)
    assert prepared.spec == "u8[0, 127], per tensor affine"
    assert (converted.tensor, converted.group, converted.spec) == ("x", None, "u8[0, 127]")
    assert (lowered.tensor, lowered.role) == ("x", "argument")


def test_channels_of_a_weight(stages) -> None:
    weight = stages.prepared.get_submodule("activation_post_process_1")
    scales, _ = weight.calculate_qparams()
    for model in (stages.prepared, stages.converted, stages.lowered):
        found = only(model, "first").tensors[1]
        assert found.channels == 8
        assert found.scale == pytest.approx((scales.min().item(), scales.max().item()), rel=1e-6)
        assert found.zero_point == (0, 0)


def test_what_a_lowered_operator_runs_on(stages) -> None:
    found = only(stages.lowered, "block.0")
    nodes = {node.name for node in stages.lowered.graph.nodes}
    assert found.kernel == "onednn.qconv_pointwise"
    assert found.runs_at in nodes
    assert found.node not in nodes
    # The kernel stands for the operators that it replaced.
    assert [each.node for each in explain(stages.lowered, found.runs_at).operators] == ["conv2d_1", "relu"]


def test_a_module_stands_for_what_is_in_it(stages) -> None:
    assert [each.node for each in explain(stages.prepared, "block").operators] == ["conv2d_1", "relu"]
    assert [each.node for each in explain(stages.prepared, "block.1").operators] == ["relu"]
    with pytest.raises(UnknownNameError):
        explain(stages.prepared, "bloc")


def test_a_source_line_stands_for_what_it_made(stages) -> None:
    source = only(stages.prepared, "cat").source
    place, _, code = source.partition(": ")
    assert code == "joined = torch.cat([a, b], 1).mean((2, 3))"
    for asked in (place, place.rpartition("/")[2]):
        assert [each.node for each in explain(stages.prepared, asked).operators] == ["cat", "mean"]


def test_what_is_no_operator_stands_for_those_around_it(stages) -> None:
    def around(model, name):
        return [each.node for each in explain(model, name).operators]

    assert around(stages.prepared, "activation_post_process_2") == ["add", "conv2d_1"]
    assert around(stages.prepared, "first_weight") == ["conv2d"]
    assert around(stages.converted, "x") == ["conv2d"]
    node = next(n for n in stages.prepared.graph.nodes if n.name == "relu")
    assert only(stages.prepared, node).node == "relu"


def test_many_operators_are_listed_by_reason(stages) -> None:
    class Four(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Softmax(-1))

        def forward(self, x):
            return self.all(x)

    exported = torch.export.export(Four().eval(), (torch.ones(2, 4),)).module()
    text = str(explain(prepare_pt2e(exported, get_backend("xnnpack").quantizer()), "all"))
    assert text.startswith("all: 4 operators\n\nno-pattern: ")
    listed = text.partition("quantized:\n")[2].splitlines()
    assert listed == [
        "  %linear (aten.linear.default) in all.0: linear-relu",
        "  %relu (aten.relu.default) in all.1: linear-relu",
        "  %linear_1 (aten.linear.default) in all.2: linear",
    ]


def test_an_unknown_name_has_the_nearest(stages) -> None:
    with pytest.raises(UnknownNameError, match="'con2d' is no node") as caught:
        explain(stages.prepared, "con2d")
    assert "conv2d" in caught.value.hint
    with pytest.raises(UnknownNameError, match="is no node"):
        explain(stages.prepared, "")


def test_what_passes_made_is_not_suggested(stages) -> None:
    """Kernels and packed weights have names like those of the model's operators."""
    made = [node.name for node in stages.lowered.graph.nodes if node.meta.get(ORIGIN_KEY)]
    assert len(made) > 3
    suggested: set[str] = set()
    for name in made:
        with pytest.raises(UnknownNameError) as caught:
            explain(stages.lowered, f"{name}x")
        head, _, near = caught.value.hint.partition("; ")[0].partition(": ")
        suggested |= set(near.split(", ")) if head == "the nearest" else set()
    assert suggested
    assert not suggested & set(made)


def test_what_a_pass_took_out_is_suggested() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    exported = torch.export.export(model, (torch.randn(2, 4),)).module()
    prepared = prepare_pt2e(exported, get_backend("xnnpack").quantizer())
    with pytest.raises(UnknownNameError) as caught:
        explain(prepared, "dropot")
    assert caught.value.hint.startswith("the nearest: dropout")


@pytest.mark.parametrize("model", [nn.ReLU(), torch.export.export(nn.ReLU(), (torch.ones(1),)).module()])
def test_a_model_that_nobody_prepared(model) -> None:
    with pytest.raises(StageError, match="nobody prepared"):
        explain(model)


def test_an_explanation_is_plain_data(stages) -> None:
    for about in (None, "first", "linear"):
        data = attrs.asdict(explain(stages.lowered, about))
        assert json.loads(json.dumps(data))["operators"][0]["node"] == data["operators"][0]["node"]


def test_the_model_is_not_changed(stages) -> None:
    before = str(stages.prepared.graph), [dict(node.meta) for node in stages.prepared.graph.nodes]
    explain(stages.prepared, "first")
    assert (str(stages.prepared.graph), [dict(node.meta) for node in stages.prepared.graph.nodes]) == before


def test_a_model_of_a_backend_that_is_not_installed(stages) -> None:
    model = copy.deepcopy(stages.prepared)
    model.meta["lowbit.backend"] = "elsewhere"
    (found,) = explain(model, "linear").operators
    assert found.reason == "weight-not-constant"
    # That is kept with the decision; what could be fused better is of the patterns of the backend.
    assert [miss.pattern for miss in found.nearest] == ["linear"]
    assert explain(model, "conv2d").operators[0].nearest[0].pattern == "batch-norm"


class Diamonds(nn.Module):
    def forward(self, x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        for _ in range(60):
            i = (i + 1) * (i + 2)
        return torch.relu(x[i % 4])


@pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")
def test_what_is_around_is_found_once_however_many_ways_lead_there() -> None:
    """Sixty diamonds of integers: 2 to the 60 ways from the input to the operator."""
    exported = torch.export.export(Diamonds(), (torch.randn(4, 4), torch.arange(4))).module()
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config))
    (found,) = explain(prepared, "i").operators
    assert found.target.startswith("aten.index")
