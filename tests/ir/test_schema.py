from __future__ import annotations

import pytest
import torch
from lowbit.errors import GraphInputError, UnknownNameError
from lowbit.ir.schema import (
    HigherOrderOperator,
    OpOverload,
    argument,
    complete_arguments,
    is_composite,
    operator_name,
    schema_of,
    signature,
)
from torch.fx import Graph, Node

aten = torch.ops.aten


def call(target, *args, **kwargs) -> Node:
    graph = Graph()
    x = graph.placeholder("x")
    return graph.call_function(target, (x, *args), kwargs)


def test_what_torch_has_no_public_names_for_is_where_we_take_it_from():
    """When torch moves these, this fails first; ir/schema.py is the one place to change."""
    op = aten.add_.Tensor
    assert isinstance(op, OpOverload)
    assert isinstance(torch.ops.higher_order.cond, HigherOrderOperator)
    assert operator_name(op) == ("aten", "add_", "Tensor")
    assert operator_name(aten.relu.default) == ("aten", "relu", "default")
    assert str(schema_of(op)).startswith("aten::add_.Tensor(Tensor(a!) self")
    assert schema_of(op).arguments[0].alias_info.is_write
    assert is_composite(aten.conv2d.default)
    assert not is_composite(aten.add.Tensor)


def test_trailing_defaults_are_filled_in_schema_order():
    node = call(aten.conv2d.default, "w")
    assert complete_arguments(node)
    assert node.args[1:] == ("w", None, [1, 1], [0, 0], [1, 1], 1)
    assert node.kwargs == {}


def test_keywords_move_to_their_positions():
    node = call(aten.conv2d.default, "w", groups=2, stride=[3, 3])
    assert complete_arguments(node)
    assert node.args[1:] == ("w", None, [3, 3], [0, 0], [1, 1], 2)
    assert node.kwargs == {}


def test_keyword_only_defaults_are_added_in_schema_order():
    node = call(aten.empty_like.default, pin_memory=False, dtype=torch.int8)
    assert complete_arguments(node)
    assert tuple(node.kwargs.items()) == (
        ("dtype", torch.int8),
        ("layout", None),
        ("device", None),
        ("pin_memory", False),
        ("memory_format", None),
    )


def test_enumerations_are_filled_in_as_what_calls_take():
    node = call(aten.contiguous.default)
    complete_arguments(node)
    assert node.kwargs == {"memory_format": torch.contiguous_format}
    graph = Graph()
    randint = graph.call_function(aten.randint.default, (9, [2]))
    complete_arguments(randint)
    assert randint.kwargs["dtype"] is torch.int64


def test_every_aten_schema_has_a_signature():
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        if namespace == "aten":
            packet, _, overload = rest.partition(".")
            op = getattr(getattr(aten, packet), overload or "default", None)
            if op is not None:
                sig = signature(op)
                assert len(sig.positional) + len(sig.keyword_only) == len(op._schema.arguments)


def test_completing_is_idempotent_and_keeps_identity():
    node = call(aten.add.Tensor, 1)
    assert complete_arguments(node)
    args, kwargs = node.args, node.kwargs
    assert not complete_arguments(node)
    assert node.args is args
    assert node.kwargs is kwargs


def test_completed_defaults_are_not_shared_between_nodes():
    first, second = call(aten.conv2d.default, "w"), call(aten.conv2d.default, "w")
    complete_arguments(first)
    complete_arguments(second)
    with pytest.raises(TypeError, match="mutation"):
        first.args[3].append(0)
    first.update_arg(3, [2, 2])
    assert second.args[3] == [1, 1]


def test_calls_without_a_schema_are_left_alone():
    node = call(torch.relu)
    assert not complete_arguments(node)
    with pytest.raises(GraphInputError, match="'input'"):
        argument(node, "input")


def test_a_missing_required_argument_is_an_error():
    node = call(aten.conv2d.default)
    with pytest.raises(GraphInputError, match="'weight'"):
        complete_arguments(node)
    with pytest.raises(GraphInputError, match="'weight'"):
        argument(node, "weight")


@pytest.mark.parametrize("complete", [False, True])
def test_argument_reads_by_name(complete):
    node = call(aten.conv2d.default, "w", None, [2, 2], groups=4)
    if complete:
        complete_arguments(node)
    assert argument(node, "input") is node.args[0]
    assert argument(node, "weight") == "w"
    assert argument(node, "stride") == [2, 2]
    assert argument(node, "dilation") == [1, 1]
    assert argument(node, "groups") == 4
    scaled = call(aten.add.Tensor, 1, alpha=3)
    assert argument(scaled, "alpha") == 3
    assert argument(call(aten.add.Tensor, 1), "alpha") == 1


def test_an_unknown_argument_is_an_error_that_lists_the_known():
    with pytest.raises(UnknownNameError, match="stride, padding, dilation"):
        argument(call(aten.conv2d.default, "w"), "strides")
