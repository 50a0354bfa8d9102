"""Quantized weights: stored, exact, and alone."""

from __future__ import annotations

import io

import pytest
import torch
from lowbit import convert_pt2e, prepare_pt2e
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.observers import MinMaxObserver, PerChannelMinMaxObserver
from lowbit.ir.specs import QuantizationSpec
from lowbit.passes import FoldQuantize, PassContext
from torch import nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
INT8 = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
WEIGHT = QuantizationSpec(
    torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, ch_axis=0
)
X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))

    def forward(self, x):
        return self.block(x)


@pytest.fixture
def converted(export, quantizer):
    """``converted(model, weight spec, …)``: convolutions and linears with quantized input and weight."""

    def converted(model: nn.Module, weight=WEIGHT, x=X, **options) -> GraphModule:
        def annotate_node(node: Node) -> None:
            if node.target in (aten.conv2d.default, aten.linear.default):
                set_annotation(node, QuantizationAnnotation({node.args[0]: UINT8, node.args[1]: weight}))

        prepared = prepare_pt2e(export(model, x), quantizer(annotate_node))
        prepared(x)
        return convert_pt2e(prepared, **options)

    return converted


def quantizes(gm: GraphModule) -> list[Node]:
    return [n for n in gm.graph.nodes if qd.is_quantize(n)]


def test_quantized_weights_take_the_place_of_float_ones(converted) -> None:
    # PEER: "Converted models keep the float weights beside the int8 ones in state_dict (dotted names)."
    gm = converted(Net())
    assert set(gm.state_dict()) == {
        *("block.0.weight_int8", "block.0.weight_scale", "block.0.weight_zero_point", "block.0.bias"),
        *("block.2.weight_int8", "block.2.weight_scale", "block.2.weight_zero_point"),
    }
    assert gm.state_dict()["block.0.weight_int8"].dtype is torch.int8
    assert dict(gm.named_parameters()).keys() == {"block.0.bias"}
    # Only activations are quantized at every call.
    assert [n.target for n in quantizes(gm)] == [qd.QUANTIZE_PER_TENSOR] * 2
    gm.graph.lint()


@pytest.mark.parametrize("weight", [WEIGHT, INT8])
def test_without_folding_weights_stay_float_and_the_result_is_the_same(converted, weight) -> None:
    torch.manual_seed(0)
    model = Net()
    folded, unfolded = converted(model, weight), converted(model, weight, fold_quantize=False)
    assert {"block.0.weight", "block.2.weight"} <= set(unfolded.state_dict())
    assert not any("int8" in name for name in unfolded.state_dict())
    assert torch.equal(unfolded.state_dict()["block.0.weight"], model.block[0].weight)
    assert len(quantizes(unfolded)) == 4
    assert torch.equal(folded(X), unfolded(X))


@pytest.mark.parametrize("weight", [WEIGHT, INT8])
def test_what_is_stored_is_what_the_operator_gives(converted, weight) -> None:
    model = Net()
    folded, unfolded = converted(model, weight), converted(model, weight, fold_quantize=False)
    for n in quantizes(unfolded):
        if n.args[0].op == "get_attr":
            arguments = [unfolded.get_parameter(n.args[0].target).detach()]
            arguments += [unfolded.get_buffer(a.target) if isinstance(a, Node) else a for a in n.args[1:]]
            stored = folded.get_buffer(f"{n.args[0].target}_int8")
            assert torch.equal(stored, n.target(*arguments))
            assert stored.is_contiguous()
            assert not stored.requires_grad


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def test_a_tied_weight_is_stored_once(converted) -> None:
    gm = converted(Tied(), x=torch.randn(2, 3))
    (weight,) = [name for name in gm.state_dict() if name.endswith("int8")]
    assert weight in ("first.weight_int8", "second.weight_int8")
    assert len([n for n in gm.graph.nodes if n.target == weight]) == 1
    assert not dict(gm.named_parameters())


class AlsoFloat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x) + self.inner.weight.sum()


def test_a_weight_that_is_read_in_float_too_stays_beside_the_quantized_one(converted) -> None:
    model, x = AlsoFloat(), torch.randn(2, 3)
    gm = converted(model, x=x)
    assert {"inner.weight", "inner.weight_int8"} <= set(gm.state_dict())
    assert torch.equal(gm.inner.weight, model.inner.weight)
    assert isinstance(gm.inner.weight, nn.Parameter)


def test_the_callers_weights_stay(export, quantizer, converted) -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_buffer_that_the_graph_writes_is_quantized_at_every_call(export, quantizer) -> None:
    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.ones(2))

        def forward(self, x):
            y = self.cache * x
            self.cache.add_(1)
            return y

    def annotate_node(node: Node) -> None:
        if node.target is aten.mul.Tensor:
            set_annotation(node, QuantizationAnnotation({node.args[0]: UINT8}))

    prepared = prepare_pt2e(export(Cache(), torch.ones(2)), quantizer(annotate_node))
    prepared(torch.ones(2))
    prepared.activation_post_process(torch.tensor([0.0, 255.0]))
    gm = convert_pt2e(prepared)
    assert len(quantizes(gm)) == 1
    start = gm.cache[0].item()
    assert [gm(torch.ones(2))[0].item() for _ in range(3)] == [start, start + 1, start + 2]


def test_dequantizes_stay_and_activations_are_not_folded(converted) -> None:
    gm = converted(Net())
    weights = [n for n in gm.graph.nodes if n.target is qd.DEQUANTIZE_PER_CHANNEL]
    assert [n.args[0].op for n in weights] == ["get_attr"] * 2
    assert FoldQuantize().run(gm, PassContext()) is False


def test_a_model_is_smaller_on_disk_by_its_weights(converted) -> None:
    def size(gm: GraphModule) -> int:
        file = io.BytesIO()
        torch.save(gm.state_dict(), file)
        return file.tell()

    model, x = nn.Linear(256, 256, bias=False), torch.randn(1, 256)
    small, large = size(converted(model, x=x)), size(converted(model, x=x, fold_quantize=False))
    # Three of four bytes of 65536 weights.
    assert large - small == pytest.approx(3 * 65536, rel=0.02)


def test_a_float_checkpoint_is_not_truncated_into_integers(converted) -> None:
    model = Net()
    gm = converted(model)
    with pytest.raises(RuntimeError, match="Missing key"):
        gm.load_state_dict(model.state_dict())
