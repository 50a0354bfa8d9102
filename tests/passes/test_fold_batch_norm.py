from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.passes.base import PassContext
from lowbit.passes.fold_batch_norm import FoldBatchNorm
from lowbit.passes.normalize import Normalize
from torch import nn
from torch.fx import GraphModule

aten = torch.ops.aten


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` in float64 evaluation, with parameters and statistics no rewrite could guess."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.1)
    return module.double().eval()


def export(module: nn.Module, *args: torch.Tensor, strict: bool = False) -> GraphModule:
    return torch.export.export(module, args, strict=strict).module()


def fold(gm: GraphModule) -> tuple[GraphModule, PassContext, bool]:
    """A folded copy of ``gm``, runnable."""
    gm = copy.deepcopy(gm)
    context = PassContext()
    changed = FoldBatchNorm().run(gm, context)
    gm.recompile()
    gm.graph.lint()
    return gm, context, changed


def batch_norms(gm: GraphModule) -> list[str]:
    return [n.name for n in gm.graph.nodes if "batch_norm" in str(n.target)]


def assert_folds(module: nn.Module, *args: torch.Tensor, strict: bool = False) -> GraphModule:
    """Every BatchNorm of ``module`` is folded, and the output is that of float64 within 1e-12."""
    gm = export(module, *args, strict=strict)
    folded, context, changed = fold(gm)
    assert changed
    assert not batch_norms(folded)
    assert not context.ledger.decisions
    for expected, found in zip(
        *(torch.utils._pytree.tree_leaves(m(*args)) for m in (gm, folded)), strict=True
    ):
        error = (found - expected).abs().max()
        assert error <= 1e-12 * expected.abs().max()
    assert not FoldBatchNorm().run(folded, PassContext())
    return folded


def assert_declines(gm: GraphModule, reason: str, *args: torch.Tensor) -> None:
    """The one BatchNorm of ``gm`` is left for ``reason``, and nothing else is touched."""
    before = str(gm.graph)
    kept, context, changed = fold(gm)
    assert not changed
    assert str(kept.graph) == before
    assert [d.reason for d in context.ledger.decisions] == [reason]
    assert [d.node for d in context.ledger.decisions] == batch_norms(gm)
    for expected, found in zip(*(torch.utils._pytree.tree_leaves(m(*args)) for m in (gm, kept)), strict=True):
        assert torch.equal(found, expected)


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_folding_is_exact_for_all_convolutions(data):
    ndim = data.draw(st.sampled_from([1, 2, 3]), "ndim")
    transposed = data.draw(st.booleans(), "transposed")
    groups = data.draw(st.sampled_from([1, 2, 3]), "groups")
    channels_in = groups * data.draw(st.integers(1, 3), "in / groups")
    channels_out = groups * data.draw(st.integers(1, 3), "out / groups")
    kernel = data.draw(st.integers(1, 3), "kernel")
    stride = data.draw(st.integers(1, 2), "stride")
    options = {"stride": stride, "groups": groups, "bias": data.draw(st.booleans(), "bias")}
    if transposed:
        options["output_padding"] = data.draw(st.integers(0, stride - 1), "output_padding")
    else:
        same = stride == 1 and data.draw(st.booleans(), "padding same")
        options["padding"] = "same" if same else data.draw(st.integers(0, 2), "padding")
    conv = (TRANSPOSED if transposed else CONVS)[ndim](channels_in, channels_out, kernel, **options)
    eps = data.draw(st.sampled_from([1e-5, 1e-3, 0.5]), "eps")
    norm = NORMS[ndim](channels_out, eps=eps, affine=data.draw(st.booleans(), "affine"))
    x = torch.randn(2, channels_in, *(5,) * ndim, dtype=torch.float64)
    assert_folds(randomized(nn.Sequential(conv, norm)), x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_folding_is_exact_for_linear(bias, affine):
    model = nn.Sequential(nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(4, affine=affine), nn.ReLU())
    assert_folds(randomized(model), torch.randn(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_folds_under_both_exports_and_after_normalize(strict):
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    model = randomized(nn.Sequential(*layers, nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert_folds(model, x, strict=strict)
    gm = export(model, x, strict=strict)
    expected = gm(x)
    Normalize().run(gm, PassContext())
    folded, _, changed = fold(gm)
    assert changed
    assert not batch_norms(folded)
    assert torch.allclose(folded(x), expected, rtol=1e-12, atol=1e-12)


def test_eps_is_the_one_of_the_model():
    """PEER: eps was reset to its default."""
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.25)))
    model[1].running_var.fill_(0.0)
    folded = assert_folds(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    # 1 / sqrt(0 + 0.25) is 2, exactly.
    weight = folded.get_parameter("0.weight")
    assert torch.equal(weight, model[0].weight * (2 * model[1].weight).reshape(-1, 1, 1, 1))


def test_arithmetic_is_float64_and_rounded_once():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).float()
    folded, _, _ = fold(export(model, torch.randn(2, 3, 4, 4)))
    conv, norm = copy.deepcopy(model).double()
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    exact = conv.weight * scale.reshape(-1, 1, 1, 1)
    # 1 / sqrt(v) may be off by one rounding of float64; that moves a float32 rounding nowhere in this sample.
    assert torch.equal(folded.get_parameter("0.weight"), exact.float())
    exact_bias = (conv.bias - norm.running_mean) * scale + norm.bias
    assert torch.equal(folded.get_parameter("0.bias"), exact_bias.float())


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_layout_of_the_weight_is_kept(layout, kernel):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, kernel, padding="same"), nn.BatchNorm2d(4)))
    model = model.to(memory_format=layout)
    folded = assert_folds(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert folded.get_parameter("0.weight").stride() == model[0].weight.stride()


def test_unused_parameters_and_nodes_are_gone_and_new_ones_carry_metadata():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
    model[0].weight.requires_grad_(False)
    folded = assert_folds(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert set(folded.state_dict()) == {"0.weight", "0.bias"}
    assert [p.requires_grad for p in folded.parameters()] == [False, False]
    weight, bias, *_, conv, _ = folded.graph.nodes
    assert (weight.target, bias.target) == ("0.weight", "0.bias")
    assert conv.args[1:3] == (weight, bias)
    assert bias.meta["nn_module_stack"] == conv.meta["nn_module_stack"]
    assert bias.meta["stack_trace"] == conv.meta["stack_trace"]
    assert bias.meta["val"].shape == (4,)
    assert bias.meta["val"].dtype is torch.float64


def test_the_tensors_of_the_caller_are_not_written_to():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    gm = export(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    FoldBatchNorm().run(gm, PassContext())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Net(nn.Module):
    """A module around a function of itself and its inputs."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args):
        return self.function(self, *args)


x64 = torch.randn(2, 3, 4, 4, dtype=torch.float64)


def test_two_batch_norms_over_one_shared_weight():
    """PEER: the second fold multiplied a weight that was folded already."""
    model = Net(
        lambda m, x: (m.bn1(m.conv(x)), m.bn2(m.conv(x)), m.conv(x)),
        conv=nn.Conv2d(3, 4, 1),
        bn1=nn.BatchNorm2d(4),
        bn2=nn.BatchNorm2d(4),
    )
    folded = assert_folds(randomized(model), x64)
    assert torch.equal(folded.get_parameter("conv.weight"), model.conv.weight)
    assert torch.equal(folded.get_parameter("conv.bias"), model.conv.bias)
    assert set(folded.state_dict()) == {
        *("conv.weight", "conv.weight_1", "conv.weight_2", "conv.bias", "conv.bias_1", "conv.bias_2"),
    }


def test_the_last_fold_of_a_shared_weight_takes_its_name():
    model = Net(
        lambda m, x: m.bn1(m.conv(x)) + m.bn2(m.conv(x)),
        conv=nn.Conv2d(3, 4, 1, bias=False),
        bn1=nn.BatchNorm2d(4),
        bn2=nn.BatchNorm2d(4),
    )
    folded = assert_folds(randomized(model), x64)
    assert set(folded.state_dict()) == {"conv.weight", "conv.weight_1", "conv.bias", "conv.bias_1"}


def test_one_batch_norm_over_two_convolutions_with_tied_weights():
    model = Net(
        lambda m, x: m.bn(m.first(x)) + m.bn(m.second(x)),
        first=nn.Conv2d(3, 4, 1, bias=False),
        second=nn.Conv2d(3, 4, 1),
        bn=nn.BatchNorm2d(4),
    )
    model.second.weight = model.first.weight
    assert_folds(randomized(model), x64)


def test_the_weight_of_another_operator_is_left_alone():
    model = Net(
        lambda m, x: m.bn(m.conv(x)) * m.conv.weight.sum(), conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4)
    )
    folded = assert_folds(randomized(model), x64)
    assert torch.equal(folded.get_parameter("conv.weight"), model.conv.weight)


@pytest.mark.parametrize(
    "target", [aten._native_batch_norm_legit_no_training.default, aten.native_batch_norm.default, "cudnn"]
)
def test_batch_norms_with_several_outputs_fold(target):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.1)))
    gm = export(model, x64)
    (norm,) = gm.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    source, weight, bias, mean, var, training, momentum, eps, _ = norm.args
    args = (source, weight, bias, mean, var, training, momentum, eps)
    if target == "cudnn":
        target = aten.cudnn_batch_norm.default
    elif target is aten._native_batch_norm_legit_no_training.default:
        args = (source, weight, bias, mean, var, momentum, eps)
    with gm.graph.inserting_before(norm):
        call = gm.graph.call_function(target, args)
        item = gm.graph.call_function(operator.getitem, (call, 0))
        norm.replace_all_uses_with(item)
    gm.graph.erase_node(norm)
    folded, context, changed = fold(gm)
    assert changed
    assert not batch_norms(folded)
    assert not context.ledger.decisions
    assert torch.allclose(folded(x64), model(x64), rtol=1e-12, atol=1e-12)


def conv_norm(**options) -> dict[str, nn.Module]:
    return {"conv": nn.Conv2d(3, 4, 1), "bn": nn.BatchNorm2d(4, **options)}


def test_declines_a_convolution_with_a_second_user():
    """PEER: the second user read folded values."""

    def forward(m, x):
        y = m.conv(x)
        return m.bn(y) + y.relu()

    assert_declines(export(randomized(Net(forward, **conv_norm())), x64), "several-users", x64)


def test_declines_two_batch_norms_over_one_output():
    def forward(m, x):
        y = m.conv(x)
        return m.bn(y), m.bn2(y)

    gm = export(randomized(Net(forward, **conv_norm(), bn2=nn.BatchNorm2d(4))), x64)
    folded, context, changed = fold(gm)
    assert not changed
    assert [d.reason for d in context.ledger.decisions] == ["several-users", "several-users"]
    assert all(torch.equal(a, b) for a, b in zip(gm(x64), folded(x64), strict=True))


def test_declines_a_computed_weight():
    def forward(m, x):
        return m.bn(F.conv2d(x, m.conv.weight * 2))

    assert_declines(export(randomized(Net(forward, **conv_norm())), x64), "parameters-not-constant", x64)


def test_declines_a_statistic_that_is_written_to():
    def forward(m, x):
        m.bn.running_mean.add_(x.sum())
        return m.bn(m.conv(x))

    assert_declines(export(randomized(Net(forward, **conv_norm())), x64), "parameters-not-constant", x64)


def test_declines_batch_statistics():
    model = Net(lambda m, x: m.bn(m.conv(x)), **conv_norm())
    assert_declines(export(randomized(model).train(), x64), "batch-statistics", x64)
    model = Net(lambda m, x: m.bn(m.conv(x)), **conv_norm(track_running_stats=False))
    assert_declines(export(randomized(model), x64), "batch-statistics", x64)


def test_declines_a_batch_norm_over_another_axis():
    """A linear over sequences: BatchNorm's axis 1 is the sequence."""
    model = Net(lambda m, x: m.bn(m.linear(x)), linear=nn.Linear(3, 5), bn=nn.BatchNorm1d(5))
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    assert_declines(export(randomized(model), x), "channel-axis", x)
    unbatched = Net(
        lambda m, x: F.batch_norm(m.conv(x), m.bn.running_mean, m.bn.running_var, eps=0.1), **conv_norm()
    )
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    assert_declines(export(randomized(unbatched), x), "channel-axis", x)


def test_declines_what_is_no_convolution():
    model = Net(lambda m, x: m.bn(m.conv(x).relu()), **conv_norm())
    assert_declines(export(randomized(model), x64), "not-after-convolution", x64)


def test_declines_complex_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    gm = export(randomized(model), x64)
    # BatchNorm takes no complex input; a graph that says otherwise must not fold to something real.
    gm.get_submodule("0").weight = nn.Parameter(gm.get_parameter("0.weight").to(torch.complex128))
    _, context, changed = fold(gm)
    assert not changed
    assert [d.reason for d in context.ledger.decisions] == ["not-floating-point"]


def test_declines_when_the_folded_weight_overflows():
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-8))).half()
    model[1].running_var.zero_()
    model[0].weight.data.fill_(8.0)
    x = torch.zeros(2, 3, 4, 4, dtype=torch.half)
    assert_declines(export(model, x), "not-finite", x)


def test_declines_when_a_statistic_is_read():
    gm = export(randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), x64)
    (norm,) = gm.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    with gm.graph.inserting_before(norm):
        call = gm.graph.call_function(aten.native_batch_norm.default, norm.args[:-1])
        parts = [gm.graph.call_function(operator.getitem, (call, i)) for i in (0, 1)]
    norm.replace_all_uses_with(parts[0])
    gm.graph.erase_node(norm)
    # The exported output flattening knows of one output only.
    gm.graph.output_node().args = (tuple(parts),)
    gm.graph.set_codegen(torch.fx.graph.CodeGen())
    gm.recompile()
    assert_declines(gm, "statistics-read", x64)
