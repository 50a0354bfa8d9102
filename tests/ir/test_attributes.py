from __future__ import annotations

import pytest
import torch
from lowbit.errors import GraphInputError, UnknownNameError
from lowbit.ir.attributes import (
    FreeNames,
    constant_value,
    constants,
    delete_unused,
    get_tensor,
    is_constant,
    nested_graph_modules,
    set_tensor,
)
from torch import nn
from torch.fx import Graph, GraphModule

aten = torch.ops.aten


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.ones(4, 1, 1), persistent=False)
        self.constant = torch.full((4, 1, 1), 2.0)

    def forward(self, x):
        self.count.add_(1)
        return self.bn(self.conv(x)) * self.scale + self.constant * self.count


@pytest.fixture
def gm() -> GraphModule:
    return torch.export.export(Small().eval(), (torch.randn(2, 3, 4, 4),)).module()


def node_of(gm: GraphModule, target: str):
    return next(n for n in gm.graph.nodes if n.op == "get_attr" and n.target == target)


def test_tensors_are_found_by_dotted_target(gm):
    assert get_tensor(gm, "conv.weight") is gm.conv.weight
    with pytest.raises(UnknownNameError, match=r"'conv.wait'"):
        get_tensor(gm, "conv.wait")
    with pytest.raises(GraphInputError, match="Module, not a tensor"):
        get_tensor(gm, "conv")


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_replaced_parameter_stays_one_and_the_old_tensor_is_untouched(gm, requires_grad):
    old = gm.conv.weight
    old.requires_grad_(requires_grad)
    before = old.detach().clone()
    set_tensor(gm, "conv.weight", torch.zeros(4, 3, 1, 1))
    new = gm.conv.weight
    assert isinstance(new, nn.Parameter)
    assert new.requires_grad is requires_grad
    assert not new.any()
    assert torch.equal(old, before)


def test_an_integer_tensor_becomes_a_buffer_even_in_place_of_a_parameter(gm):
    set_tensor(gm, "conv.weight", torch.zeros(4, 3, 1, 1, dtype=torch.int8))
    assert "weight" in gm.conv._buffers
    assert "weight" not in gm.conv._parameters
    assert gm.state_dict()["conv.weight"].dtype is torch.int8


def test_buffers_stay_persistent_or_not(gm):
    set_tensor(gm, "scale", torch.zeros(4, 1, 1))
    set_tensor(gm, "count", torch.ones(()))
    assert "scale" not in gm.state_dict()
    assert "count" in gm.state_dict()
    assert {"scale", "count"} <= set(gm._buffers)


def test_missing_parents_are_created_and_like_gives_the_kind(gm):
    set_tensor(gm, "a.b.weight", torch.ones(2), like=gm.conv.weight)
    set_tensor(gm, "a.b.scale", torch.ones(2))
    assert dict(gm.a.b.named_parameters()).keys() == {"weight"}
    assert dict(gm.a.b.named_buffers()).keys() == {"scale"}


@pytest.mark.parametrize("target", ["conv", "conv.weight.data", "meta"])
def test_a_tensor_does_not_replace_something_else(gm, target):
    with pytest.raises(GraphInputError, match="no tensor can be put"):
        set_tensor(gm, target, torch.ones(1))


def test_free_names_avoid_what_is_there_and_what_was_given(gm):
    names = FreeNames(gm)
    gm.register_buffer("scale_1", torch.ones(1))
    assert names.fresh("conv.weight") == "conv.weight_1"
    assert names.fresh("conv.weight") == "conv.weight_2"
    assert names.fresh("conv.weight_2") == "conv.weight_2_1"
    assert names.fresh("scale") == "scale_2"
    assert names.fresh("new.deep") == "new.deep"
    assert names.fresh("new.deep") == "new.deep_1"
    assert names.fresh("forward") == "forward_1"


def test_constants_are_what_nothing_writes(gm):
    assert {n.target for n in constants(gm.graph)} == {
        *("conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"),
        *("bn.num_batches_tracked", "scale", "constant"),
    }
    assert constants(gm.graph) == set(filter(is_constant, gm.graph.nodes))
    assert torch.equal(constant_value(gm, node_of(gm, "constant")), torch.full((4, 1, 1), 2.0))
    with pytest.raises(GraphInputError, match="not constant"):
        constant_value(gm, node_of(gm, "count"))


def test_a_write_through_views_is_a_write():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.zeros(2, 4))

        def forward(self, x):
            self.cache.view(4, 2).t()[0].copy_(x)
            return self.cache + x

    gm = torch.export.export(Model(), (torch.ones(4),)).module()
    assert not is_constant(node_of(gm, "cache"))
    assert not constants(gm.graph)


def test_statistics_of_a_training_batch_norm_are_not_constant():
    gm = torch.export.export(nn.BatchNorm1d(4).train(), (torch.ones(2, 4),)).module()
    assert not is_constant(node_of(gm, "running_mean"))
    assert is_constant(node_of(gm, "weight"))


def drop(gm: GraphModule, *targets: str) -> None:
    """Let nothing read these attributes any more."""
    for target in targets:
        node = node_of(gm, target)
        for user in list(node.users):
            user.replace_input_with(node, node_of(gm, "conv.bias"))
        gm.graph.erase_node(node)


def test_unused_tensors_and_their_containers_go(gm):
    bn = [n.target for n in gm.graph.nodes if n.op == "get_attr" and n.target.startswith("bn.")]
    drop(gm, *bn, "constant", "scale")
    removed = delete_unused(gm)
    assert removed == ("scale", "constant", "bn")
    assert set(gm.state_dict()) == {"conv.weight", "conv.bias", "count"}
    assert not hasattr(gm, "constant")
    assert [n for n, _ in gm.named_children()] == ["conv", "_guards_fn"]
    assert delete_unused(gm) == ()


def test_of_a_tensor_with_two_names_the_unread_one_goes(gm):
    gm.conv.register_parameter("tied", gm.conv.weight)
    gm.again = gm.conv
    assert delete_unused(gm) == ("again", "conv.tied")
    assert isinstance(gm.conv.weight, nn.Parameter)


def test_a_container_with_two_names_keeps_what_either_is_read_for(gm):
    gm.again = gm.conv
    node_of(gm, "conv.bias").target = "again.bias"
    assert delete_unused(gm) == ()


def test_called_submodules_stay_whole_and_bodies_keep_what_they_use():
    inner = Graph()
    x = inner.placeholder("x")
    inner.output((inner.call_function(aten.add.Tensor, (x, inner.get_attr("used"))),))
    body = GraphModule({"used": torch.ones(1)}, inner)
    body.register_buffer("unused", torch.ones(1))
    root = nn.Module()
    root.body, root.other_body, root.called = body, GraphModule(body, inner), nn.BatchNorm1d(3)
    graph = Graph()
    x = graph.placeholder("x")
    called = graph.call_module("called", (x,))
    graph.output(graph.call_function(torch.ops.higher_order.cond, (True, graph.get_attr("body"), called)))
    gm = GraphModule(root, graph)
    gm.other_body = root.other_body
    assert nested_graph_modules(gm) == (gm.body,)
    assert delete_unused(gm) == ("other_body", "body.unused")
    assert len(gm.called.state_dict()) == 5
    assert torch.equal(gm.body.used, torch.ones(1))
