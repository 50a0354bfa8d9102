"""Training and evaluation of exported models: ``train()``, ``eval()`` and their functions at each stage."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    FakeQuantize,
    X86InductorQuantizer,
    allow_exported_model_train_eval,
    calibrate,
    convert_pt2e,
    disable_fake_quant,
    disable_observer,
    freeze_bn_stats,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.errors import GraphInputError, StageError
from torch import Tensor, nn
from torch.fx import GraphModule

aten = torch.ops.aten
X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """BatchNorm behind a convolution and behind none, and every dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, eps=0.25, momentum=0.75)
        self.alone = nn.BatchNorm2d(4, eps=0.125, momentum=0.5)
        self.drops = nn.Sequential(nn.Dropout(0.1), nn.Dropout2d(0.2), nn.AlphaDropout(0.3))
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drops(self.alone(F.relu(self.bn(self.conv(x))))).flatten(1))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def export(model: nn.Module, *inputs: Tensor) -> GraphModule:
    exported = torch.export.export(model, inputs or (X,)).module()
    assert isinstance(exported, GraphModule)
    return exported


def x86(is_qat: bool) -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=True)
    return X86InductorQuantizer().set_global(config)


def prepare(model: nn.Module) -> GraphModule:
    """Prepared for training and trained for a step."""
    prepared = prepare_qat_pt2e(export(model.train()), x86(is_qat=True))
    prepared(X)
    return prepared


def run(model: nn.Module, *inputs: Tensor) -> Tensor:
    """With the same random numbers in every call."""
    torch.manual_seed(3)
    return model(*inputs or (X,))


def modes(model: GraphModule) -> dict[str, list[Any]]:
    """The literals of what depends on the mode, by name."""
    kinds = ("batch_norm", "dropout", "add_.")
    calls = [n for n in model.graph.nodes if any(k in str(n.target) for k in kinds)]
    return {n.name: [a for a in n.args if not isinstance(a, torch.fx.Node)] for n in calls}


def switched(model: GraphModule) -> GraphModule:
    return allow_exported_model_train_eval(model)


# Float models.


def test_an_exported_model_is_switched_and_back(net: nn.Module) -> None:
    # An export shares the tensors of its original.
    exported = export(copy.deepcopy(net).train())
    in_training = modes(exported)
    assert torch.equal(run(exported), run(net))

    net.eval()
    for _ in range(2):
        assert move_exported_model_to_eval(exported) is exported
        before = copy.deepcopy(exported.state_dict())
        assert torch.equal(exported(X), net(X))
        # Statistics and counters stand still.
        assert all(torch.equal(t, before[k]) for k, t in exported.state_dict().items())
        assert not exported.training
        assert move_exported_model_to_train(exported) is exported
        assert modes(exported) == in_training
        assert exported.training
    assert in_training["dropout"] == [0.1, True]
    assert in_training["batch_norm"][:3] == [True, 0.75, 0.25]

    assert torch.equal(run(exported), run(net.train()))
    after = net.state_dict()
    assert all(torch.equal(t, after[k]) for k, t in exported.state_dict().items())
    assert exported.get_buffer("bn.num_batches_tracked") == 2


def test_a_model_exported_in_evaluation_is_trained_throughout(net: nn.Module) -> None:
    exported = export(copy.deepcopy(net).eval())
    assert torch.equal(move_exported_model_to_eval(exported)(X), net.eval()(X))
    assert torch.equal(run(move_exported_model_to_train(exported)), run(net.train()))
    assert torch.equal(move_exported_model_to_eval(exported)(X), net.eval()(X))


def test_what_was_in_evaluation_among_what_trains_stays_there(net: nn.Module) -> None:
    net.train()
    net.bn.eval()
    net.drops[0].eval()
    exported = export(net)
    in_training = modes(exported)
    move_exported_model_to_train(exported)
    assert modes(exported) == in_training
    move_exported_model_to_train(move_exported_model_to_eval(exported))
    assert modes(exported) == in_training
    assert in_training["batch_norm"][:3] == [False, 0.75, 0.25]
    assert in_training["dropout"] == [0.1, False]


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.RReLU, X),
        (lambda: nn.FeatureAlphaDropout(0.4), X),
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True), X),
        (lambda: nn.BatchNorm2d(3, track_running_stats=False), X),
        (lambda: nn.LSTM(6, 5, 2, dropout=0.3), X[0]),
        (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.25, batch_first=True), X[0]),
    ],
    ids=["rrelu", "feature dropout", "instance norm", "batch statistics", "lstm", "attention"],
)
def test_other_operators_that_train(layer: Callable[[], nn.Module], x: Tensor) -> None:
    torch.manual_seed(0)
    model = layer().train()
    exported = switched(export(model, x))
    state = copy.deepcopy(model.state_dict())
    for mode in (False, True, False):
        for m in (model, exported):
            m.train(mode)
            m.load_state_dict(state)
        outputs = [torch.utils._pytree.tree_leaves(run(m, x)) for m in (exported, model)]
        for y, expected in zip(*outputs, strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


def test_branches_of_the_model_are_switched_too() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: self.drop(y) * 1, lambda y: -y, (x,))

    exported = switched(export(Branches().train(), torch.ones(8)))
    for _ in range(2):
        assert torch.equal(exported.eval()(torch.ones(8)), torch.ones(8))
        assert set(run(exported.train(), torch.ones(8)).tolist()) == {0.0, 2.0}


# At each stage, and of copies.


@pytest.fixture
def stages(net: nn.Module) -> dict[str, GraphModule]:
    observed = calibrate(prepare_pt2e(export(net.eval()), x86(is_qat=False)), [X], progress=False)
    converted = convert_pt2e(observed)
    trained = prepare(net)
    return {
        "float": switched(export(net.train())),
        "prepared to train": trained,
        "prepared": observed,
        "converted": converted,
        "converted after training": convert_pt2e(trained),
        "lowered": lower_pt2e(converted),
        "lowered after training": lower_pt2e(convert_pt2e(trained), pack_weights=False),
    }


TRAIN = ("float", "prepared to train")
COPIES = pytest.mark.parametrize("copied", [False, True], ids=["itself", "copy"])


@COPIES
def test_train_and_eval_at_each_stage(stages: dict[str, GraphModule], copied: bool) -> None:
    for stage, handed in stages.items():
        if copied and stage == "lowered":
            continue  # a packed weight cannot be copied
        model = copy.deepcopy(handed) if copied else handed
        assert model.eval() is model
        expected = model(X)
        assert not model.training
        if stage in TRAIN:
            assert model.train() is model
            assert model.training
            assert not torch.equal(model(X), expected)
            model.eval()
            continue
        found = "prepared for post-training" if stage == "prepared" else "converted"
        for train in (model.train, lambda m=model: move_exported_model_to_train(m)):
            with pytest.raises(StageError, match=f"cannot be trained, it is {found}"):
                train()
            assert not model.training
            assert torch.equal(model(X), expected)
        assert torch.equal(move_exported_model_to_eval(model)(X), expected)


def test_a_copy_of_a_copy_and_its_original_are_switched_apart(net: nn.Module) -> None:
    for model in (switched(export(net.train())), prepare(net)):
        other = copy.deepcopy(copy.deepcopy(model))
        in_training = modes(model)
        other.eval()
        assert modes(model) == in_training
        assert model.training
        assert not any(m.training for m in other.modules() if isinstance(m, FakeQuantize))
        model.eval()
        assert torch.equal(other(X), model(X))
        assert modes(other.train()) == in_training


def test_a_copy_made_in_evaluation_can_be_trained(net: nn.Module) -> None:
    model = prepare(net)
    other = copy.deepcopy(model.eval()).train()
    model.train()
    assert modes(other) == modes(model)
    assert torch.equal(run(other), run(model))


def test_the_guard_of_torch_is_lost_by_a_copy_and_ours_is_not(net: nn.Module) -> None:
    """Without ``allow_exported_model_train_eval`` it is torch's to say."""
    exported = export(net.train())
    with pytest.raises(NotImplementedError):
        exported.eval()
    allowed = copy.deepcopy(switched(exported)).eval()
    assert modes(allowed)["batch_norm"][:3] == [False, 0.75, 0.25]


def test_part_of_another_module(net: nn.Module) -> None:
    """Frameworks call ``train()`` and ``eval()`` on whatever holds the model."""
    whole = nn.Sequential(prepare(net), nn.Softmax(1))
    in_training = modes(whole[0])
    whole.eval()
    assert not whole[0].training
    assert modes(whole[0]) != in_training
    whole.train()
    assert modes(whole[0]) == in_training


@pytest.mark.parametrize(
    "function",
    [
        move_exported_model_to_eval,
        move_exported_model_to_train,
        allow_exported_model_train_eval,
        freeze_bn_stats,
    ],
)
def test_what_is_not_exported_is_refused(function: Callable[[Any], object], net: nn.Module) -> None:
    with pytest.raises(GraphInputError, match="a Net, not an exported"):
        function(net)
    with pytest.raises(GraphInputError, match="an ExportedProgram"):
        function(torch.export.export(net, (X,)))


def test_fake_quantizers_observe_in_training_only(net: nn.Module) -> None:
    model = prepare(net)
    before = {k: t.clone() for k, t in model.state_dict().items()}
    model.eval()
    for _ in range(2):
        model(100 * X)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    model.train()(100 * X)
    moved = [k for k, t in model.state_dict().items() if not torch.equal(t, before[k])]
    assert any("activation_post_process" in name for name in moved)


# Frozen statistics.


def statistics(model: GraphModule) -> dict[str, Tensor]:
    return {k: t.clone() for k, t in model.state_dict().items() if "running" in k or "tracked" in k}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("stage", ["float", "prepared"])
@pytest.mark.parametrize("in_evaluation", [False, True])
def test_frozen_statistics_stay_frozen(net: nn.Module, stage: str, in_evaluation: bool) -> None:
    model = prepare(net) if stage == "prepared" else switched(export(net.train()))
    model(X)
    assert model.get_buffer("alone.num_batches_tracked") > 0
    if in_evaluation:
        model.eval()
    assert freeze_bn_stats(model) is model
    before = statistics(model)
    for _ in range(2):
        model.train()
        loss = model(X + 1).square().mean()
        assert same(before, statistics(model))
        loss.backward()
        assert model.get_parameter("bn.weight").grad is not None
        model.eval()
        model(X)
    assert same(before, statistics(model))
    # Dropout is not a statistic.
    assert modes(model.train())["dropout"] == [0.1, True]
    assert modes(copy.deepcopy(model).eval().train()) == modes(model)


def test_a_frozen_block_trains_as_a_frozen_float_block(net: nn.Module) -> None:
    """Values and gradients, in float64, without rounding."""
    model = freeze_bn_stats(prepare(net)).double()
    model.apply(disable_fake_quant).apply(disable_observer)
    net.load_state_dict({k: t for k, t in model.state_dict().items() if "activation" not in k})
    net.double().train()
    net.bn.eval()
    net.alone.eval()
    for m in (model, net):
        run(m, X.double()).square().mean().backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    for name, p in net.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-9, atol=1e-12)


def test_freezing_by_hand_as_the_handbook_does(net: nn.Module) -> None:
    model = prepare(net)
    for node in model.graph.nodes:
        if node.target is aten.batch_norm.default:
            new_args = list(node.args)
            new_args[5] = False
            node.args = new_args
    model.recompile()
    before = {k: t for k, t in statistics(model).items() if "running" in k}
    assert len(before) == 4
    for m in (model, copy.deepcopy(model)):
        m(X + 1)
        m.eval()(X)
        m.train()(X + 1)
        assert same(before, statistics(m))


# Checkpoints.


def test_state_is_loaded_in_either_mode(net: nn.Module) -> None:
    trained = prepare(net)
    trained(2 * X)
    state = trained.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    for saved_in, loaded_in in ((True, False), (False, True), (False, False)):
        fresh = prepare_qat_pt2e(export(Net().train()), x86(is_qat=True)).train(loaded_in)
        state = trained.train(saved_in).state_dict()
        assert fresh.state_dict().keys() == state.keys()
        fresh.load_state_dict(state)
        assert torch.equal(fresh.eval()(X), trained.eval()(X))
        assert torch.equal(convert_pt2e(fresh)(X), convert_pt2e(trained)(X))
        state = trained.state_dict()
        assert torch.equal(run(fresh.train()), run(trained.train()))
        trained.load_state_dict(state)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))


def test_weights_of_the_float_model_are_loaded(net: nn.Module) -> None:
    """Names of parameters and buffers stay: a float checkpoint fits, but for what observes."""
    prepared = prepare_qat_pt2e(export(Net().train()), x86(is_qat=True))
    missing, unexpected = prepared.load_state_dict(net.state_dict(), strict=False)
    assert not unexpected
    assert all("activation_post_process" in name for name in missing)
    prepared.apply(disable_fake_quant).apply(disable_observer)
    torch.testing.assert_close(prepared.eval()(X), net.eval()(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [True, False], ids=["in training", "in evaluation"])
def test_a_prepared_model_is_saved_whole(net: nn.Module, mode: bool) -> None:
    model = prepare(net).train(mode)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.training is mode
    assert torch.equal(convert_pt2e(loaded)(X), convert_pt2e(model)(X))
    assert torch.equal(loaded.eval()(X), model.eval()(X))
    for m in (loaded, model):
        run(m.train()).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(torch.equal(p.grad, gradients[name]) for name, p in loaded.named_parameters())


# Dropout in training with quantization.


def test_dropout_drops_in_training_only_and_is_gone_after_conversion() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.25)).train()
    x = torch.randn(16, 8)
    prepared = prepare_qat_pt2e(export(model, x), x86(is_qat=True))
    y = run(prepared, x)
    dropped = (y == 0).float().mean()
    assert 0.2 < dropped < 0.3
    # The same elements as of the float model, scaled alike.
    assert torch.equal(y == 0, run(model, x) == 0)
    assert torch.equal(run(prepared, x), y)
    evaluated = prepared.eval()(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], evaluated[kept] / 0.75)
    converted = convert_pt2e(prepared)
    assert torch.equal(converted(x), evaluated)
    assert not [n for n in converted.graph.nodes if "dropout" in str(n.target)]
