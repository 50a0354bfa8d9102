"""Source partitions under strict and non-strict export."""

from __future__ import annotations

import itertools
import operator

import pytest
import torch
import torch.nn.functional as F
from lowbit.matchers.source_partitions import get_source_partitions
from lowbit.passes.base import PassContext
from lowbit.passes.normalize import Normalize
from torch import nn

aten = torch.ops.aten
strict_and_not = pytest.mark.parametrize("strict", [False, True])


class ConvSubclass(nn.Conv2d):
    pass


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.own = ConvSubclass(3, 3, 1)

    def forward(self, x):
        y = self.relu(self.conv(x))
        y = self.relu(self.conv(y) + x)
        y = F.conv2d(y, self.conv.weight, padding=1)
        y = F.relu(self.own(y))
        y = torch.add(y, x)
        y += x
        return (y / 2).relu()


def export(module, *inputs, strict):
    gm = torch.export.export(module.eval(), inputs, strict=strict).module()
    Normalize().run(gm, PassContext())
    return gm.graph


@pytest.fixture(params=[False, True], ids=["non-strict", "strict"])
def graph(request):
    return export(Model(), torch.zeros(1, 3, 8, 8), strict=request.param)


def found(graph, *sources):
    partitions = get_source_partitions(graph, sources)
    return {source: [[node.name for node in p.nodes] for p in ps] for source, ps in partitions.items()}


def test_the_tutorials_way_to_find_additions(graph):
    partitions = get_source_partitions(graph, [operator.add, torch.add])
    nodes = [partition.output_nodes[0] for partition in itertools.chain(*partitions.values())]
    assert [node.name for node in nodes] == ["add", "add_1"]
    assert all(node.target is aten.add.Tensor for node in nodes)


def test_a_module_called_twice_is_two_partitions(graph):
    assert found(graph, nn.ReLU, nn.Conv2d) == {
        nn.ReLU: [["relu_"], ["relu__1"]],
        nn.Conv2d: [["conv2d"], ["conv2d_1"]],
    }


def test_functions_are_found_where_the_model_calls_them(graph):
    assert found(graph, F.relu) == {F.relu: [["relu"]]}
    # A module of the user's own is part of the model, one of torch.nn is not.
    assert found(graph, F.conv2d) == {F.conv2d: [["conv2d_2"], ["conv2d_3"]]}
    assert found(graph, ConvSubclass, F.conv2d) == {ConvSubclass: [["conv2d_3"]], F.conv2d: [["conv2d_2"]]}


def test_operators_are_found_under_the_methods_they_become(graph):
    assert found(graph, operator.iadd, operator.truediv, torch.Tensor.relu) == {
        operator.iadd: [["add_"]],
        operator.truediv: [["div"]],
        torch.Tensor.relu: [["relu_1"]],
    }


def test_what_does_not_occur_is_left_out(graph):
    assert found(graph, nn.Linear, torch.mul) == {}


def test_inputs_outputs_and_parameters(graph):
    first, second = get_source_partitions(graph, [nn.Conv2d])[nn.Conv2d]
    names = {"conv_weight", "conv_bias"}
    assert {node.name for node in first.params} == {node.name for node in second.params} == names
    assert [node.op for node in first.input_nodes] == ["placeholder"]
    assert [node.name for node in second.input_nodes] == ["relu_"]
    assert first.output_nodes == first.nodes
    assert first.source is nn.Conv2d


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Sigmoid(), nn.Linear(4, 4)))

    def forward(self, x):
        return self.inner(self.inner(x)) + x


@strict_and_not
def test_modules_of_several_operators(strict):
    graph = export(Nested(), torch.zeros(2, 4), strict=strict)
    # The innermost wanted class has the node: the outer Sequential keeps what is in no inner one.
    assert found(graph, nn.Sequential) == {
        nn.Sequential: [["linear"], ["sigmoid", "linear_1"], ["linear_2"], ["sigmoid_1", "linear_3"]]
    }
    (whole,) = get_source_partitions(graph, [Nested])[Nested]
    assert [node.name for node in whole.output_nodes] == ["add"]
    assert [node.op for node in whole.input_nodes] == ["placeholder"]
    assert len(whole.params) == 4
