"""Named cases of matching: what users write in different ways is found, and what is declined says why."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from lowbit.errors import PatternError
from lowbit.matchers import search
from lowbit.matchers.capture import capture
from lowbit.matchers.match import Match, Miss
from lowbit.matchers.subgraph import SubgraphMatcherWithNameNodeMap
from lowbit.passes.base import PassContext
from lowbit.passes.normalize import Normalize
from torch import nn
from torch.fx import Graph, GraphModule

aten = torch.ops.aten
IMAGE = torch.zeros(1, 3, 8, 8)
CONV_INPUTS = (IMAGE, torch.zeros(3, 3, 3, 3), torch.zeros(3))
VECTOR = torch.zeros(4)


def export(module, *inputs, strict=False):
    """The module as matchers meet it: exported and normalized."""
    gm = torch.export.export(module.eval(), inputs or (IMAGE,), strict=strict).module()
    Normalize().run(gm, PassContext())
    return gm


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def graph_of(function, *inputs):
    return export(Call(function), *inputs).graph


def only(graph, target):
    (node,) = graph.find_nodes(op="call_function", target=target)
    return node


def conv_relu(input, weight, bias):
    conv = F.conv2d(input, weight, bias)
    output = F.relu(conv)
    return output, {"input": input, "weight": weight, "bias": bias, "conv": conv, "output": output}


def conv(x, weight, bias):
    return F.conv2d(x, weight, bias)


def relu(x):
    return F.relu(x)


def add(x, y):
    return x + y


# What the tutorials show.


@pytest.mark.parametrize("as_module", [False, True], ids=["function", "graph-module"])
def test_the_tutorials_annotation_loop(as_module):
    if as_module:
        pattern = torch.export.export(Call(conv_relu), CONV_INPUTS).module()
        matcher = SubgraphMatcherWithNameNodeMap(pattern)
    else:
        matcher = SubgraphMatcherWithNameNodeMap(conv_relu, CONV_INPUTS)
    model = export(
        nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 3, 1, bias=False), nn.ReLU())
    )
    matches = matcher.match(model)
    for match in matches:
        names = match.name_node_map
        assert set(names) == {"input", "weight", "bias", "conv", "output"}
        assert match.nodes == (names["conv"], names["output"])
        assert match.placeholder_nodes == [names["input"], names["weight"], names["bias"]]
        assert match.returning_nodes == [names["output"]]
        assert names["conv"].args[:3] == (names["input"], names["weight"], names["bias"])
        names["output"].meta["quantization_annotation"] = "seen"
    relus = model.graph.find_nodes(op="call_function", target=aten.relu.default)
    assert [match.anchor for match in matches] == relus
    assert all("quantization_annotation" in node.meta for node in relus)
    assert matches[0].name_node_map["bias"].target == "0.bias"
    assert matches[1].name_node_map["bias"] is None


def test_the_pattern_module_handed_in_is_left_alone():
    pattern = torch.export.export(Call(conv_relu), CONV_INPUTS).module()
    before = str(pattern.graph)
    matcher = SubgraphMatcherWithNameNodeMap(pattern)
    assert str(pattern.graph) == before
    (match,) = matcher.match(graph_of(lambda *a: conv_relu(*a)[0], *CONV_INPUTS))
    assert set(match.nodes_map) <= set(matcher.pattern.nodes)


def test_matching_exports_nothing(monkeypatch):
    matcher = SubgraphMatcherWithNameNodeMap(conv_relu, CONV_INPUTS)
    model = export(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))

    def no_export(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(torch.export, "export", no_export)
    assert len(matcher.match(model)) == 1
    assert SubgraphMatcherWithNameNodeMap(conv_relu, CONV_INPUTS).match(model.graph)


# The same operators, written in different ways.


class ReusedReLU(nn.Module):
    """A residual block as in torchvision's ResNet: one ReLU module called twice."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.conv1(x))
        out = self.conv2(out)
        out += x
        return self.relu(out)


@pytest.mark.parametrize("strict", [False, True])
def test_a_relu_module_called_twice_is_found_twice(strict):
    model = export(ReusedReLU(), strict=strict)
    relus = model.graph.find_nodes(op="call_function", target=aten.relu.default)
    assert len(relus) == 2
    assert [match.anchor for match in SubgraphMatcherWithNameNodeMap(relu, (VECTOR,)).match(model)] == relus
    (match,) = SubgraphMatcherWithNameNodeMap(conv_relu, CONV_INPUTS).match(model)
    assert match.anchor is relus[0]

    def conv_add_relu(x, weight, bias, y):
        return F.relu(F.conv2d(x, weight, bias) + y), {"y": y}

    (match,) = SubgraphMatcherWithNameNodeMap(
        conv_add_relu, (*CONV_INPUTS, CONV_INPUTS[0][..., :6, :6])
    ).match(model)
    assert match.anchor is relus[1]
    assert match.name_node_map["y"].op == "placeholder"


class ConvSubclass(nn.Conv2d):
    pass


class ConvFunction(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.kwargs = kwargs

    def forward(self, x):
        return F.conv2d(x, self.conv.weight, self.conv.bias, **self.kwargs)


class ConvKeywords(ConvFunction):
    def forward(self, x):
        return F.conv2d(input=x, bias=self.conv.bias, stride=2, weight=self.conv.weight)


class ConvTwice(ConvFunction):
    def forward(self, x):
        return self.conv(self.conv(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("module", "count"),
    [
        (nn.Conv2d(3, 3, 3), 1),
        (nn.Conv2d(3, 3, 3, stride=2, padding=1, dilation=2, groups=3), 1),
        (nn.Conv2d(3, 3, 3, bias=False), 1),
        (nn.Conv2d(3, 3, 3, padding="same"), 1),
        (ConvSubclass(3, 3, 3), 1),
        (ConvFunction(), 1),
        (ConvFunction(stride=2, padding=1), 1),
        (ConvKeywords(), 1),
        (ConvTwice(), 2),
    ],
)
def test_every_way_to_write_a_convolution_is_found(module, count, strict):
    matches = SubgraphMatcherWithNameNodeMap(conv, CONV_INPUTS).match(export(module, strict=strict))
    assert len(matches) == count


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        torch.add,
        lambda x, y: x.add(y),
        lambda x, y: x.clone().add_(y),
        lambda x, y: operator.iadd(x.clone(), y),
        lambda x, y: torch.add(input=x, other=y, alpha=1),
    ],
)
def test_every_way_to_write_an_addition_is_found(function):
    graph = graph_of(function, VECTOR, VECTOR.clone())
    assert len(SubgraphMatcherWithNameNodeMap(add, (VECTOR, VECTOR)).match(graph)) == 1


# Literals.


def test_literals_are_wildcards_unless_asked_for():
    graph = graph_of(lambda *a: F.conv2d(*a, stride=2), *CONV_INPUTS)
    (match,) = SubgraphMatcherWithNameNodeMap(conv, CONV_INPUTS).match(graph)
    exact = SubgraphMatcherWithNameNodeMap(conv, CONV_INPUTS, ignore_literals=False)
    assert exact.match(graph) == []
    miss = exact.match_at(match.anchor)
    assert (miss.reason, miss.node) == ("different-literal", match.anchor)
    assert miss.detail == "stride of %conv2d is [2, 2], in the pattern [1, 1]"


def test_equal_literals_match_exactly_whether_given_or_left_out():
    # By hand: one call complete, one without what has a default.
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    short = graph.call_function(aten.conv2d.default, (x, weight), {"padding": [0, 0]})
    full = graph.call_function(aten.conv2d.default, (short, weight, None, [1, 1], [0, 0], [1, 1], 1))
    graph.output(full)
    exact = SubgraphMatcherWithNameNodeMap(conv, CONV_INPUTS, ignore_literals=False)
    assert [match.anchor for match in exact.match(graph)] == [short, full]


def test_literals_of_different_types_differ():
    exact = SubgraphMatcherWithNameNodeMap(lambda x: x + 1, (VECTOR,), ignore_literals=False)
    assert len(exact.match(graph_of(lambda x: x + 1, VECTOR))) == 1
    assert exact.match(graph_of(lambda x: x + 1.0, VECTOR)) == []
    assert exact.match(graph_of(lambda x: x + True, VECTOR)) == []


def test_a_symbolic_size_matches_a_literal_that_is_ignored():
    def flatten(x):
        return x.reshape(4, 6).relu()

    class Flatten(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0], 6).relu()

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Flatten(), (torch.zeros(4, 2, 3),), dynamic_shapes={"x": {0: batch}})
    graph = program.module().graph
    example = (torch.zeros(4, 2, 3),)
    assert len(SubgraphMatcherWithNameNodeMap(flatten, example).match(graph)) == 1
    exact = SubgraphMatcherWithNameNodeMap(flatten, example, ignore_literals=False)
    assert exact.match(graph) == []


def test_which_output_of_a_node_is_read_is_not_a_literal_to_ignore():
    def first(x):
        return torch.topk(x, 2)[0].relu()

    matcher = SubgraphMatcherWithNameNodeMap(first, (VECTOR,))
    assert len(matcher.match(graph_of(first, VECTOR))) == 1
    graph = graph_of(lambda x: torch.topk(x, 2)[1].relu(), VECTOR)
    assert matcher.match(graph) == []
    assert matcher.match_at(only(graph, aten.relu.default)).reason == "different-literal"


# Tensors that are absent, and numbers in place of tensors.


def test_no_bias_in_the_pattern_does_not_match_a_bias():
    matcher = SubgraphMatcherWithNameNodeMap(F.conv2d, CONV_INPUTS[:2])
    assert len(matcher.match(export(nn.Conv2d(3, 3, 3, bias=False)))) == 1
    graph = export(nn.Conv2d(3, 3, 3)).graph
    miss = matcher.match_at(only(graph, aten.conv2d.default))
    assert (miss.reason, miss.node.target) == ("unexpected-node", "bias")


def test_a_number_is_no_tensor_and_a_tensor_no_number():
    tensors = SubgraphMatcherWithNameNodeMap(add, (VECTOR, VECTOR))
    number = SubgraphMatcherWithNameNodeMap(lambda x: x + 2, (VECTOR,))
    plus_tensor = graph_of(add, VECTOR, VECTOR.clone())
    plus_number = graph_of(lambda x: x + 5, VECTOR)
    assert len(tensors.match(plus_tensor)) == len(number.match(plus_number)) == 1
    assert tensors.match_at(only(plus_number, aten.add.Tensor)).reason == "not-a-node"
    assert number.match_at(only(plus_tensor, aten.add.Tensor)).reason == "unexpected-node"


# Repeated and commuting operands.


def test_an_input_used_twice_is_one_node():
    matcher = SubgraphMatcherWithNameNodeMap(lambda x: x * torch.sigmoid(x), (VECTOR,))
    assert len(matcher.match(graph_of(lambda x: x * torch.sigmoid(x), VECTOR))) == 1
    assert len(matcher.match(graph_of(lambda x: torch.sigmoid(x) * x, VECTOR))) == 1
    graph = graph_of(lambda x, y: x * torch.sigmoid(y), VECTOR, VECTOR.clone())
    miss = matcher.match_at(only(graph, aten.mul.Tensor))
    assert (miss.reason, miss.node.name) == ("different-node", "args_1")


def test_two_inputs_may_be_one_node():
    graph = graph_of(lambda x: x + x, VECTOR)
    (match,) = SubgraphMatcherWithNameNodeMap(add, (VECTOR, VECTOR)).match(graph)
    assert match.placeholder_nodes[0] is match.placeholder_nodes[1]


@pytest.mark.parametrize("function", [lambda c, y: c + y, lambda c, y: y + c])
def test_a_residual_addition_is_found_on_either_side(function):
    def conv_add(x, weight, bias, y):
        conv = F.conv2d(x, weight, bias)
        return conv + y, {"conv": conv, "y": y}

    graph = graph_of(lambda x, w, b, y: function(F.conv2d(x, w, b, padding=1), y), *CONV_INPUTS, IMAGE)
    (match,) = SubgraphMatcherWithNameNodeMap(conv_add, (*CONV_INPUTS, torch.zeros(1, 3, 6, 6))).match(graph)
    assert match.name_node_map["conv"].target is aten.conv2d.default
    assert match.name_node_map["y"].name == "args_3"


def test_operands_are_taken_as_written_if_that_matches():
    (match,) = SubgraphMatcherWithNameNodeMap(add, (VECTOR, VECTOR)).match(
        graph_of(add, VECTOR, VECTOR.clone())
    )
    assert [node.name for node in match.placeholder_nodes] == ["args_0", "args_1"]

    def residual(x, y):
        return F.relu(x) + y, {"relu": x}

    graph = graph_of(lambda x, y: F.relu(x) + F.relu(y), VECTOR, VECTOR.clone())
    (match,) = SubgraphMatcherWithNameNodeMap(residual, (VECTOR, VECTOR)).match(graph)
    assert match.name_node_map["relu"].name == "args_0"


def test_a_second_user_of_one_operand_leaves_the_other():
    def residual(x, y):
        return F.relu(x) + y, {"x": x}

    def model(x, y):
        first = F.relu(x)
        return first + F.relu(y), first

    graph = graph_of(model, VECTOR, VECTOR.clone())
    (match,) = SubgraphMatcherWithNameNodeMap(residual, (VECTOR, VECTOR)).match(graph)
    assert match.name_node_map["x"].name == "args_1"


def test_a_scaled_addition_does_not_commute():
    def relu_add(x, y):
        return F.relu(x) + y

    matcher = SubgraphMatcherWithNameNodeMap(relu_add, (VECTOR, VECTOR))
    inputs = (VECTOR, VECTOR.clone())
    assert len(matcher.match(graph_of(lambda x, y: torch.add(F.relu(x), y, alpha=2), *inputs))) == 1
    assert matcher.match(graph_of(lambda x, y: torch.add(x, F.relu(y), alpha=2), *inputs)) == []


def test_subtraction_does_not_commute():
    matcher = SubgraphMatcherWithNameNodeMap(lambda x, y: F.relu(x) - y, (VECTOR, VECTOR))
    inputs = (VECTOR, VECTOR.clone())
    assert len(matcher.match(graph_of(lambda x, y: F.relu(x) - y, *inputs))) == 1
    assert matcher.match(graph_of(lambda x, y: x - F.relu(y), *inputs)) == []


def test_one_choice_of_operands_is_taken_back_for_the_sake_of_another():
    # x is settled by the outer product, after the sum has been tried as written.
    def pattern(x, y):
        return (x + y) * torch.sigmoid(x), {"x": x, "y": y}

    graph = graph_of(lambda a, b: torch.sigmoid(b) * (a + b), VECTOR, VECTOR.clone())
    (match,) = SubgraphMatcherWithNameNodeMap(pattern, (VECTOR, VECTOR)).match(graph)
    assert {name: node.name for name, node in match.name_node_map.items()} == {"x": "args_1", "y": "args_0"}


def test_the_latest_choice_is_taken_back_first():
    def pattern(x, y):
        return (x + y) - x * y

    def model(a, b):
        return (a + b) - b * a

    # Swapping the sum alone, or the product alone, would do.
    (match,) = SubgraphMatcherWithNameNodeMap(pattern, (VECTOR, VECTOR)).match(
        graph_of(model, VECTOR, VECTOR.clone())
    )
    assert [node.name for node in match.placeholder_nodes] == ["args_0", "args_1"]


def test_two_operators_of_the_pattern_are_two_of_the_graph():
    def pattern(x, y):
        return torch.stack([x.relu(), y.relu()])

    def model(x):
        once = x.relu()
        return torch.stack([once, once])

    graph = graph_of(model, VECTOR)
    miss = SubgraphMatcherWithNameNodeMap(pattern, (VECTOR, VECTOR)).match_at(only(graph, aten.stack.default))
    assert (miss.reason, miss.node) == ("different-node", only(graph, aten.relu.default))
    assert (
        len(
            SubgraphMatcherWithNameNodeMap(pattern, (VECTOR, VECTOR)).match(
                graph_of(pattern, VECTOR, VECTOR.clone())
            )
        )
        == 1
    )


# What surrounds a match.


def test_a_second_user_inside_declines_and_says_so():
    def model(x, weight, bias):
        out = F.conv2d(x, weight, bias)
        return F.relu(out), torch.sigmoid(out)

    graph = graph_of(model, *CONV_INPUTS)
    matcher = SubgraphMatcherWithNameNodeMap(conv_relu, CONV_INPUTS)
    assert matcher.match(graph) == []
    miss = matcher.match_at(only(graph, aten.relu.default))
    assert isinstance(miss, Miss)
    assert (miss.reason, miss.node) == ("second-user", only(graph, aten.conv2d.default))
    assert "%relu, %sigmoid" in miss.detail


def test_returning_an_inner_result_from_the_model_is_a_second_user():
    def model(x, weight, bias):
        out = F.conv2d(x, weight, bias)
        return out, F.relu(out)

    graph = graph_of(model, *CONV_INPUTS)
    matcher = SubgraphMatcherWithNameNodeMap(conv_relu, CONV_INPUTS)
    assert matcher.match_at(only(graph, aten.relu.default)).reason == "second-user"


def test_a_result_the_pattern_returns_may_have_other_users():
    def both(x, weight, bias):
        out = F.conv2d(x, weight, bias)
        return F.relu(out), out

    def model(x, weight, bias):
        out = F.conv2d(x, weight, bias)
        return F.relu(out), torch.sigmoid(out)

    graph = graph_of(model, *CONV_INPUTS)
    (match,) = SubgraphMatcherWithNameNodeMap(both, CONV_INPUTS).match(graph)
    assert match.returning_nodes == [only(graph, aten.relu.default), only(graph, aten.conv2d.default)]


def test_of_all_that_was_tried_the_nearest_miss_is_told():
    def residual(x, y):
        return F.relu(x) + y

    def model(x, y):
        out = F.relu(y)
        return torch.sigmoid(x) + out, out

    # As written the first operand is another operator; swapped it is the right one, but is read twice.
    graph = graph_of(model, VECTOR, VECTOR.clone())
    miss = SubgraphMatcherWithNameNodeMap(residual, (VECTOR, VECTOR)).match_at(only(graph, aten.add.Tensor))
    assert (miss.reason, miss.node) == ("second-user", only(graph, aten.relu.default))


def test_another_operator_is_told():
    graph = export(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sigmoid(), nn.ReLU())).graph
    matcher = SubgraphMatcherWithNameNodeMap(conv_relu, CONV_INPUTS)
    miss = matcher.match_at(only(graph, aten.relu.default))
    assert (miss.reason, miss.node) == ("different-target", only(graph, aten.sigmoid.default))
    assert matcher.match_at(graph.find_nodes(op="placeholder")[0]).reason == "different-target"
    assert matcher.match_at(graph.output_node()).reason == "different-target"


def test_an_input_is_nothing_the_match_computes():
    def model(x, weight, bias):
        out = F.conv2d(x, weight, bias)
        return out + out

    graph = graph_of(model, *CONV_INPUTS)
    matcher = SubgraphMatcherWithNameNodeMap(
        lambda x, w, b, y: F.conv2d(x, w, b) + y, (*CONV_INPUTS, VECTOR[0])
    )
    miss = matcher.match_at(only(graph, aten.add.Tensor))
    assert (miss.reason, miss.node) == ("input-inside", only(graph, aten.conv2d.default))


def test_an_input_that_depends_on_an_output_would_close_a_cycle():
    def both(x, y):
        out = F.relu(x)
        return out * y, out

    matcher = SubgraphMatcherWithNameNodeMap(both, (VECTOR, VECTOR))

    def apart(x, y):
        out = F.relu(x)
        return out * torch.sigmoid(y), out

    def cyclic(x):
        out = F.relu(x)
        return out * torch.sigmoid(out)

    assert len(matcher.match(graph_of(apart, VECTOR, VECTOR.clone()))) == 1
    graph = graph_of(cyclic, VECTOR)
    miss = matcher.match_at(only(graph, aten.mul.Tensor))
    assert (miss.reason, miss.node) == ("input-inside", only(graph, aten.relu.default))


# Overlap.


def test_of_overlapping_matches_the_first_stays():
    graph = graph_of(lambda x: x.relu().relu().relu().relu().relu(), VECTOR)
    relus = graph.find_nodes(op="call_function", target=aten.relu.default)

    def twice(x):
        return x.relu().relu()

    matcher = SubgraphMatcherWithNameNodeMap(twice, (VECTOR,))
    assert [match.nodes for match in matcher.match(graph)] == [tuple(relus[0:2]), tuple(relus[2:4])]
    assert matcher.match_at(relus[2], claimed={relus[1]}).reason == "overlap"
    every = SubgraphMatcherWithNameNodeMap(twice, (VECTOR,), remove_overlapping_matches=False)
    assert [match.anchor for match in every.match(graph)] == relus[1:]


def test_an_earlier_match_may_be_the_input_of_a_later_one():
    graph = graph_of(lambda x: x.relu().relu(), VECTOR)
    assert len(SubgraphMatcherWithNameNodeMap(relu, (VECTOR,)).match(graph)) == 2


# Lists, several outputs, parameters of the pattern.


def test_lists_of_tensors_match_lists_of_the_same_length():
    def cat(x, y):
        return torch.cat([x, y.relu()], 0)

    matcher = SubgraphMatcherWithNameNodeMap(cat, (VECTOR, VECTOR))
    inputs = (VECTOR, VECTOR.clone())
    (match,) = matcher.match(graph_of(lambda x, y: torch.cat((x, y.relu()), dim=-1), *inputs))
    assert [node.name for node in match.placeholder_nodes] == ["args_0", "args_1"]
    graph = graph_of(lambda x, y: torch.cat([x, y.relu(), x]), *inputs)
    assert matcher.match_at(only(graph, aten.cat.default)).reason == "different-length"
    assert matcher.match(graph_of(lambda x, y: torch.cat([x.relu(), y]), *inputs)) == []


def test_outputs_are_found_from_what_they_share():
    def heads(x, w, v):
        x = F.relu(x)
        return F.linear(x, w), F.linear(x, v).sigmoid(), {"w": w, "v": v}

    matrices = (torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(5, 4))

    def model(x, w, v):
        x = F.relu(x)
        return F.linear(x, v).sigmoid(), F.linear(x, w).tanh()

    graph = graph_of(model, *matrices)
    matcher = SubgraphMatcherWithNameNodeMap(heads, matrices)
    # The first candidate is the linear before the sigmoid, and then there is no second output.
    first, second = graph.find_nodes(op="call_function", target=aten.linear.default)
    assert matcher.match_at(first).reason == "different-target"
    (match,) = matcher.match(graph)
    assert match.anchor is second
    assert {name: node.name for name, node in match.name_node_map.items()} == {"w": "args_1", "v": "args_2"}
    assert match.returning_nodes == [second, only(graph, aten.sigmoid.default)]


def test_projections_of_one_input_are_grouped_in_graph_order():
    def two(x, w, v):
        return F.linear(x, w), F.linear(x, v)

    inputs = [torch.zeros(2, 4), *(torch.zeros(n, 4) for n in range(1, 6))]
    graph = graph_of(lambda x, *ws: tuple(F.linear(x, w) for w in ws), *inputs)
    matches = SubgraphMatcherWithNameNodeMap(two, (inputs[0], inputs[1], inputs[2])).match(graph)
    assert [[n.name for n in match.placeholder_nodes] for match in matches] == [
        ["args_0", "args_1", "args_2"],
        ["args_0", "args_3", "args_4"],
    ]


def test_parameters_of_a_pattern_stand_for_parameters():
    pattern = torch.export.export(nn.Conv2d(3, 3, 3), (IMAGE,)).module()
    matcher = SubgraphMatcherWithNameNodeMap(pattern)
    assert len(matcher.match(export(nn.Conv2d(3, 5, 1)))) == 1
    graph = graph_of(conv, *CONV_INPUTS)
    assert matcher.match_at(only(graph, aten.conv2d.default)).reason == "different-target"


# Options about the borders of the graph.


def test_match_placeholder_keeps_to_inputs_of_the_graph():
    matcher = SubgraphMatcherWithNameNodeMap(relu, (VECTOR,), match_placeholder=True)
    graph = graph_of(lambda x: x.relu().relu(), VECTOR)
    first, second = graph.find_nodes(op="call_function", target=aten.relu.default)
    assert [match.anchor for match in matcher.match(graph)] == [first]
    assert matcher.match_at(second).reason == "not-a-placeholder"


def test_match_output_keeps_to_outputs_of_the_graph():
    matcher = SubgraphMatcherWithNameNodeMap(relu, (VECTOR,), match_output=True)
    graph = graph_of(lambda x: x.relu().relu(), VECTOR)
    first, second = graph.find_nodes(op="call_function", target=aten.relu.default)
    assert [match.anchor for match in matcher.match(graph)] == [second]
    assert matcher.match_at(first).reason == "not-returned"


# Patterns that are refused.


def test_a_function_without_example_inputs_is_refused():
    with pytest.raises(
        PatternError, match=r"(?s)conv_relu came without example inputs.*do: pass example_inputs"
    ):
        SubgraphMatcherWithNameNodeMap(conv_relu)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (lambda x: x, "no operator to look for"),
        (lambda x, y: (x.relu(), y.relu()), "falls apart: %relu_1"),
        (lambda x, y: (x.relu(), {"y": y.relu()}), "'y', but no output depends on it"),
        (lambda x, y: (x.relu(), {"y": y}), "'y', but no output depends on it"),
        (lambda x, y: (x.relu(), {"both": [x, y]}), r"gives the name 'both' to \["),
        (
            lambda x: torch.cond(x.sum() > 0, lambda x: x.relu(), lambda x: x.neg(), (x,)),
            "is not a tensor",
        ),
    ],
)
def test_patterns_that_cannot_be_matched_are_refused(pattern, message):
    inputs = (VECTOR,) * pattern.__code__.co_argcount
    with pytest.raises(PatternError, match=message):
        SubgraphMatcherWithNameNodeMap(pattern, inputs)


def test_a_pattern_that_calls_modules_is_refused():
    class Pattern(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(x)

    with pytest.raises(PatternError, match="call_module of 'relu'"):
        SubgraphMatcherWithNameNodeMap(torch.fx.symbolic_trace(Pattern()))


def test_checks_that_export_adds_are_no_users_of_what_they_check():
    def pattern(x):
        return (x * x).to(torch.float64).relu()

    assert aten._assert_tensor_metadata.default in {
        node.target for node in capture(pattern, (VECTOR,)).graph.nodes
    }
    graph = Graph()
    x = graph.placeholder("x")
    squared = graph.call_function(aten.mul.Tensor, (x, x))
    wide = graph.call_function(aten.to.dtype, (squared, torch.float64))
    graph.output((graph.call_function(aten.relu.default, (wide,)), squared))
    matcher = SubgraphMatcherWithNameNodeMap(pattern, (VECTOR,))
    assert matcher.match_at(only(graph, aten.relu.default)).reason == "second-user"


# Size.


def residual_chain(blocks):
    """conv → add of the input → relu, again and again: 3 nodes a block."""
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    for _ in range(blocks):
        out = graph.call_function(aten.conv2d.default, (x, weight, None, [1, 1], [1, 1]))
        out = graph.call_function(aten.add.Tensor, (x, out))
        x = graph.call_function(aten.relu.default, (out,))
    graph.output(x)
    return graph


def sum_of(terms):
    """A left-leaning sum, whose every node commutes."""
    graph = Graph()
    total = graph.placeholder("x")
    for i in range(terms):
        total = graph.call_function(aten.add.Tensor, (total, graph.placeholder(f"x{i}")))
    graph.output(total)
    return graph


def conv_add_relu(x, weight, y):
    return F.relu(F.conv2d(x, weight) + y)


def sum_tree(a, b, c, d):
    return ((a + b) + (c + d)).relu() + a


@pytest.mark.parametrize(
    ("make_graph", "pattern", "inputs", "matches_in_one"),
    [
        (residual_chain, conv_add_relu, (*CONV_INPUTS[:2], torch.zeros(1, 3, 6, 6)), 1),
        (sum_of, lambda a, b, c, d: a + b + c + d, (VECTOR,) * 4, 1 / 3),
        (sum_of, sum_tree, (VECTOR,) * 4, 0),
    ],
    ids=["residual-chain", "sums", "sums-that-miss"],
)
def test_matching_visits_nodes_in_proportion_to_the_graph(
    monkeypatch, make_graph, pattern, inputs, matches_in_one
):
    matcher = SubgraphMatcherWithNameNodeMap(pattern, inputs)
    visits = 0
    read = search.operands

    def count(node):
        nonlocal visits
        visits += 1
        return read(node)

    monkeypatch.setattr(search, "operands", count)
    counts = []
    for size in (1500, 3000):
        visits = 0
        graph = make_graph(size)
        assert len(matcher.match(graph)) == int(size * matches_in_one)
        counts.append(visits)
    assert counts[0] >= 1500
    assert counts[1] <= 2 * counts[0] + 10
    assert counts[1] <= 6 * 3000


def test_a_pattern_of_thousands_of_nodes_needs_no_recursion():
    def chain(length):
        graph = Graph()
        x = graph.placeholder("x")
        for _ in range(length):
            x = graph.call_function(aten.relu.default, (x,))
        graph.output((x,))
        return graph

    matcher = SubgraphMatcherWithNameNodeMap(GraphModule(nn.Module(), chain(5000)))
    relus = chain(5001).find_nodes(op="call_function", target=aten.relu.default)
    match = matcher.match_at(relus[-1])
    assert isinstance(match, Match)
    assert match.nodes == tuple(relus[1:])
    assert matcher.match_at(relus[-3]).reason == "different-target"
