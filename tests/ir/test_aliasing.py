from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from lowbit.ir import aliasing
from lowbit.ir.aliasing import aliased_inputs, find_aliases, is_write, written_inputs
from torch import nn
from torch.fx import Graph, GraphModule

aten = torch.ops.aten


def export(function, *args) -> GraphModule:
    class Model(nn.Module):
        def forward(self, *args):
            return function(*args)

    return torch.export.export(Model(), args).module()


def last_call(gm: GraphModule):
    return next(n for n in reversed(gm.graph.nodes) if n.op == "call_function")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(-1),
        lambda x: x.reshape(4, 2),
        lambda x: x.t(),
        lambda x: x[0],
        lambda x: x.contiguous(),
        lambda x: x.detach(),
        lambda x: x.relu_(),
        lambda x: x.to(torch.float32, copy=False).type_as(x),
        lambda x: F.dropout(x, 0.5, False),
        lambda x: torch.einsum("ij->ji", x),
        torch.atleast_3d,
        lambda x: x.chunk(2)[1],
        lambda x: torch.broadcast_tensors(x, x)[0],
        lambda x: torch.unsafe_split(x, 1)[1],
        lambda x: aten._unsafe_view(x, [-1]),
    ],
)
def test_values_that_share_memory_are_in_one_group(function):
    x = torch.ones(2, 4)
    # Memory is what it is about: the claim is checked against an eager run first.
    assert function(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    gm = export(lambda x: function(x * 2), x)
    aliases = find_aliases(gm.graph)
    (made,) = gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    assert aliases.group(last_call(gm)) is aliases.group(made)
    assert not aliases.is_external(made)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.half(),
        lambda x: x + 1,
        lambda x: x.clone(),
        lambda x: torch.cat([x]),
        lambda x: F.linear(x, torch.ones(3, 4)),
        lambda x: F.layer_norm(x, (4,)),
        F.relu6,
    ],
)
def test_values_that_do_not_are_in_two(function):
    x = torch.ones(2, 4)
    assert function(x).untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    gm = export(function, x)
    assert not find_aliases(gm.graph).is_external(last_call(gm))


def test_a_value_that_may_share_with_two_joins_their_groups():
    gm = export(lambda x: torch.broadcast_tensors(x + 1, x + 2), torch.ones(2, 4))
    aliases = find_aliases(gm.graph)
    first, second = gm.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    assert aliases.group(first) is aliases.group(second) is aliases.group(last_call(gm))


def test_a_number_shares_no_memory():
    gm = export(lambda x: x + x.shape[0], torch.ones(2, 4))
    aliases = find_aliases(gm.graph)
    assert not any(aliases.is_external(n) for n in gm.graph.nodes if n.target is aten.sym_size.int)


x4 = torch.randn(2, 4, 6, 6)
row = torch.randn(2, 4)
ALWAYS_NEW_SAMPLES = {
    "adaptive_avg_pool1d": lambda: (x4[0], aten.adaptive_avg_pool1d(x4[0], 6)),
    "adaptive_avg_pool2d": lambda: (x4, aten.adaptive_avg_pool2d(x4, (6, 6))),
    "adaptive_avg_pool3d": lambda: (x4, aten.adaptive_avg_pool3d(x4, (4, 6, 6))),
    "adaptive_max_pool1d": lambda: (x4[0], aten.adaptive_max_pool1d(x4[0], 6)[0]),
    "avg_pool1d": lambda: (x4[0], aten.avg_pool1d(x4[0], 1)),
    "batch_norm": lambda: (x4, F.batch_norm(x4, torch.zeros(4), torch.ones(4))),
    "bilinear": lambda: (row, aten.bilinear(row, row, torch.randn(3, 4, 4))),
    "concat": lambda: (row, aten.concat([row])),
    "concatenate": lambda: (row, aten.concatenate([row])),
    "conv1d": lambda: (x4[0], aten.conv1d(x4[0], torch.randn(6, 6, 1))),
    "conv2d": lambda: (x4, aten.conv2d(x4, torch.randn(4, 4, 1, 1))),
    "conv3d": lambda: (x4, aten.conv3d(x4, torch.randn(2, 2, 1, 1, 1))),
    "conv_transpose1d": lambda: (x4[0], aten.conv_transpose1d(x4[0], torch.randn(6, 6, 1))),
    "conv_transpose2d": lambda: (x4, aten.conv_transpose2d(x4, torch.randn(4, 4, 1, 1))),
    "conv_transpose3d": lambda: (x4, aten.conv_transpose3d(x4, torch.randn(2, 2, 1, 1, 1))),
    "cosine_similarity": lambda: (row, aten.cosine_similarity(row, row)),
    "divide": lambda: (row, aten.divide(row, 1)),
    "dstack": lambda: (row, aten.dstack([row])),
    "group_norm": lambda: (x4, aten.group_norm(x4, 2)),
    "hstack": lambda: (row, aten.hstack([row])),
    "inner": lambda: (row, aten.inner(row, row)),
    "instance_norm": lambda: (x4, F.instance_norm(x4)),
    "isfinite": lambda: (row, aten.isfinite(row)),
    "kron": lambda: (row, aten.kron(row, torch.ones(1, 1))),
    "layer_norm": lambda: (row, aten.layer_norm(row, [4])),
    "linear": lambda: (row, aten.linear(row, torch.eye(4))),
    "log_sigmoid": lambda: (row, aten.log_sigmoid(row)),
    "log_softmax": lambda: (row, aten.log_softmax(row, 1)),
    "matmul": lambda: (row, aten.matmul(row, torch.eye(4))),
    "max_pool1d": lambda: (x4[0], aten.max_pool1d(x4[0], 1)),
    "max_pool1d_with_indices": lambda: (x4[0], aten.max_pool1d_with_indices(x4[0], 1)[0]),
    "max_pool2d": lambda: (x4, aten.max_pool2d(x4, 1)),
    "max_pool3d": lambda: (x4, aten.max_pool3d(x4, 1)),
    "multiply": lambda: (row, aten.multiply(row, 1)),
    "negative": lambda: (row, aten.negative(row)),
    "outer": lambda: (row, aten.outer(row[0], torch.ones(1))),
    "prelu": lambda: (row, aten.prelu(row, torch.ones(1))),
    "relu6": lambda: (row, aten.relu6(row)),
    "repeat_interleave": lambda: (row, aten.repeat_interleave(row, 1, 0)),
    "rms_norm": lambda: (row, aten.rms_norm(row, [4])),
    "scaled_dot_product_attention": lambda: (x4, aten.scaled_dot_product_attention(x4, x4, x4)),
    "selu": lambda: (row, aten.selu(row)),
    "softmax": lambda: (row, aten.softmax(row, 1)),
    "square": lambda: (row, aten.square(row)),
    "std": lambda: (row, aten.std(row)),
    "subtract": lambda: (row, aten.subtract(row, 0)),
    "tile": lambda: (row, aten.tile(row, [1, 1])),
    "true_divide": lambda: (row, aten.true_divide(row, 1)),
    "upsample_bicubic2d": lambda: (x4, F.interpolate(x4, (6, 6), mode="bicubic")),
    "upsample_bilinear2d": lambda: (x4, F.interpolate(x4, (6, 6), mode="bilinear")),
    "upsample_linear1d": lambda: (x4[0], F.interpolate(x4[0], 6, mode="linear")),
    "upsample_nearest1d": lambda: (x4[0], F.interpolate(x4[0], 6)),
    "upsample_nearest2d": lambda: (x4, F.interpolate(x4, (6, 6))),
    "upsample_nearest3d": lambda: (x4, F.interpolate(x4[None], (4, 6, 6))),
    "upsample_trilinear3d": lambda: (x4, F.interpolate(x4[None], (4, 6, 6), mode="trilinear")),
    "var": lambda: (row, aten.var(row)),
    "vstack": lambda: (row, aten.vstack([row])),
    "where": lambda: (row, aten.where(row < 9, row, 1.0)),
}


def test_operators_trusted_to_make_new_memory_do_also_where_they_have_nothing_to_do():
    assert set(ALWAYS_NEW_SAMPLES) == aliasing._ALWAYS_NEW
    for name, sample in ALWAYS_NEW_SAMPLES.items():
        given, made = sample()
        assert given.untyped_storage().data_ptr() != made.untyped_storage().data_ptr(), name


def test_writes_are_those_of_the_schema():
    gm = export(lambda x: (x * 2).add_(x).index_fill_(0, torch.tensor([0]), 1.0), torch.ones(2, 4))
    (add,) = gm.graph.find_nodes(op="call_function", target=aten.add_.Tensor)
    assert written_inputs(add) == (add.args[0],)
    assert [n.target for n in gm.graph.nodes if is_write(n)] == [
        aten.add_.Tensor,
        aten.detach_.default,
        aten.index_fill_.int_Scalar,
    ]


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_writes_its_statistics_in_training_only(training):
    gm = torch.export.export(nn.BatchNorm1d(4).train(training), (torch.ones(2, 4),)).module()
    (norm,) = gm.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    assert written_inputs(norm) == (norm.args[3:5] if training else ())


def body_of(*targets) -> GraphModule:
    graph = Graph()
    value = graph.placeholder("u")
    for target in targets:
        value = graph.call_function(target, (value,))
    graph.output((value,))
    return GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(
    ("targets", "writes"),
    [((aten.relu_.default,), True), ((aten.clone.default, aten.relu_.default), False)],
)
def test_a_control_flow_operator_writes_what_its_body_writes(targets, writes):
    root = nn.Module()
    root.body = body_of(*targets)
    graph = Graph()
    x = graph.placeholder("x")
    body = graph.get_attr("body")
    call = graph.call_function(torch.ops.higher_order.wrap_with_set_grad_enabled, (False, body, x))
    item = graph.call_function(operator.getitem, (call, 0))
    graph.output(item)
    gm = GraphModule(root, graph)
    assert is_write(call) is writes
    assert find_aliases(gm.graph).is_external(item)
    assert aliased_inputs(item) == (call,)
