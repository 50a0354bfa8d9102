"""What ``fuse-conv-bn-qat`` fuses, exactly, and what it declines, with the reason."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    Quantizer,
    SharedQuantizationSpec,
    convert_pt2e,
    decisions,
    prepare_qat_pt2e,
)
from lowbit.backends.pipelines import PREPARE_QAT
from lowbit.ir import quantized_decomposed as qd
from lowbit.passes import PassContext, PassManager
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
ANNOTATION = "quantization_annotation"


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


def norm(kind: type[nn.Module] = nn.BatchNorm2d, channels: int = 4, **options: Any) -> nn.Module:
    """A BatchNorm with parameters and statistics no rewrite could guess."""
    made = kind(channels, **options)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(channels) + 0.5 if name == "running_var" else torch.randn(channels))
    return made


def export(model: nn.Module, *inputs: Tensor, strict: bool = False) -> GraphModule:
    exported = torch.export.export(model, inputs, strict=strict).module()
    assert isinstance(exported, GraphModule)
    return exported


def calls(model: GraphModule, target: object) -> list[Node]:
    return [node for node in model.graph.nodes if node.target is target]


def norms(model: GraphModule) -> list[Node]:
    return [n for n in model.graph.nodes if "batch_norm" in str(n.target)]


def reasons(model: GraphModule) -> list[str]:
    """What became of each BatchNorm."""
    return [d.reason for d in decisions(model) if "batch_norm" in d.target]


def tensors(outputs: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(outputs)


def loss_of(outputs: Any) -> Tensor:
    weights = [torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y) for y in tensors(outputs)]
    return sum((y * w).square().mean() for y, w in zip(tensors(outputs), weights, strict=True))


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-3))


def assert_exact(model: nn.Module, prepared: GraphModule, *inputs: Tensor) -> None:
    """Without rounding ``prepared`` is ``model``; with it, what it converts to is what it evaluates."""
    ours, theirs = copy.deepcopy(prepared).double(), copy.deepcopy(model).double()
    ours.apply(lowbit.disable_fake_quant).apply(lowbit.disable_observer)
    wide = [x.double() for x in inputs]
    for m in (ours, theirs):
        loss_of(m(*wide)).backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, p in theirs.named_parameters():
        # What nothing reads is gone.
        assert p.grad is None or close(gradients[name], p.grad, 1e-9), name
    statistics = dict(ours.named_buffers())
    for name, buffer in theirs.named_buffers():
        if name in statistics:
            assert close(statistics[name].double(), buffer.double(), 1e-12), name
    for m in (ours.eval(), theirs.eval()):
        assert not m.training
    for y, expected in zip(tensors(ours(*wide)), tensors(theirs(*wide)), strict=True):
        assert close(y, expected, 1e-12)

    prepared(*inputs)
    prepared.eval()
    converted = convert_pt2e(prepared)
    with torch.no_grad():
        for y, expected in zip(tensors(converted(*inputs)), tensors(prepared(*inputs)), strict=True):
            assert torch.equal(y, expected)
    prepared.train()


X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
VOLUME, SIGNAL, ROWS = X.reshape(3, 4, 6, 3, 2), X[:, :, 0], X[:, :, 0, 0]


def plain(layer: nn.Module, kind: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> nn.Module:
    return Body(lambda m, x: m.bn(m.conv(x)), conv=layer, bn=norm(kind, **options))


def with_post(post: Callable[[Tensor], Tensor]) -> nn.Module:
    return Body(lambda m, x: post(m.bn(m.conv(x))), conv=conv(), bn=norm())


def with_gamma(*values: float) -> nn.Module:
    made = plain(conv(bias=False))
    with torch.no_grad():
        made.bn.weight.copy_(torch.tensor(values))
    return made


def frozen(model: nn.Module) -> nn.Module:
    model.bn.eval()
    model.train = functools.partial(_train_but_norm, model)
    return model


def _train_but_norm(model: nn.Module, mode: bool = True) -> nn.Module:
    nn.Module.train(model, mode)
    model.bn.eval()
    return model


def functional(m: nn.Module, x: Tensor) -> Tensor:
    y = F.conv2d(x, m.a.weight)
    return F.batch_norm(y, m.b.running_mean, m.b.running_var, training=m.training)


def two_norms(m: nn.Module, x: Tensor) -> Tensor:
    return m.first(m.conv(x)) + m.second(m.conv(2 * x))


# Name → the model and what it is fed; how many BatchNorms it has.
FUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "conv1d": (lambda: plain(nn.Conv1d(4, 4, 3), nn.BatchNorm1d), SIGNAL, 1),
    "conv2d": (lambda: plain(conv()), X, 1),
    "conv3d": (lambda: plain(nn.Conv3d(4, 4, 2), nn.BatchNorm3d), VOLUME, 1),
    "transposed 1d": (lambda: plain(nn.ConvTranspose1d(4, 4, 3), nn.BatchNorm1d), SIGNAL, 1),
    "transposed 2d": (lambda: plain(nn.ConvTranspose2d(4, 4, 3, stride=2)), X, 1),
    "transposed 3d": (lambda: plain(nn.ConvTranspose3d(4, 4, 2), nn.BatchNorm3d), VOLUME, 1),
    "linear": (lambda: plain(nn.Linear(4, 4), nn.BatchNorm1d), ROWS, 1),
    "linear without bias": (lambda: plain(nn.Linear(4, 4, bias=False), nn.BatchNorm1d), ROWS, 1),
    "without bias": (lambda: plain(conv(bias=False)), X, 1),
    "groups": (lambda: plain(conv(groups=2)), X, 1),
    "depthwise": (lambda: plain(conv(groups=4)), X, 1),
    "transposed with groups": (lambda: plain(nn.ConvTranspose2d(4, 4, 3, groups=2)), X, 1),
    "padding=same": (lambda: plain(conv(padding="same")), X, 1),
    "padding=same, more on one side": (lambda: plain(nn.Conv2d(4, 4, 2, padding="same")), X, 1),
    "padding=valid": (lambda: plain(conv(padding="valid")), X, 1),
    "relu": (lambda: with_post(F.relu), X, 1),
    "hardtanh": (lambda: with_post(F.hardtanh), X, 1),
    "dropout": (lambda: with_post(lambda y: F.dropout(y, 0.0)), X, 1),
    "residual": (lambda: Body(lambda m, x: F.relu(m.bn(m.conv(x)) + x), conv=conv(), bn=norm()), X, 1),
    "several users of the norm": (
        lambda: Body(lambda m, x: (m.bn(m.conv(x)), F.relu(m.bn(m.conv(x)))), conv=conv(), bn=norm()),
        X,
        2,
    ),
    "affine=False": (lambda: plain(conv(), affine=False), X, 1),
    "affine=False, without bias": (lambda: plain(conv(bias=False), affine=False), X, 1),
    "gamma = 0": (lambda: with_gamma(0, 0, 0, 0), X, 1),
    "gamma of all kinds": (lambda: with_gamma(0, 1e-30, -2, 1), X, 1),
    "one convolution, two norms": (
        lambda: Body(two_norms, conv=conv(), first=norm(), second=norm()),
        X,
        2,
    ),
    "block called twice": (
        lambda: Body(lambda m, x: m.bn(m.conv(F.relu(m.bn(m.conv(x))))), conv=conv(), bn=norm()),
        X,
        2,
    ),
    "in evaluation": (lambda: frozen(plain(conv())), X, 1),
    "without a module": (lambda: Body(functional, a=conv(), b=norm(affine=False)), X, 1),
}


@pytest.mark.parametrize("case", FUSED)
def test_blocks_are_fused_and_exact(case: str, annotate_all: type[Quantizer]) -> None:
    torch.manual_seed(1)
    make, x, count = FUSED[case]
    model = make().train()
    prepared = prepare_qat_pt2e(export(model, x), annotate_all())
    assert reasons(prepared) == ["batch-norm"] * count
    assert len(calls(prepared, aten.where.self)) == len(norms(prepared)) == count
    assert_exact(model, prepared, x)
    prepared.eval()
    assert not norms(prepared)


@pytest.mark.parametrize("strict", [False, True])
def test_both_exports_are_fused_alike(strict: bool, annotate_all: type[Quantizer]) -> None:
    model = Body(lambda m, x: F.relu(m.bn(m.conv(x)) + x), conv=conv(), bn=norm()).train()
    assert_exact(model, prepare_qat_pt2e(export(model, X, strict=strict), annotate_all()), X)


def computed_weight() -> nn.Module:
    return Body(
        lambda m, x: m.bn(F.conv2d(x, m.conv.weight * 2, m.conv.bias, padding=1)), conv=conv(), bn=norm()
    )


def native(m: nn.Module, x: Tensor) -> Tensor:
    arguments = (m.bn.weight, m.bn.bias, m.bn.running_mean, m.bn.running_var, True, 0.1, 1e-5)
    return torch.native_batch_norm(m.conv(x), *arguments)[0]


DECLINED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "no running statistics": (lambda: plain(conv(), track_running_stats=False), X, "batch-statistics"),
    "several users": (
        lambda: Body(lambda m, x: m.bn(y := m.conv(x)) + y, conv=conv(), bn=norm()),
        X,
        "several-users",
    ),
    "behind an activation": (
        lambda: Body(lambda m, x: m.bn(F.relu(m.conv(x))), conv=conv(), bn=norm()),
        X,
        "not-after-convolution",
    ),
    "computed weight": (computed_weight, X, "parameters-not-constant"),
    "another axis": (lambda: plain(nn.Linear(6, 6), nn.BatchNorm1d), X[:, :, 0], "channel-axis"),
    "other dtypes": (
        lambda: Body(lambda m, x: m.bn(m.conv(x.bfloat16())).float(), conv=conv().bfloat16(), bn=norm()),
        X,
        "mixed-dtypes",
    ),
    "another operator": (lambda: Body(native, conv=conv(), bn=norm()), X, "not-aten-batch-norm"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_is_declined_stays_as_it_was(case: str, annotate_all: type[Quantizer]) -> None:
    torch.manual_seed(1)
    make, x, reason = DECLINED[case]
    model = make().train()
    exported = export(model, x)
    prepared = prepare_qat_pt2e(exported, annotate_all())
    assert reasons(prepared) == [reason]
    assert not calls(prepared, aten.where.self)
    prepared.apply(lowbit.disable_fake_quant)
    assert torch.equal(prepared(x), exported(x))
    assert len(norms(prepared.eval())) == 1


class AnnotateAlso(Quantizer):
    """What ``first`` annotates, and outputs of further operators or, by name, of parameters."""

    def __init__(self, first: Any, *targets: object, edge: str = "") -> None:
        self.first, self.targets, self.edge = first, targets, edge

    def annotate(self, model: GraphModule) -> GraphModule:
        self.first.annotate(model)
        for node in model.graph.nodes:
            annotation = node.meta.get(ANNOTATION, QuantizationAnnotation())
            if node.target in self.targets:
                annotation.output_qspec = self.first.activation
                node.meta[ANNOTATION] = annotation
            for source in node.all_input_nodes if "batch_norm" in str(node.target) else ():
                if self.edge and source.name.endswith(self.edge):
                    annotation.input_qspec_map[source] = self.first.activation
                    node.meta[ANNOTATION] = annotation
        return model


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"targets": [aten.conv2d.default]}, "quantized-between"),
        ({"edge": "conv2d"}, "quantized-between"),
        ({"edge": "bn_weight"}, "quantized-parameter"),
        ({"targets": ["bn.bias"]}, "quantized-parameter"),
    ],
    ids=["output of the convolution", "input of the norm", "its weight", "its bias"],
)
def test_what_is_rounded_between_the_two_is_not_fused(
    more: dict[str, Any], reason: str, annotate_all: type[Quantizer]
) -> None:
    model = plain(conv()).train()
    quantizer = AnnotateAlso(annotate_all(), *more.get("targets", ()), edge=more.get("edge", ""))
    prepared = prepare_qat_pt2e(export(model, X), quantizer)
    assert reasons(prepared) == [reason]
    assert not calls(prepared, aten.where.self)


def test_convolutions_that_stay_float_are_folded_all_the_same() -> None:
    class Nothing(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            return model

    model = plain(conv()).train()
    with pytest.warns(lowbit.errors.NothingQuantizedWarning):
        prepared = prepare_qat_pt2e(export(model, X), Nothing())
    (call,) = norms(prepared)
    # Nothing stands between the two in training: there is nothing to see.
    assert [n.target for n in call.args[0].all_input_nodes[1:]] == ["conv.weight", "conv.bias"]
    assert_exact(model, prepared, X)
    assert not norms(convert_pt2e(prepared))


# The form.


def source_targets(node: Node) -> list[Any]:
    return [source.target for source in node.all_input_nodes]


def test_the_two_forms(annotate_all: type[Quantizer]) -> None:
    prepared = prepare_qat_pt2e(export(plain(conv()).train(), X), annotate_all())
    prepared(X)

    def weight_chain(weight: Node, until: object) -> list[Any]:
        chain = []
        while weight.target != until:
            chain.append(weight.target)
            weight = weight.all_input_nodes[0] if weight.target is not aten.where.self else weight.args[2]
        return chain

    for _ in range(2):
        prepared.train()
        (call,) = norms(prepared)
        assert source_targets(call)[1:] == ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
        assert call.args[0].args[2].target == "conv.bias"
        chain = weight_chain(call.args[0].args[1], "conv.weight")
        assert chain[:2] == [aten.where.self, aten.div.Tensor]
        assert chain[3:] == [aten.mul.Tensor]
        assert isinstance(prepared.get_submodule(chain[2]), lowbit.FakeQuantize)
        prepared.eval()
        assert not norms(prepared)
        (call,) = calls(prepared, aten.conv2d.default)
        assert weight_chain(call.args[1], "conv.weight") == chain[2:]
        assert call.args[2].target is aten.add.Tensor


def test_names_and_nodes_do_not_grow_from_epoch_to_epoch(annotate_all: type[Quantizer]) -> None:
    model = Body(lambda m, x: F.relu(m.bn(m.conv(x)) + x), conv=conv(), bn=norm()).train()
    prepared = prepare_qat_pt2e(export(model, X), annotate_all())
    prepared(X)
    seen = []
    for _ in range(3):
        for mode in (False, True):
            prepared.train(mode)
            prepared.graph.lint()
        seen.append([node.target for node in prepared.graph.nodes])
        assert [n.name for n in norms(prepared)] == ["batch_norm"]
    assert seen[0] == seen[1] == seen[2]


def test_metadata_of_what_is_made(annotate_all: type[Quantizer]) -> None:
    """Tools say where a node is from; the fake quantizer of channels needs the shape of the weight."""
    prepared = prepare_qat_pt2e(export(plain(conv(groups=2)).train(), X), annotate_all())
    convolution = calls(prepared, aten.conv2d.default)[0]
    made = [n for n in prepared.graph.nodes if "lowbit.conv_bn_part" in n.meta]
    assert made
    for node in made:
        assert node.meta["nn_module_stack"] == convolution.meta["nn_module_stack"]
    (restored,) = calls(prepared, aten.where.self)
    assert restored.meta["val"].shape == (4, 2, 3, 3)


# Literals.


def test_literals_are_carried(annotate_all: type[Quantizer]) -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.c(F.dropout2d(F.dropout(m.bn(m.conv(x)), 0.1), 0.3))
        return m.other(F.relu(m.plain(y)))

    model = Body(
        body,
        conv=conv(stride=2, dilation=2),
        bn=norm(eps=0.25, momentum=0.75),
        plain=norm(eps=0.5, momentum=0.6),
        other=norm(eps=0.125, momentum=0.3),
        c=conv(),
    ).train()
    exported = export(model, X)
    prepared = prepare_qat_pt2e(exported, annotate_all())
    prepared(X)

    def literals(gm: GraphModule) -> list[Any]:
        kinds = ("batch_norm", "dropout", "conv")
        nodes = [n for n in gm.graph.nodes if any(k in str(n.target) for k in kinds)]
        return [[a for a in n.args if not isinstance(a, Node)] for n in nodes if n.op == "call_function"]

    expected = literals(prepared)
    assert expected == [
        [[2, 2], [1, 1], [2, 2], 1],
        [True, 0.75, 0.25, expected[1][-1]],
        [0.1, True],
        [0.3, True],
        [[1, 1], [1, 1], [1, 1], 1],
        [True, 0.6, 0.5, expected[1][-1]],
        [True, 0.3, 0.125, expected[1][-1]],
    ]
    for _ in range(2):
        prepared.eval()
        assert [0.1, False] in literals(prepared)
        assert [0.3, False] in literals(prepared)
        assert [False, 0.3, 0.125, expected[1][-1]] in literals(prepared)
        prepared.train()
        assert literals(prepared) == expected
    converted = convert_pt2e(prepared)
    assert literals(converted) == [
        [[2, 2], [1, 1], [2, 2], 1],
        [[1, 1], [1, 1], [1, 1], 1],
        [False, 0.3, 0.125, expected[1][-1]],
    ]


# Annotations.


class AnnotatesBias(Quantizer):
    """As the handbook writes a quantizer: bias from input and weight, the second weight as the first."""

    def __init__(self, first: Any) -> None:
        self.first = first

    def annotate(self, model: GraphModule) -> GraphModule:
        self.first.annotate(model)
        one, two = calls(model, aten.conv2d.default)
        for node in (one, two):
            x, weight, bias = node.all_input_nodes
            node.meta[ANNOTATION].input_qspec_map[bias] = DerivedQuantizationSpec(
                [(x, node), (weight, node)], product_of_scales, torch.int32, -(2**31), 2**31 - 1
            )
        two.meta[ANNOTATION].input_qspec_map[two.args[1]] = SharedQuantizationSpec((one.args[1], one))
        return model


def product_of_scales(sources: list[Any]) -> tuple[Tensor, Tensor]:
    scale = sources[0].calculate_qparams()[0] * sources[1].calculate_qparams()[0]
    return scale, torch.zeros(1, dtype=torch.int32)


def two_blocks() -> nn.Module:
    layers = {"c1": conv(), "b1": norm(), "c2": conv(groups=2), "b2": norm()}
    return Body(lambda m, x: F.relu(m.b2(m.c2(F.relu(m.b1(m.c1(x)))))), **layers).train()


def test_annotations_follow_their_nodes(annotate_all: Any) -> None:
    pipeline = PREPARE_QAT.until("fuse-conv-bn-qat")
    context = PassContext(quantizer=AnnotatesBias(annotate_all(per_channel=False)))
    fused = PassManager().run(export(two_blocks(), X), pipeline, context)
    folded = [n for n in fused.graph.nodes if n.meta.get("lowbit.conv_bn_part") == "scaled"]
    one, two = (next(iter(node.users)) for node in folded)
    weight = one.meta[ANNOTATION].input_qspec_map
    assert weight == {folded[0]: context.quantizer.first.weight}
    # What shares with the first weight, or is derived from it, does so where that is now.
    assert two.meta[ANNOTATION].input_qspec_map == {folded[1]: SharedQuantizationSpec((folded[0], one))}
    biases = [n for n in fused.graph.nodes if n.meta.get("lowbit.conv_bn_part") == "bias"]
    for bias, scaled, reader, convolution in zip(
        biases, folded, (one, two), calls(fused, aten.conv2d.default), strict=True
    ):
        ((source, spec),) = bias.meta[ANNOTATION].input_qspec_map.items()
        assert source is bias.args[0]
        x = convolution.args[0]
        assert spec.derived_from == ((x, convolution), (scaled, reader))
        # Nothing is left where the edges are no more.
        assert set(convolution.meta[ANNOTATION].input_qspec_map) == {x}


def test_a_bias_that_is_quantized(annotate_all: Any) -> None:
    model = two_blocks()
    prepared = prepare_qat_pt2e(export(model, X), AnnotatesBias(annotate_all(per_channel=False)))
    assert_exact(model, prepared, X)
    prepared.train()
    prepared(X)
    converted = convert_pt2e(prepared)
    quantizes = [q for q in calls(converted, qd.DEQUANTIZE_PER_TENSOR) if q.args[-1] is torch.int32]
    assert len(quantizes) == 2
    weights = {
        d.args[1]
        for c in calls(converted, aten.conv2d.default)
        for d in [c.args[1]]
        if d.target is qd.DEQUANTIZE_PER_TENSOR
    }
    assert len(weights) == 1
    (weight_scale,) = weights
    for convolution in calls(converted, aten.conv2d.default):
        x, _, bias = convolution.all_input_nodes
        assert bias.args[1] == pytest.approx(x.args[1] * weight_scale, rel=1e-6)


def test_a_bias_is_rounded_in_evaluation_only(annotate_all: Any) -> None:
    """BatchNorm takes the mean of the batch away: in training no bias counts."""
    model = two_blocks()
    prepared = prepare_qat_pt2e(export(model, X), AnnotatesBias(annotate_all(per_channel=False)))
    biases = [n for n in prepared.graph.nodes if n.meta.get("lowbit.conv_bn_part") == "bias"]
    assert len(biases) == 2
    assert not any(node.users for node in biases)
    prepared(X)
    for convolution in calls(prepared.eval(), aten.conv2d.default):
        assert convolution.args[2] in biases


def test_implicit_sharing_of_weights_ends_with_the_fusion(annotate_all: type[Quantizer]) -> None:
    """One weight under two BatchNorms is two folded weights, of two ranges."""
    make, x, _ = FUSED["one convolution, two norms"]
    prepared = prepare_qat_pt2e(export(make().train(), x), annotate_all())
    prepared(x)
    converted = convert_pt2e(prepared)
    weights = [c.args[1] for c in calls(converted, aten.conv2d.default)]
    assert len({w.args[0].target for w in weights}) == 2
    scales = [converted.get_buffer(w.args[1].target) for w in weights]
    assert not torch.equal(*scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_channels_that_are_off_in_half_precision(dtype: torch.dtype, annotate_all: type[Quantizer]) -> None:
    model = with_gamma(0, 1e-6, -2, 1).to(dtype).train()
    prepared = prepare_qat_pt2e(export(model, X.to(dtype)), annotate_all())
    loss = prepared(X.to(dtype)).float().square().mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in prepared.parameters())
    prepared.eval()
    with torch.no_grad():
        assert torch.equal(convert_pt2e(prepared)(X.to(dtype)), prepared(X.to(dtype)))


def test_the_scale_has_no_gradient(annotate_all: Any) -> None:
    """A γ near 0 would divide the rounding error of the weight, and send that back without bound."""
    quantizer = annotate_all()
    model = with_gamma(1e-9, 1e-3, -2, 1).train()
    prepared = prepare_qat_pt2e(export(model, X), quantizer)
    loss_of(prepared(X)).backward()
    gradients = {name: p.grad for name, p in prepared.named_parameters()}

    # The same with constants in place of what is computed of the scale.
    x, weight, y = (
        prepared.get_submodule(str(n.target)) for n in prepared.graph.nodes if "activation" in n.name
    )
    scale = (model.bn.weight / (model.bn.running_var + model.bn.eps).sqrt()).detach().view(-1, 1, 1, 1)
    with torch.no_grad():
        model.conv.weight.copy_(weight(model.conv.weight * scale) / scale)
    for module in (x, y):
        module.disable_observer()
    loss_of(y(model(x(X)))).backward()
    torch.testing.assert_close(gradients["bn.weight"], model.bn.weight.grad, rtol=1e-4, atol=1e-5)
    # What is clipped (the largest weight of a channel, at times) has none at all.
    passed = gradients["conv.weight"] != 0
    assert passed.float().mean() > 0.9
    expected = model.conv.weight.grad
    torch.testing.assert_close(gradients["conv.weight"][passed], expected[passed], rtol=1e-3, atol=1e-4)
