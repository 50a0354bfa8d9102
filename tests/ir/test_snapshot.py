"""Snapshots: every kind of change is seen, nothing else is, and equal graphs have equal digests."""

from __future__ import annotations

import copy

import pytest
import torch
from lowbit.ir.annotation import QuantizationAnnotation, get_annotation, set_annotation
from lowbit.ir.observers import HistogramObserver, MinMaxObserver
from lowbit.ir.snapshot import (
    GROUPS_KEY,
    KERNEL_KEY,
    changed_attributes,
    take_snapshot,
    written_attributes,
)
from lowbit.ir.specs import QuantizationSpec
from torch import nn
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
INT8 = QuantizationSpec(torch.int8, MinMaxObserver)
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver)


def make() -> GraphModule:
    """weight + observer(x), clamped, annotated; with a branch of ``cond`` at the end."""
    branch = Graph()
    branch.output((branch.call_function(aten.relu.default, (branch.placeholder("y"),)),))
    root = nn.Module()
    root.weight = nn.Parameter(torch.ones(2))
    root.observer = MinMaxObserver()
    root.observer.inner = nn.Sequential(nn.BatchNorm1d(1))
    root.branch = GraphModule({"bias": torch.zeros(2)}, branch)
    graph = Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("weight")
    observed = graph.call_module("observer", (x,))
    add = graph.call_function(aten.add.Tensor, (observed, weight), {"alpha": 2}, name="add")
    clamp = graph.call_function(aten.clamp.default, (add, -1, 1), name="clamp")
    body = graph.get_attr("branch")
    graph.output(graph.call_function(torch.ops.higher_order.cond, (True, body, body, (clamp,)), name="cond"))
    set_annotation(add, QuantizationAnnotation({weight: INT8}, UINT8))
    return GraphModule(root, graph)


def node(gm: GraphModule, name: str) -> Node:
    return next(n for n in gm.graph.nodes if n.name == name)


def set_args(gm: GraphModule) -> None:
    node(gm, "clamp").args = (node(gm, "add"), -1, 2)


def set_an_argument_of_another_type(gm: GraphModule) -> None:
    # 1 == 1.0, and clamping integers by 1.0 gives floats.
    node(gm, "clamp").args = (node(gm, "add"), -1, 1.0)


def set_a_boolean_for_a_number(gm: GraphModule) -> None:
    node(gm, "clamp").args = (node(gm, "add"), -1, True)


def read_another_node(gm: GraphModule) -> None:
    node(gm, "add").replace_input_with(node(gm, "weight"), node(gm, "x"))


def set_kwargs(gm: GraphModule) -> None:
    node(gm, "add").kwargs = {"alpha": 3}


def set_a_kwarg_of_another_type(gm: GraphModule) -> None:
    node(gm, "add").kwargs = {"alpha": 2.0}


def set_target(gm: GraphModule) -> None:
    node(gm, "add").target = aten.sub.Tensor


def rename(gm: GraphModule) -> None:
    node(gm, "add").name = "sum"


def annotate(gm: GraphModule) -> None:
    set_annotation(node(gm, "clamp"), QuantizationAnnotation())


def remove_annotation(gm: GraphModule) -> None:
    del node(gm, "add").meta["quantization_annotation"]


def mutate_annotated_input(gm: GraphModule) -> None:
    get_annotation(node(gm, "add")).input_qspec_map[node(gm, "weight")] = UINT8


def add_annotated_input(gm: GraphModule) -> None:
    get_annotation(node(gm, "add")).input_qspec_map[node(gm, "x")] = None


def mutate_annotated_output(gm: GraphModule) -> None:
    get_annotation(node(gm, "add")).output_qspec = None


def forbid_implicit_sharing(gm: GraphModule) -> None:
    get_annotation(node(gm, "add")).allow_implicit_sharing = False


def claim(gm: GraphModule) -> None:
    get_annotation(node(gm, "add"))._annotated = True


def label_groups(gm: GraphModule) -> None:
    node(gm, "add").meta[GROUPS_KEY] = "out g0"


def label_kernel(gm: GraphModule) -> None:
    node(gm, "add").meta[KERNEL_KEY] = "add → qadd"


def move(gm: GraphModule) -> None:
    node(gm, "x").append(node(gm, "branch"))


def insert(gm: GraphModule) -> None:
    with gm.graph.inserting_after(node(gm, "x")):
        gm.graph.call_function(aten.relu.default, (node(gm, "x"),))


def erase(gm: GraphModule) -> None:
    clamp = node(gm, "clamp")
    clamp.replace_all_uses_with(node(gm, "add"))
    gm.graph.erase_node(clamp)


def replace_parameter(gm: GraphModule) -> None:
    gm.weight = nn.Parameter(torch.ones(2))


def write_parameter(gm: GraphModule) -> None:
    with torch.no_grad():
        gm.weight.add_(0)


def replace_module(gm: GraphModule) -> None:
    gm.observer = MinMaxObserver()


def write_buffer_of_module(gm: GraphModule) -> None:
    gm.observer.min_val.fill_(0.0)


def write_far_inside_of_module(gm: GraphModule) -> None:
    gm.observer.inner[0].running_mean.fill_(1.0)


def replace_buffer_of_module(gm: GraphModule) -> None:
    gm.observer.min_val = torch.zeros(())


def change_branch(gm: GraphModule) -> None:
    node(gm.branch, "relu_default").target = aten.neg.default


def delete_attribute(gm: GraphModule) -> None:
    del gm.weight


CHANGES = [
    *(set_args, set_an_argument_of_another_type, set_a_boolean_for_a_number, read_another_node, set_kwargs),
    *(set_a_kwarg_of_another_type, set_target, rename, annotate, remove_annotation, mutate_annotated_input),
    *(
        add_annotated_input,
        mutate_annotated_output,
        forbid_implicit_sharing,
        claim,
        label_groups,
        label_kernel,
    ),
    *(
        move,
        insert,
        erase,
        replace_parameter,
        write_parameter,
        replace_module,
        write_buffer_of_module,
        write_far_inside_of_module,
    ),
    *(replace_buffer_of_module, change_branch, delete_attribute),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_kind_of_change_is_seen(change) -> None:
    gm = make()
    before = take_snapshot(gm)
    change(gm)
    after = take_snapshot(gm)
    assert not before.same_as(after)
    assert not after.same_as(before)
    assert after.same_as(take_snapshot(gm))


def write_the_same_arguments(gm: GraphModule) -> None:
    n = node(gm, "clamp")
    n.args, n.kwargs = tuple(n.args), dict(n.kwargs)


def write_an_equal_annotation(gm: GraphModule) -> None:
    add = node(gm, "add")
    set_annotation(
        add, QuantizationAnnotation({node(gm, "weight"): INT8}, QuantizationSpec(torch.uint8, MinMaxObserver))
    )


def write_other_metadata(gm: GraphModule) -> None:
    node(gm, "add").meta["mine"] = 1
    node(gm, "add").meta["stack_trace"] = "elsewhere"


def move_and_move_back(gm: GraphModule) -> None:
    move(gm)
    node(gm, "clamp").append(node(gm, "branch"))


def add_an_unused_attribute(gm: GraphModule) -> None:
    gm.unused = nn.Parameter(torch.ones(1))


def recompile(gm: GraphModule) -> None:
    gm.recompile()


@pytest.mark.parametrize(
    "change",
    [
        *(write_the_same_arguments, write_an_equal_annotation, write_other_metadata, move_and_move_back),
        *(add_an_unused_attribute, recompile),
    ],
)
def test_nothing_else_is_a_change(change) -> None:
    gm = make()
    before = take_snapshot(gm)
    change(gm)
    assert before.same_as(take_snapshot(gm))


def test_running_a_graph_does_not_change_it() -> None:
    gm = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)).module()
    before = take_snapshot(gm)
    gm(torch.ones(1, 2))
    assert before.same_as(take_snapshot(gm))


@pytest.mark.parametrize(
    ("change", "changed", "written"),
    [
        (replace_parameter, ["weight"], []),
        (write_parameter, ["weight"], ["weight"]),
        (replace_module, ["observer"], []),
        (write_buffer_of_module, ["observer"], ["observer"]),
        (write_far_inside_of_module, ["observer"], ["observer"]),
        (replace_buffer_of_module, ["observer"], []),
        (change_branch, ["branch"], []),
        (delete_attribute, ["weight"], []),
        (set_args, [], []),
    ],
)
def test_what_was_replaced_is_told_from_what_was_written_into(change, changed, written) -> None:
    gm = make()
    before = take_snapshot(gm)
    change(gm)
    after = take_snapshot(gm)
    assert list(changed_attributes(before, after)) == changed
    assert list(written_attributes(before, after)) == written


def test_a_write_in_a_branch_is_a_write() -> None:
    gm = make()
    gm.branch.register_buffer("bias", torch.zeros(2))
    with gm.branch.graph.inserting_before(gm.branch.graph.output_node()):
        gm.branch.graph.get_attr("bias")
    before = take_snapshot(gm)
    gm.branch.bias.add_(1)
    after = take_snapshot(gm)
    assert list(written_attributes(before, after)) == ["branch"]


def test_tensors_made_under_inference_mode_have_no_version_to_read() -> None:
    gm = make()
    with torch.inference_mode():
        gm.weight = nn.Parameter(torch.ones(2), requires_grad=False)
    assert take_snapshot(gm).same_as(take_snapshot(gm))


def test_an_annotation_that_is_none_of_lowbits_is_left_to_others() -> None:
    gm = make()
    node(gm, "add").meta["quantization_annotation"] = {"output_qspec": INT8}
    assert take_snapshot(gm).same_as(take_snapshot(gm))


def test_the_text_is_a_line_a_node() -> None:
    gm = make()
    node(gm, "clamp").meta["val"] = torch.empty(2, 3)
    node(gm, "clamp").meta[GROUPS_KEY] = "out g0"
    node(gm, "clamp").meta[KERNEL_KEY] = "clamp → qclamp"
    assert list(take_snapshot(gm).lines()) == [
        "%x = placeholder x",
        "%weight = get_attr weight",
        "%observer = self.observer(%x)",
        "%add = aten.add.Tensor(%observer, %weight, alpha=2)  "
        "{%weight: i8 MinMaxObserver; out: u8 MinMaxObserver}",
        "%clamp: f32[2, 3] = aten.clamp.default(%add, -1, 1)  {groups: out g0}  {kernel: clamp → qclamp}",
        "%branch = get_attr branch",
        "%cond = cond(True, %branch, %branch, [%clamp])",
        "return %cond",
    ]


def test_the_text_shows_all_that_tells_specs_apart() -> None:
    gm = make()
    texts = set()
    for eps in (2**-12, 2**-11):
        spec = QuantizationSpec(
            torch.uint8, HistogramObserver.with_args(eps=eps), 0, 127, torch.per_tensor_affine
        )
        set_annotation(node(gm, "add"), QuantizationAnnotation(output_qspec=spec))
        texts.add(list(take_snapshot(gm).lines())[3])
    assert sorted(texts) == [
        "%add = aten.add.Tensor(%observer, %weight, alpha=2)  "
        f"{{out: u8 [0, 127] per_tensor_affine HistogramObserver.with_args(eps={eps!r})}}"
        for eps in (2**-12, 2**-11)
    ]


def test_equal_graphs_have_equal_digests_and_others_have_not() -> None:
    assert take_snapshot(make()).digest == take_snapshot(make()).digest
    digests = {take_snapshot(make()).digest}
    shown = [c for c in CHANGES if c not in _NOT_IN_THE_TEXT]
    for change in shown:
        gm = make()
        change(gm)
        digests.add(take_snapshot(gm).digest)
    assert len(digests) == 1 + len(shown)


# The digest is of the graph's text, which has the names of attributes and not what they hold.
_NOT_IN_THE_TEXT = {
    *(replace_parameter, write_parameter, replace_module, write_buffer_of_module, write_far_inside_of_module),
    *(replace_buffer_of_module, change_branch, delete_attribute, claim, add_annotated_input),
}


def test_snapshots_survive_the_graph_they_are_of() -> None:
    gm = make()
    before = take_snapshot(gm)
    lines = list(before.lines())
    set_args(gm)
    mutate_annotated_input(gm)
    assert list(before.lines()) == lines
    assert copy.copy(before).digest == before.digest
