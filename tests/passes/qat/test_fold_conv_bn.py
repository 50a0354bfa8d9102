"""What ``fold-conv-bn-qat`` leaves in a converted model: names, values, and nothing of training."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    Quantizer,
    XNNPACKQuantizer,
    convert_pt2e,
    get_symmetric_quantization_config,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.passes import PassContext
from lowbit.passes.qat.fold_conv_bn import FoldConvBnQat
from torch import Tensor, nn
from torch.fx import GraphModule

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = self.first(self.shared(y)) + self.second(self.shared(self.drop(y)))
        return self.head(y.mean((2, 3)))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def export(model: nn.Module) -> GraphModule:
    exported = torch.export.export(model, (X,)).module()
    assert isinstance(exported, GraphModule)
    return exported


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().train()


@pytest.fixture
def prepared(model: nn.Module, annotate_all: type[Quantizer]) -> GraphModule:
    prepared = prepare_qat_pt2e(export(model), annotate_all())
    prepared(X)
    return prepared


def test_names_are_those_of_the_convolution(prepared: GraphModule) -> None:
    converted = convert_pt2e(prepared, fold_quantize=False)
    names = [name for name, _ in converted.named_parameters()]
    assert sorted(names) == [
        # Read by one block alone, or new.
        "body.0.bias",
        "body.0.weight",
        "head.bias",
        "head.weight",
        # One convolution, two foldings.
        "shared.bias_1",
        "shared.bias_2",
        "shared.weight_1",
        "shared.weight_2",
    ]
    assert not [name for name, _ in converted.named_buffers() if "running" in name or "tracked" in name]


def test_only_integers_are_left_of_weights(prepared: GraphModule) -> None:
    state = convert_pt2e(prepared).state_dict()
    assert not [name for name, t in state.items() if t.is_floating_point() and t.ndim > 1]
    assert sorted(name for name, t in state.items() if t.dtype is torch.int8) == [
        "body.0.weight_int8",
        "head.weight_int8",
        "shared.weight_1_int8",
        "shared.weight_2_int8",
    ]


# Training presets, so that both sides have the same fake quantizers.
@pytest.mark.filterwarnings("ignore::lowbit.errors.RoundedCalibrationWarning")
def test_values_are_those_of_folding_in_post_training_quantization(
    model: nn.Module, prepared: GraphModule, annotate_all: type[Quantizer]
) -> None:
    # Statistics of the one batch that ``prepared`` saw.
    trained = copy.deepcopy(model)
    trained.load_state_dict({k: v for k, v in prepared.state_dict().items() if "activation" not in k})
    ours = convert_pt2e(prepared, fold_quantize=False)
    theirs = prepare_pt2e(export(trained.eval()), annotate_all())
    for name in ("body.0.weight", "body.0.bias"):
        torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name))


def test_nothing_of_training_is_left(prepared: GraphModule) -> None:
    converted = convert_pt2e(prepared)
    targets = [str(node.target) for node in converted.graph.nodes]
    for trace in ("batch_norm", "dropout", "add_.", "rsqrt", "where", "alias", "activation_post"):
        assert not [t for t in targets if trace in t], trace
    assert not converted.training
    assert "lowbit.qat" not in converted.meta
    owned = ("lowbit.conv_bn", "lowbit.conv_bn_part", "lowbit.in_training")
    assert not [n for n in converted.graph.nodes for key in owned if key in n.meta]


@pytest.mark.parametrize("is_per_channel", [False, True])
def test_the_operators_are_those_of_post_training_quantization(is_per_channel: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    graphs = []
    for is_qat, prepare in ((True, prepare_qat_pt2e), (False, prepare_pt2e)):
        config = get_symmetric_quantization_config(is_per_channel, is_qat)
        prepared = prepare(export(net.train(is_qat)), XNNPACKQuantizer().set_global(config))
        prepared(X)
        graphs.append(Counter(n.target for n in convert_pt2e(prepared).graph.nodes if callable(n.target)))
    assert graphs[0] == graphs[1]
    assert graphs[0][aten.conv2d.default] == 2


def test_conversion_disturbs_no_training(prepared: GraphModule) -> None:
    other = copy.deepcopy(prepared)

    def step(model: GraphModule, *, convert: bool) -> list[Tensor]:
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            loss = F.cross_entropy(model(X), torch.tensor([0, 1, 1, 0]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if convert:
                convert_pt2e(model)
        return losses

    assert step(prepared, convert=True) == step(other, convert=False)
    assert [n.name for n in prepared.graph.nodes] == [n.name for n in other.graph.nodes]


@pytest.mark.parametrize("fold_quantize", [True, False])
def test_training_disturbs_no_converted_model(prepared: GraphModule, fold_quantize: bool) -> None:
    """The best model so far stays what it was, though training goes on."""
    converted = convert_pt2e(prepared, fold_quantize=fold_quantize)
    expected = converted(X)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1.0)
    prepared(X).square().mean().backward()
    optimizer.step()
    assert torch.equal(converted(X), expected)
    assert not torch.equal(convert_pt2e(prepared)(X), expected)


def test_conversion_from_training_and_from_evaluation_is_one(prepared: GraphModule) -> None:
    from_training = convert_pt2e(prepared)
    from_evaluation = convert_pt2e(lowbit.move_exported_model_to_eval(prepared))
    assert from_training.code == from_evaluation.code
    ours, theirs = from_training.state_dict(), from_evaluation.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(copy.deepcopy(from_training)(X), prepared(X))


def test_untrained_models_are_refused(model: nn.Module, annotate_all: type[Quantizer]) -> None:
    with pytest.raises(lowbit.errors.NotCalibratedError, match="never saw data"):
        convert_pt2e(prepare_qat_pt2e(export(model), annotate_all()))


# Training presets, so that both sides have the same fake quantizers.
@pytest.mark.filterwarnings("ignore::lowbit.errors.RoundedCalibrationWarning")
def test_other_graphs_are_left_as_they_are(annotate_all: Any) -> None:
    prepared = prepare_pt2e(export(Net().eval()), annotate_all())
    before = str(prepared.graph)
    assert not FoldConvBnQat().run(prepared, PassContext())
    assert str(prepared.graph) == before
