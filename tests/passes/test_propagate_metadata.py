"""Q/DQ nodes say where they come from and what they produce."""

from __future__ import annotations

import pytest
import torch
from lowbit import convert_pt2e, prepare_pt2e
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.location import module_path
from lowbit.ir.observers import MinMaxObserver, PerChannelMinMaxObserver, PlaceholderObserver
from lowbit.ir.specs import QuantizationSpec
from lowbit.passes import PassContext, PropagateMetadata
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
WEIGHT = QuantizationSpec(
    torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, ch_axis=0
)
DYNAMIC = QuantizationSpec(torch.int8, PlaceholderObserver, -128, 127, is_dynamic=True)
FLOAT16 = QuantizationSpec(torch.float16, PlaceholderObserver)
X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
KEYS = ("nn_module_stack", "stack_trace", "from_node")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x))


@pytest.fixture
def converted(export, quantizer):
    def converted(activation=UINT8, weight=WEIGHT, dtype=torch.float32, **options) -> GraphModule:
        def annotate_node(node: Node) -> None:
            if node.target is aten.linear.default:
                set_annotation(node, QuantizationAnnotation({node.args[0]: activation, node.args[1]: weight}))

        prepared = prepare_pt2e(export(Net().to(dtype), X.to(dtype), **options), quantizer(annotate_node))
        prepared(X.to(dtype))
        return convert_pt2e(prepared)

    return converted


def ours(gm: GraphModule) -> list[Node]:
    """The nodes that conversion made."""
    return [n for n in gm.graph.nodes if n.op == "call_function" and n.target is not aten.linear.default]


CASES = [(UINT8, WEIGHT), (DYNAMIC, WEIGHT), (FLOAT16, FLOAT16), (DYNAMIC, FLOAT16)]


@pytest.mark.parametrize(("activation", "weight"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_node_has_the_value_that_it_computes(converted, activation, weight, dtype) -> None:
    gm = converted(activation, weight, dtype)
    seen: list[Node] = []

    class Compare(Interpreter):
        def run_node(self, n: Node):
            value = super().run_node(n)
            if n.op in ("placeholder", "get_attr", "call_function"):
                for real, fake in zip(
                    *(v if isinstance(v, tuple) else (v,) for v in (value, n.meta["val"])), strict=True
                ):
                    assert isinstance(fake, FakeTensor), n
                    assert (real.shape, real.stride(), real.device) == (
                        fake.shape,
                        fake.stride(),
                        fake.device,
                    ), n
                    # choose_qparams is declared to give a float64 scale and gives a float32 one.
                    if n.target not in qd.CHOOSE_QPARAMS_OPS and "getitem" not in n.name:
                        assert real.dtype is fake.dtype, n
                seen.append(n)
            return value

    Compare(gm).run(X.to(dtype))
    assert set(ours(gm)) <= set(seen)


@pytest.mark.parametrize(("activation", "weight"), CASES)
@pytest.mark.parametrize("strict", [False, True])
def test_every_node_says_where_it_comes_from(converted, activation, weight, strict) -> None:
    gm = converted(activation, weight, strict=strict)
    for node in ours(gm):
        for key in KEYS:
            assert node.meta.get(key), (node, key)
        assert module_path(node.meta) in ("first", "second")


def test_a_quantize_is_of_its_producer_and_a_dequantize_of_its_reader(converted) -> None:
    gm = converted()
    first, second = gm.graph.find_nodes(op="call_function", target=aten.linear.default)
    for linear, path in ((first, "first"), (second, "second")):
        dq, dq_weight = linear.args[:2]
        assert [module_path(n.meta) for n in (dq, dq_weight)] == [path, path]
    between = second.args[0].args[0]
    assert between.target is qd.QUANTIZE_PER_TENSOR
    assert module_path(between.meta) == "first"
    # Beside the input of the model stands nobody but the reader.
    at_input = first.args[0].args[0]
    assert at_input.args[0].op == "placeholder"
    assert module_path(at_input.meta) == "first"


def test_symbolic_sizes_are_kept(export, quantizer) -> None:
    def annotate_node(node: Node) -> None:
        if node.target is aten.relu.default:
            set_annotation(node, QuantizationAnnotation({node.args[0]: UINT8}))

    batch = torch.export.Dim("batch", min=2, max=64)
    exported = export(nn.ReLU(), X, dynamic_shapes=({0: batch},))
    prepared = prepare_pt2e(exported, quantizer(annotate_node))
    prepared(X)
    gm = convert_pt2e(prepared)
    (x,) = gm.graph.find_nodes(op="placeholder")
    assert isinstance(x.meta["val"].shape[0], torch.SymInt)
    for node in gm.graph.nodes:
        if qd.is_quantize(node) or qd.is_dequantize(node):
            assert str(node.meta["val"].shape) == str(x.meta["val"].shape)
    for rows in (2, 7):
        assert gm(torch.ones(rows, 3)).shape == (rows, 3)


def test_equal_values_are_made_once(converted) -> None:
    gm = converted()
    quantized = [n.meta["val"] for n in gm.graph.nodes if n.target == "second.weight_int8"]
    assert quantized[0].dtype is torch.int8
    dequantized = [n.meta["val"] for n in gm.graph.nodes if n.target is qd.DEQUANTIZE_PER_TENSOR]
    assert len(dequantized) == 2
    assert dequantized[0] is not dequantized[1], "another shape"


def test_what_is_there_is_kept_and_the_graph_is_not_changed(converted) -> None:
    gm = converted()
    before = {node: dict(node.meta) for node in gm.graph.nodes}
    text = str(gm.graph)
    assert PropagateMetadata().run(gm, PassContext()) is False
    assert str(gm.graph) == text
    assert {node: node.meta for node in gm.graph.nodes} == before
