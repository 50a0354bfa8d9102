"""Defects measured in the PT2E quantization of others, each of which must not be ours.

The first line of each docstring is the defect.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    FixedQParamsQuantizationSpec,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.errors import CalibrationDataError, NotCalibratedError, SharingError, StageError
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
BOTH_EXPORTS = pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# How many steps a range of activations has.
STEPS = 255 if has_vnni() else 127


def x86() -> X86InductorQuantizer:
    return X86InductorQuantizer().set_global(
        get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    )


def export(model: nn.Module, *inputs: Any, strict: bool = False) -> GraphModule:
    exported = torch.export.export(model.eval(), inputs, strict=strict).module()
    assert isinstance(exported, GraphModule)
    return exported


def convert(
    model: nn.Module, *inputs: Any, quantizer: Quantizer | None = None, strict: bool = False
) -> GraphModule:
    prepared = prepare_pt2e(export(model, *inputs, strict=strict), quantizer or x86())
    return convert_pt2e(calibrate(prepared, [inputs], progress=False))


def calls(model: GraphModule, *targets: object) -> list[Node]:
    return [n for n in model.graph.nodes if n.op == "call_function" and n.target in targets]


def kernels(model: GraphModule) -> list[str]:
    """The kernels of the lowered model, in order."""
    return [
        str(n.target).split(".")[1] for n in lower_pt2e(model).graph.nodes if "pointwise" in str(n.target)
    ]


def assert_close(model: nn.Module, converted: GraphModule, *inputs: Tensor, steps: float = 3) -> None:
    """Quantized results stay within some steps of activations, lowered ones within rounding of those."""
    with torch.no_grad():
        expected, actual, lowered = model(*inputs), converted(*inputs), lower_pt2e(converted)(*inputs)
    span = expected.abs().max()
    assert (actual - expected).abs().max() < steps / STEPS * span
    assert (lowered - actual).abs().max() < 1.01 / STEPS * span


X = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Body(nn.Module):
    """Layers, and a forward given as a function."""

    def __init__(self, body: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body = body

    def forward(self, *inputs: Tensor) -> Any:
        return self.body(self, *inputs)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def batch_norm(**options: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4, **options)
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            if tensor is not None:
                tensor.copy_(torch.randn(4))
        if norm.running_var is not None:
            norm.running_var.copy_(torch.rand(4) + 0.5)
    return norm


# Wrong numbers without an error.


def test_batch_norm_behind_a_convolution_that_has_a_second_user() -> None:
    """BatchNorm folded into a convolution that has a second user."""
    model = Body(lambda m, x: m.bn(y := m.conv(x)) + y, conv=conv(), bn=batch_norm())
    prepared = prepare_pt2e(exported := export(model, X), x86())
    assert calls(prepared, aten.batch_norm.default)
    torch.testing.assert_close(prepared(X), exported(X))
    assert {d.node: d.reason for d in decisions(prepared)}["batch_norm"] == "several-users"


def test_two_batch_norms_over_one_convolution_weight() -> None:
    """Two BatchNorms over one shared convolution weight."""
    model = Body(
        lambda m, x: m.first(m.conv(x)) + m.second(m.conv(2 * x)),
        conv=conv(),
        first=batch_norm(),
        second=batch_norm(),
    )
    prepared = prepare_pt2e(exported := export(model, X), x86())
    torch.testing.assert_close(prepared(X), exported(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: batch_norm(affine=False),
        lambda: batch_norm(track_running_stats=False),
        lambda: batch_norm(eps=0.5, momentum=0.7),
        lambda: nn.init.zeros_((norm := batch_norm()).weight) is None or norm,
    ],
    ids=["affine=False", "no running statistics", "eps", "gamma = 0"],
)
def test_unusual_batch_norms(norm: Callable[[], nn.Module]) -> None:
    """Crashes: gamma = 0, affine=False, no running statistics; eps reset to its default."""
    model = Body(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=norm())
    prepared = prepare_pt2e(exported := export(model, X), x86())
    torch.testing.assert_close(prepared(X), exported(X), atol=1e-5, rtol=1e-5)


def test_integers_plus_a_scalar_stay_integers() -> None:
    """``int32 + 2`` becomes float32 when scalars are lifted to tensors."""
    model = Body(lambda m, x, i: (m.conv(x), i + 2, i * 3), conv=conv())
    i = torch.arange(4, dtype=torch.int32)
    converted = convert(model, X, i)
    for quantized in (converted, lower_pt2e(converted)):
        _, added, multiplied = quantized(X, i)
        assert added.dtype is multiplied.dtype is torch.int32
        assert torch.equal(added, i + 2)


def test_a_model_that_never_saw_data() -> None:
    """Converting a model that never saw data yields scale 1, zero point 0."""
    with pytest.raises(NotCalibratedError):
        convert_pt2e(prepare_pt2e(export(conv(), X), x86()))


class PerConsumer(Quantizer):
    """Gives each convolution, in graph order, a spec of its own for its input."""

    def __init__(self, *specs: Any) -> None:
        self.specs = specs

    def annotate(self, model: GraphModule) -> GraphModule:
        for node, spec in zip(calls(model, aten.conv2d.default), self.specs, strict=True):
            node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[0]: spec})
        return model


def uint8(observer: Callable[..., nn.Module]) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.uint8, observer_or_fake_quant_ctr=observer, qscheme=torch.per_tensor_affine
    )


def test_specs_that_differ_in_their_observer_only() -> None:
    """Specs that differ only in their observer constructor are merged, and the first wins."""
    model = Body(lambda m, x: m.a(x) + m.b(x), a=conv(), b=conv())
    quantizer = PerConsumer(uint8(MinMaxObserver), uint8(MovingAverageMinMaxObserver))
    prepared = prepare_pt2e(export(model, X), quantizer)
    calibrate(prepared, [X, 10 * X], progress=False)
    scales = {node.args[1] for node in calls(convert_pt2e(prepared), qd.QUANTIZE_PER_TENSOR)}
    assert len(scales) == 2
    assert max(scales) == pytest.approx(20 / 255)


@pytest.mark.usefixtures("linears_stay")
def test_float_weights_do_not_stay_beside_the_quantized_ones() -> None:
    """Converted models keep the float weights beside the int8 ones in ``state_dict`` (dotted names)."""
    model = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), nn.Flatten(), nn.Linear(144, 3))
    converted = convert(model, X)
    shapes = {tuple(p.shape) for p in model.parameters() if p.ndim > 1}
    for quantized in (converted, lower_pt2e(converted, pack_weights=False)):
        tensors = [*quantized.state_dict().values(), *quantized.parameters(), *quantized.buffers()]
        assert not [t for t in tensors if t.is_floating_point() and tuple(t.shape) in shapes]
        assert {tuple(t.shape) for t in tensors if t.dtype is torch.int8} == shapes


def test_train_and_eval_mean_the_same_before_and_after_a_copy() -> None:
    """The ``train()``/``eval()`` guard of an exported model is lost by ``copy.deepcopy``."""
    model = nn.Sequential(conv(), batch_norm(), nn.Dropout(0.5), nn.ReLU())
    prepared = calibrate(prepare_pt2e(export(model, X), x86()), [X], progress=False)
    expected = prepared(X)
    for candidate in (prepared, copy.deepcopy(prepared)):
        with pytest.raises(StageError, match="cannot be trained"):
            candidate.train()
        assert torch.equal(candidate(X), expected)
        assert torch.equal(candidate.eval()(X), expected)


# Crashes with a cryptic text.


class Block(nn.Module):
    """A residual block that calls one in-place ReLU twice, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(), batch_norm()
        self.conv2, self.bn2 = conv(), batch_norm()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


@BOTH_EXPORTS
def test_blocks_that_call_one_relu_twice(strict: bool) -> None:
    """The tutorials' own example stops with "Input partition has more than one output node"."""
    model = nn.Sequential(Block(), Block())
    converted = convert(model, X, strict=strict)
    assert kernels(converted) == [
        "qconv_pointwise",
        "qconv2d_pointwise",
        "qconv_pointwise",
        "qconv_pointwise",
    ]
    assert_close(model, converted, X, steps=8)


@pytest.mark.usefixtures("linears_stay")
@BOTH_EXPORTS
def test_modules_called_several_times(strict: bool) -> None:
    """A reused conv, linear or ReLU module ("more than one output node")."""
    model = Body(
        lambda m, x: m.linear(m.linear(m.relu(m.conv(m.relu(m.conv(x)))))),
        conv=conv(),
        linear=nn.Linear(6, 6),
        relu=nn.ReLU(),
    )
    converted = convert(model, X, strict=strict)
    assert kernels(converted) == ["qconv_pointwise"] * 2 + ["qlinear_pointwise"] * 2
    # One weight, so one scale and one int8 copy of it.
    names = [n for n, t in converted.state_dict().items() if t.dtype is torch.int8]
    assert sorted(names) == ["conv.weight_int8", "linear.weight_int8"]
    assert_close(model, converted, X, steps=8)


class Shares(Quantizer):
    """Operators in a row; the input of each has a spec of its own or shares with that of ``anchor_of``."""

    def __init__(self, anchor_of: Callable[[int, int], int | None]) -> None:
        self.anchor_of = anchor_of

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = calls(model, aten.relu.default)
        for i, node in enumerate(nodes):
            anchor = self.anchor_of(i, len(nodes))
            spec: Any = uint8(MinMaxObserver)
            if anchor is not None:
                spec = SharedQuantizationSpec((nodes[anchor].args[0], nodes[anchor]))
            node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[0]: spec})
        return model


def in_a_row(count: int) -> nn.Module:
    def body(_: nn.Module, x: Tensor) -> Tensor:
        for _ in range(count):
            x = torch.relu(x)
        return x

    return Body(body)


PIXEL = torch.ones(1, 1, 2, 2)


def test_anchors_that_come_later() -> None:
    """A shared spec whose anchor comes later in the graph: AssertionError, KeyError."""
    quantizer = Shares(lambda i, n: i + 1 if i + 1 < n else None)
    converted = convert(in_a_row(4), PIXEL, quantizer=quantizer)
    quantizes = calls(converted, qd.QUANTIZE_PER_TENSOR)
    assert len(quantizes) == 4
    assert len({node.args[1:3] for node in quantizes}) == 1


class SharesWithNothing(Quantizer):
    def annotate(self, model: GraphModule) -> GraphModule:
        first, second = calls(model, aten.relu.default)
        spec = SharedQuantizationSpec(second)
        first.meta["quantization_annotation"] = QuantizationAnnotation({first.args[0]: spec})
        return model


def test_anchors_that_are_not_annotated() -> None:
    """A shared spec whose anchor is not annotated: KeyError."""
    with pytest.raises(SharingError, match="output of %relu_1, which is not annotated"):
        prepare_pt2e(export(in_a_row(2), PIXEL), SharesWithNothing())


def test_anchors_in_a_circle() -> None:
    """A shared spec that is part of a cycle: RecursionError."""
    with pytest.raises(SharingError, match="a cycle"):
        prepare_pt2e(export(in_a_row(4), PIXEL), Shares(lambda i, n: (i + 1) % n))


def test_a_long_chain_of_sharing() -> None:
    """A chain of about 1500 overflows the stack."""
    quantizer = Shares(lambda i, n: i + 1 if i + 1 < n else None)
    prepared = prepare_pt2e(export(in_a_row(1600), PIXEL), quantizer)
    observers = [n.target for n in prepared.graph.nodes if "activation_post_process" in str(n.target)]
    assert len(observers) == 1600
    assert len(set(observers)) == 1


def test_nodes_in_keyword_arguments() -> None:
    """Node in kwargs."""
    exported = export(nn.Sequential(conv(), nn.ReLU()), X)
    (node,) = calls(exported, aten.conv2d.default)
    x, weight, bias, *geometry = node.args
    node.args = (x,)
    node.kwargs = dict(zip(("weight", "bias", "stride", "padding"), (weight, bias, *geometry), strict=False))
    exported.recompile()
    prepared = calibrate(prepare_pt2e(exported, x86()), [X], progress=False)
    assert kernels(convert_pt2e(prepared)) == ["qconv_pointwise"]


@pytest.mark.parametrize("body", [lambda m, x: m.conv(x) + 1, lambda m, x: 0.5 + m.conv(x).relu()])
def test_a_convolution_plus_a_scalar(body: Callable[..., Tensor]) -> None:
    """A convolution plus a scalar on X86."""
    model = Body(body, conv=conv())
    converted = convert(model, X)
    assert kernels(converted) == ["qconv_pointwise"]
    assert_close(model, converted, X)


def test_fixed_parameters_without_a_range() -> None:
    """``FixedQParams`` without range."""
    spec = FixedQParamsQuantizationSpec(dtype=torch.uint8, scale=1 / 64, zero_point=128)
    converted = convert(conv(), X, quantizer=PerConsumer(spec))
    (quantize,) = calls(converted, qd.QUANTIZE_PER_TENSOR)
    assert quantize.args[1:] == (1 / 64, 128, 0, 255, torch.uint8)


def test_products_of_integers() -> None:
    """``int64 * int64`` on X86."""
    model = Body(lambda m, x, i: (m.conv(x), i * i, i + i), conv=conv())
    i = torch.arange(5)
    lowered = lower_pt2e(convert(model, X, i))
    assert torch.equal(lowered(X, i)[1], i * i)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_data_that_are_no_numbers(value: float) -> None:
    """NaN or inf in calibration data."""
    prepared = prepare_pt2e(export(conv(), X), x86())
    with pytest.raises(
        CalibrationDataError, match=r"(?s)the input 'input' has .* the first at \[0, 0, 0, 0\].*batch 0"
    ):
        calibrate(prepared, [X * value], progress=False)


def test_models_on_several_devices() -> None:
    """Multi-device models. Preparing needs no device but those the model is on."""
    model = Body(lambda m, x, y: (m.a(x), m.b(y)), a=conv(), b=conv().to("meta"))
    prepared = prepare_pt2e(export(model, X, X.to("meta")), x86())
    assert sum(d.status == "quantized" for d in decisions(prepared)) == 2


# Silently not quantized.


class NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


@BOTH_EXPORTS
def test_a_forward_without_gradients(strict: bool) -> None:
    """A ``@torch.no_grad()`` forward (``wrap_with_set_grad_enabled``)."""
    model = NoGrad()
    converted = convert(model, X, strict=strict)
    assert kernels(converted) == ["qconv_pointwise"]
    assert_close(model, converted, X)


class MyLinear(nn.Linear):
    pass


FORMS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "F.linear": (
        lambda: Body(lambda m, x: F.linear(x, m.l.weight, m.l.bias), l=nn.Linear(6, 5)),
        ["qlinear_pointwise"],
    ),
    "F.conv2d": (
        lambda: Body(lambda m, x: torch.relu(F.conv2d(x, m.c.weight)), c=conv()),
        ["qconv_pointwise"],
    ),
    "subclass": (lambda: nn.Sequential(MyLinear(6, 5), nn.ReLU()), ["qlinear_pointwise"]),
    "block": (Block, ["qconv_pointwise", "qconv_pointwise"]),
}


@pytest.mark.usefixtures("linears_stay")
@pytest.mark.parametrize("form", FORMS)
def test_strict_and_non_strict_export_quantize_the_same(form: str) -> None:
    """``F.linear``, ``F.conv2d`` and Linear subclasses under non-strict export; 5 quantize nodes or 3."""
    make, expected = FORMS[form]
    model = make()
    converted = [convert(model, X, strict=strict) for strict in (False, True)]
    quantizes = [len(calls(c, *qd.QUANTIZE_OPS)) for c in converted]
    assert quantizes[0] == quantizes[1] > 0
    assert [kernels(c) for c in converted] == [expected, expected]


def test_a_tensor_added_to_itself() -> None:
    """``x + x`` can carry one spec only."""

    class Adds(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            (add,) = calls(model, aten.add.Tensor)
            spec = uint8(MinMaxObserver)
            add.meta["quantization_annotation"] = QuantizationAnnotation(
                dict.fromkeys(add.all_input_nodes, spec), spec
            )
            return model

    converted = convert(Body(lambda m, x: x + x), X, quantizer=Adds())
    (add,) = calls(converted, aten.add.Tensor)
    assert [qd.is_dequantize(source) for source in add.args[:2]] == [True, True]
    assert (converted(X) - 2 * X).abs().max() <= 2.01 / 255
    # Twice the same quantized tensor beside a convolution of it: not a residual that may be overwritten.
    model = Body(lambda m, x: m.conv(y := F.relu(m.conv(x))) + (y + y), conv=conv())
    assert_close(model, convert(model, X), X, steps=8)


@pytest.mark.parametrize("activation", [F.leaky_relu, torch.tanh])
def test_what_is_annotated_has_a_lowering(activation: Callable[[Tensor], Tensor]) -> None:
    """``linear → leaky_relu / tanh`` are annotated but have no lowering."""
    model = Body(lambda m, x: activation(m.linear(x)), linear=nn.Linear(6, 5))
    converted = convert(model, X)
    lowered = lower_pt2e(converted)
    assert kernels(converted) == ["qlinear_pointwise"]
    left = {node.name for node in lowered.graph.nodes}
    made = decisions(lowered)
    assert len(made) == 2
    # Said to be quantized, and replaced by a kernel; or neither.
    assert all((d.status == "quantized") == (d.node not in left) for d in made)
    assert_close(model, converted, X, steps=8)


def branch(y: Tensor) -> Tensor:
    return y @ y


def other_branch(y: Tensor) -> Tensor:
    return y @ -y


SQUARE = (torch.ones(4, 4),)
NOT_QUANTIZED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], str]] = {
    "cond": (lambda m, x: torch.cond(x.sum() > 0, branch, other_branch, (x,)), SQUARE, "no-pattern"),
    "matmul": (lambda m, x: x @ x, SQUARE, "two-activations"),
    "split": (lambda m, x: torch.split(x, 2), SQUARE, "float-input"),
    "chunk": (lambda m, x: torch.chunk(x, 2), SQUARE, "float-input"),
    "topk": (lambda m, x: torch.topk(x, 2), SQUARE, "no-pattern"),
    "lstm": (lambda m, x: m.lstm(x)[0], (torch.ones(2, 3, 4),), "recurrent"),
}


@pytest.mark.parametrize("case", NOT_QUANTIZED)
def test_what_is_not_quantized_says_so(case: str) -> None:
    """``cond`` branches, matmul and nodes with tuple outputs are left float without a word."""
    body, inputs, reason = NOT_QUANTIZED[case]
    both = Body(
        lambda m, x, *rest: (m.conv(x), body(m, *rest)), conv=conv(), lstm=nn.LSTM(4, 4, batch_first=True)
    )
    reasons = {d.node: (d.status, d.reason) for d in decisions(lower_pt2e(convert(both, X, *inputs)))}
    assert reasons["conv2d"] == ("quantized", "conv2d")
    named = [status for node, status in reasons.items() if node.split("_")[0] == case]
    assert named
    assert set(named) == {("float", reason)}


def test_the_branches_of_cond_say_so_too() -> None:
    model = Body(
        lambda m, x: torch.cond(x.sum() > 0, branch, other_branch, (m.linear(x),)), linear=nn.Linear(4, 4)
    )
    made = {d.node: d for d in decisions(lower_pt2e(convert(model, *SQUARE)))}
    for node in ("true_graph_0.matmul", "false_graph_0.neg", "false_graph_0.matmul"):
        assert made[node].status == "float"
        assert made[node].reason in {"two-activations", "pointwise"}
    assert made["linear"].status == "quantized"


@pytest.mark.usefixtures("linears_stay")
def test_the_branches_of_cond_are_quantized() -> None:
    """``cond`` branches are left float."""
    model = Body(
        lambda m, x: torch.cond(x.sum() > 0, m.linear, m.other, (x,)),
        linear=nn.Linear(4, 4),
        other=nn.Linear(4, 4),
    )
    observed = prepare_pt2e(export(model, *SQUARE), x86())
    observed(SQUARE[0])
    observed(-SQUARE[0])
    made = decisions(lower_pt2e(convert_pt2e(observed)))
    run_as = [d.kernel for d in made if d.target == "aten.linear.default"]
    assert run_as == ["onednn.qlinear_pointwise"] * 2


IN_LOW_PRECISION: dict[str, tuple[nn.Module, Tensor, set[str]]] = {
    "conv1d": (nn.Conv1d(4, 4, 3), torch.randn(2, 4, 8), {"conv1d"}),
    "conv1d-relu": (nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU()), torch.randn(2, 4, 8), {"conv1d-relu"}),
    "split": (
        Body(
            lambda m, x: [m.conv(y) for y in torch.split(m.wide(x), 4, 1)],
            conv=conv(),
            wide=nn.Conv2d(4, 8, 1),
        ),
        X,
        {"conv2d", "split"},
    ),
    "chunk": (
        Body(lambda m, x: [m.conv(y) for y in m.wide(x).chunk(2, 1)], conv=conv(), wide=nn.Conv2d(4, 8, 1)),
        X,
        {"conv2d", "chunk"},
    ),
}


@pytest.mark.parametrize("case", IN_LOW_PRECISION)
def test_what_the_peer_leaves_float_runs_in_low_precision(case: str) -> None:
    """``nn.Conv1d``, ``relu(conv1d)``, ``split`` and ``chunk`` are left float without a word."""
    model, x, patterns = IN_LOW_PRECISION[case]
    made = decisions(lower_pt2e(convert(model, x)))
    assert {(d.status, d.reason) for d in made} == {("quantized", name) for name in patterns}
    assert all(d.kernel for d in made)
