"""Defects measured in the quantization-aware training of others, each of which must not be ours.

The first line of each docstring is the defect.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
    lower_pt2e,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_qat_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.errors import CalibrationDataError, NotCalibratedError, StageError
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
X = torch.linspace(-1, 1, 3 * 4 * 6 * 6).reshape(3, 4, 6, 6)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Body(nn.Module):
    """Layers, and a forward given as a function."""

    def __init__(self, body: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body = body

    def forward(self, *inputs: Tensor) -> Any:
        return self.body(self, *inputs)


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **({"padding": 1} | options))


def norm(kind: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> nn.Module:
    made = kind(4, **options)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(4) + 0.5 if name == "running_var" else torch.randn(4))
    return made


def chain(layer: nn.Module, made: nn.Module) -> nn.Module:
    return Body(lambda m, x: m.bn(m.conv(x)), conv=layer, bn=made)


def x86() -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=not has_vnni())
    return X86InductorQuantizer().set_global(config)


def xnnpack() -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=True))


def prepare(
    model: nn.Module, *inputs: Any, quantizer: Quantizer | None = None, strict: bool = False
) -> GraphModule:
    exported = torch.export.export(model.train(), inputs or (X,), strict=strict).module()
    assert isinstance(exported, GraphModule)
    return prepare_qat_pt2e(exported, quantizer or x86())


def calls(model: GraphModule, *targets: object) -> list[Node]:
    return [n for n in model.graph.nodes if n.op == "call_function" and n.target in targets]


def literals(model: GraphModule, target: object) -> list[Any]:
    return [[a for a in n.args if not isinstance(a, Node)] for n in calls(model, target)]


def assert_means_the_same(model: nn.Module, prepared: GraphModule, x: Tensor = X) -> None:
    """Without rounding: loss, gradients and statistics in training, values in evaluation, in float64."""
    ours, theirs, x = copy.deepcopy(prepared).double(), copy.deepcopy(model).double(), x.double()
    ours.apply(lowbit.disable_fake_quant).apply(lowbit.disable_observer)
    for m in (ours, theirs):
        y = m(x)
        (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)).square().mean().backward()
    found = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(found[name].grad, p.grad, rtol=1e-9, atol=1e-12)
    kept = {name: b for name, b in theirs.named_buffers() if "tracked" not in name}
    for name, buffer in kept.items():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-11, atol=1e-12)


def assert_converts_to_what_it_evaluates(prepared: GraphModule, x: Tensor = X) -> GraphModule:
    prepared(x)
    prepared.eval()
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        assert torch.equal(converted(x), prepared(x))
    return converted


# Wrong numbers without an error.


def test_a_convolution_that_has_a_second_user() -> None:
    """BatchNorm folded into a convolution that has a second user."""
    model = Body(lambda m, x: m.bn(y := m.conv(x)) + y, conv=conv(), bn=norm())
    prepared = prepare(model)
    assert {d.node: d.reason for d in decisions(prepared)}["batch_norm"] == "several-users"
    assert_means_the_same(model, prepared)
    assert calls(assert_converts_to_what_it_evaluates(prepared), aten.batch_norm.default)


def test_two_batch_norms_over_one_convolution() -> None:
    """Two BatchNorms over one shared convolution weight."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        return m.first(m.conv(x)) + m.second(m.conv(2 * x))

    model = Body(body, conv=conv(), first=norm(), second=norm())
    prepared = prepare(model)
    assert_means_the_same(model, prepared)
    converted = assert_converts_to_what_it_evaluates(prepared)
    assert not calls(converted, aten.batch_norm.default)
    assert len({n.args[1] for n in calls(converted, aten.conv2d.default)}) == 2


@pytest.mark.parametrize("quantizer", [x86, xnnpack])
def test_epsilon_and_momentum(quantizer: Callable[[], Quantizer]) -> None:
    """The QAT rewrite and ``move_exported_model_to_eval`` reset BatchNorm's eps and momentum to defaults."""
    model = Body(
        lambda m, x: m.alone(F.relu(m.bn(m.conv(x)))),
        conv=conv(),
        bn=norm(eps=0.5, momentum=0.7),
        alone=norm(eps=0.25, momentum=0.9),
    )
    prepared = prepare(model, quantizer=quantizer())
    for _ in range(2):
        assert [a[1:3] for a in literals(prepared, aten.batch_norm.default)] == [[0.7, 0.5], [0.9, 0.25]]
        assert_means_the_same(model, prepared)
        move_exported_model_to_eval(prepared)
        assert [a[:3] for a in literals(prepared, aten.batch_norm.default)] == [[False, 0.9, 0.25]]
        move_exported_model_to_train(prepared)


def test_the_probability_of_dropout() -> None:
    """``Dropout(0.1)`` becomes 0.5 after eval → train."""
    prepared = prepare(nn.Sequential(conv(), norm(), nn.ReLU(), nn.Dropout(0.1)))
    for _ in range(2):
        assert literals(prepared, aten.dropout.default) == [[0.1, True]]
        move_exported_model_to_eval(prepared)
        assert literals(prepared, aten.dropout.default) == [[0.1, False]]
        move_exported_model_to_train(prepared)


class Frozen(nn.Sequential):
    """Trains all but the statistics of its BatchNorm."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[1].eval()
        return self


def test_a_batch_norm_in_evaluation() -> None:
    """An eval-mode BatchNorm becomes a training one in QAT."""
    model = Frozen(conv(), norm(), nn.ReLU())
    prepared = prepare(model)
    before = {k: t.clone() for k, t in prepared.state_dict().items() if "running" in k}
    for _ in range(2):
        ((training, *_),) = literals(prepared, aten.batch_norm.default)
        assert training is False
        assert_means_the_same(model, prepared)
        prepared(X)
        prepared.eval()
        prepared(X)
        prepared.train()
    after = prepared.state_dict()
    assert len(before) == 2
    assert all(torch.equal(after[k], t) for k, t in before.items())
    assert_converts_to_what_it_evaluates(prepared)


def test_a_model_that_was_never_trained() -> None:
    """Converting a model that never saw data yields scale 1, zero point 0."""
    prepared = prepare(nn.Sequential(conv(), norm(), nn.ReLU()))
    with pytest.raises(NotCalibratedError, match="never saw data"):
        convert_pt2e(prepared)
    with pytest.raises(NotCalibratedError, match="saw no data"):
        prepared.eval()(X)


def test_specs_that_differ_in_their_fake_quantizer_only() -> None:
    """Specs that differ only in their observer constructor are merged, and the first wins."""

    class PerConsumer(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            for node, constant in zip(calls(model, aten.conv2d.default), (0.5, 1.0), strict=True):
                observer = MovingAverageMinMaxObserver.with_args(averaging_constant=constant)
                fake_quantize = FusedMovingAvgObsFakeQuantize.with_args(observer=observer)
                spec = QuantizationSpec(torch.uint8, fake_quantize, 0, 255, torch.per_tensor_affine)
                node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[0]: spec})
            return model

    model = Body(lambda m, x: m.bn(m.a(x)) + m.b(x), a=conv(), b=conv(), bn=norm())
    prepared = prepare(model, quantizer=PerConsumer())
    prepared(X)
    prepared(3 * X)
    scales = sorted(n.args[1] for n in calls(convert_pt2e(prepared), qd.QUANTIZE_PER_TENSOR))
    assert scales == [pytest.approx(4 / 255), pytest.approx(6 / 255)]


@pytest.mark.usefixtures("linears_stay")
def test_float_weights_do_not_stay_beside_the_quantized_ones() -> None:
    """Converted models keep the float weights beside the int8 ones in ``state_dict`` (dotted names)."""
    block = nn.Sequential(conv(), norm(), nn.ReLU())
    prepared = prepare(nn.Sequential(block, nn.Flatten(), nn.Linear(144, 3)))
    prepared(X)
    converted = convert_pt2e(prepared)
    for quantized in (converted, lower_pt2e(converted, pack_weights=False)):
        tensors = [*quantized.state_dict().values(), *quantized.parameters(), *quantized.buffers()]
        assert not [t for t in tensors if t.is_floating_point() and t.ndim > 1]
        assert {t.shape for t in tensors if t.dtype is torch.int8} == {(4, 4, 3, 3), (3, 144)}


@pytest.mark.parametrize("stage", ["prepared", "converted"])
def test_a_copy_is_guarded_like_its_original(stage: str) -> None:
    """The ``train()``/``eval()`` guard of an exported model is lost by ``copy.deepcopy``."""
    prepared = prepare(nn.Sequential(conv(), norm(), nn.ReLU(), nn.Dropout(0.1)))
    prepared(X)
    model = prepared if stage == "prepared" else convert_pt2e(prepared)
    for candidate in (model, copy.deepcopy(model), copy.deepcopy(copy.deepcopy(model))):
        if stage == "prepared":
            assert not calls(candidate.eval(), aten.batch_norm.default)
            assert literals(candidate, aten.dropout.default) == [[0.1, False]]
            assert len(calls(candidate.train(), aten.batch_norm.default)) == 1
            assert literals(candidate, aten.dropout.default) == [[0.1, True]]
        else:
            with pytest.raises(StageError, match="cannot be trained"):
                candidate.train()
            assert torch.equal(candidate.eval()(X), model(X))


# Crashes with a cryptic text.


@pytest.mark.parametrize(
    ("made", "fused"),
    [
        (lambda: nn.init.zeros_((n := norm()).weight) is None or n, True),
        (lambda: norm(affine=False), True),
        (lambda: norm(track_running_stats=False), False),
    ],
    ids=["gamma = 0", "affine=False", "no running statistics"],
)
def test_unusual_batch_norms(made: Callable[[], nn.Module], fused: bool) -> None:
    """QAT with ``gamma = 0`` (ResNet zero_init_residual), ``affine=False``, without running statistics."""
    model = chain(conv(), made())
    prepared = prepare(model)
    (reason,) = [d.reason for d in decisions(prepared) if d.node == "batch_norm"]
    assert reason == ("batch-norm" if fused else "batch-statistics")
    assert_means_the_same(model, prepared)
    loss = prepared(X).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in prepared.parameters())
    assert_converts_to_what_it_evaluates(prepared)


class Block(nn.Module):
    """A residual block that calls one in-place ReLU twice, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(bias=False), norm()
        self.conv2, self.bn2 = conv(bias=False), norm()
        self.relu = nn.ReLU(inplace=True)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("quantizer", [x86, xnnpack])
def test_blocks_that_call_one_relu_twice(quantizer: Callable[[], Quantizer], strict: bool) -> None:
    """The tutorials' own example stops with "Input partition has more than one output node"."""
    model = nn.Sequential(Block(), Block())
    prepared = prepare(model, quantizer=quantizer(), strict=strict)
    assert_means_the_same(model, prepared)
    converted = assert_converts_to_what_it_evaluates(prepared)
    assert not calls(converted, aten.batch_norm.default)
    statuses = {d.status for d in decisions(converted) if "add_" not in d.node}
    assert statuses == {"quantized"}


@pytest.mark.parametrize("quantizer", [x86, xnnpack])
def test_modules_called_several_times(quantizer: Callable[[], Quantizer]) -> None:
    """A reused conv, linear or ReLU module ("more than one output node")."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        for _ in range(2):
            x = m.relu(m.bn(m.conv(x)))
        return m.linear(m.linear(x))

    model = Body(body, conv=conv(), bn=norm(), relu=nn.ReLU(), linear=nn.Linear(6, 6))
    prepared = prepare(model, quantizer=quantizer())
    assert_means_the_same(model, prepared)
    assert_converts_to_what_it_evaluates(prepared)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_data_that_are_no_numbers(value: float) -> None:
    """NaN or inf in the data make the range, and with it the model, useless."""
    prepared = prepare(nn.Sequential(conv(), norm(), nn.ReLU()))
    prepared(X)
    before = {k: t.clone() for k, t in prepared.state_dict().items() if "post_process" in k}
    with pytest.raises(CalibrationDataError):
        prepared(X * value)
    after = prepared.state_dict()
    first = {k for k in before if not torch.equal(before[k], after[k])}
    # Weights come before the data, and their averages may have moved; those of data did not.
    assert not [k for k in first if before[k].numel() == 1]


# Silently not quantized.


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize(
    ("layer", "made", "x"),
    [
        (lambda: nn.Conv3d(4, 4, 2), lambda: norm(nn.BatchNorm3d), X.reshape(3, 4, 3, 4, 3)),
        (lambda: nn.Linear(4, 4), lambda: norm(nn.BatchNorm1d), X[:, :, 0, 0]),
        (lambda: conv(padding="same"), norm, X),
        (lambda: nn.Conv1d(4, 4, 3), lambda: norm(nn.BatchNorm1d), X[:, :, 0]),
    ],
    ids=["conv3d", "linear", "padding=same", "conv1d"],
)
def test_what_is_fused_and_quantized(
    layer: Callable[[], nn.Module], made: Callable[[], nn.Module], x: Tensor, strict: bool
) -> None:
    """conv3d-bn, linear-bn and ``padding="same"`` conv-bn in QAT; conv1d on X86."""
    model = chain(layer(), made())
    prepared = prepare(model, x, strict=strict)
    assert {d.status for d in decisions(prepared) if d.node != "add_"} == {"quantized"}
    assert_means_the_same(model, prepared, x)
    converted = assert_converts_to_what_it_evaluates(prepared, x)
    assert len(calls(converted, qd.DEQUANTIZE_PER_CHANNEL)) == 1
    kernels = [str(n.target) for n in lower_pt2e(converted).graph.nodes if "pointwise" in str(n.target)]
    assert len(kernels) == 1
