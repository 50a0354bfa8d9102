"""Copies of graph modules: what is shared, what is not, and that the original never notices."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.ir.annotation import QuantizationAnnotation, get_annotation, set_annotation
from lowbit.ir.clone import clone_graph_module
from lowbit.ir.observers import DerivedObserver, MinMaxObserver
from lowbit.ir.snapshot import take_snapshot
from lowbit.ir.specs import DerivedQuantizationSpec, QuantizationSpec, SharedQuantizationSpec
from torch import nn
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
INT8 = QuantizationSpec(torch.int8, MinMaxObserver)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.again = self.conv
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.constant = torch.full((3, 1, 1), 2.0)

    def forward(self, x, *, scale, extra=None):
        y = self.again(x) * scale["by"] + self.constant
        return {"y": y if extra is None else y + extra, "count": self.count + 1}


def export() -> GraphModule:
    kwargs = {"scale": {"by": torch.tensor(3.0)}}
    return torch.export.export(Model().eval(), (torch.ones(1, 2, 2, 2),), kwargs).module()


def clone(gm: GraphModule) -> GraphModule:
    """A clone that runs."""
    new = clone_graph_module(gm)
    new.recompile()
    return new


def node(gm: GraphModule, name: str) -> Node:
    return next(n for n in gm.graph.nodes if n.name == name)


def test_a_clone_computes_the_same_with_its_keyword_arguments_and_output_structure() -> None:
    gm = export()
    x, kwargs = torch.randn(1, 2, 2, 2), {"scale": {"by": torch.tensor(0.5)}}
    expected, found = gm(x, **kwargs), clone(gm)(x, **kwargs)
    assert list(found) == ["y", "count"]
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_a_clone_has_the_text_of_the_original() -> None:
    gm = export()
    new = clone(gm)
    assert str(new.graph) == str(gm.graph)
    assert new.code == gm.code
    assert take_snapshot(new).digest == take_snapshot(gm).digest
    assert type(new).__name__ == type(gm).__name__


def test_tensors_are_shared_and_modules_are_not() -> None:
    gm = export()
    new = clone(gm)
    assert new.state_dict().keys() == gm.state_dict().keys()
    assert new.conv.weight is gm.conv.weight
    assert isinstance(new.conv.weight, nn.Parameter)
    assert new.count is gm.count
    assert "count" not in new.state_dict()
    assert new.constant is gm.constant
    assert {id(m) for m in new.modules()}.isdisjoint({id(m) for m in gm.modules()})


def test_one_module_under_two_names_stays_one() -> None:
    gm = export()
    gm.other_name = gm.conv
    new = clone(gm)
    assert new.other_name is new.conv


def test_replacing_attributes_of_the_clone_leaves_the_original_alone() -> None:
    gm = export()
    weight = gm.conv.weight
    new = clone(gm)
    new.conv.weight = nn.Parameter(torch.zeros_like(weight))
    del new.conv.bias
    new.register_buffer("more", torch.ones(1))
    new.register_buffer("hidden", torch.ones(1), persistent=False)
    new.add_module("sub", nn.ReLU())
    new.meta["key"] = 1
    assert gm.conv.weight is weight
    assert gm.conv.bias is not None
    assert not any(hasattr(gm, name) for name in ("more", "hidden", "sub"))
    assert gm._non_persistent_buffers_set == {"count"}
    assert "key" not in gm.meta


def test_changing_the_graph_of_the_clone_leaves_the_original_alone() -> None:
    gm = export()
    before, code = take_snapshot(gm), gm.code
    new = clone_graph_module(gm)
    for n in list(new.graph.nodes):
        n.meta["key"] = 1
        if n.op == "call_function":
            n.args = tuple(reversed(n.args))
    new.graph.erase_node(new.graph.output_node())
    assert take_snapshot(gm).same_as(before)
    assert gm.code == code
    assert not any("key" in n.meta for n in gm.graph.nodes)


def test_what_users_keep_on_the_module_comes_along() -> None:
    gm = export()
    gm.notes, gm.rows, gm.owner = {"accuracy": 0.9}, [1, 2], object()
    gm.meta["mine"] = "yes"
    new = clone(gm)
    assert (new.notes, new.rows) == ({"accuracy": 0.9}, [1, 2])
    assert new.owner is gm.owner
    assert new.meta == gm.meta
    assert new.training is gm.training
    assert new.range_constraints == gm.range_constraints
    # What is gathered on one is not gathered on the other.
    new.notes["more"] = 1
    new.rows.append(3)
    assert (gm.notes, gm.rows) == ({"accuracy": 0.9}, [1, 2])


def test_code_made_for_the_original_is_not_the_clones() -> None:
    gm = export()
    gm.forward = lambda *args, **kwargs: "replaced"
    gm._compiled_call_impl = gm.forward
    assert list(clone(gm)(torch.ones(1, 2, 2, 2), scale={"by": torch.ones(())})) == ["y", "count"]


def test_tensors_that_the_graph_writes_into_are_the_clones_own() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("step", torch.ones(()), persistent=False)

        def forward(self, x):
            self.count.add_(self.step)
            return x * self.count

    gm = torch.export.export(Counting(), (torch.ones(1),)).module()
    new = clone(gm)
    assert new.step is gm.step
    assert [new(torch.ones(1)).item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert gm.count.item() == 0.0
    assert gm(torch.ones(1)).item() == 1.0
    assert new.count.item() == 3.0
    assert list(new.state_dict()) == list(gm.state_dict()) == ["count"]


def test_forward_hooks_are_kept() -> None:
    gm = export()
    seen: list[str] = []
    gm.register_forward_hook(lambda module, args, output: seen.append("hook"))
    new = clone(gm)
    new(torch.ones(1, 2, 2, 2), scale={"by": torch.ones(())})
    assert seen == ["hook"]
    # Hooks added to one are not hooks of the other.
    new.register_forward_hook(lambda module, args, output: seen.append("own"))
    gm(torch.ones(1, 2, 2, 2), scale={"by": torch.ones(())})
    assert seen == ["hook", "hook"]


def test_guards_of_the_exported_program_still_hold() -> None:
    gm = torch.export.export(nn.ReLU(), (torch.ones(2, 3),)).module()
    for module in (gm, clone(gm)):
        with pytest.raises((AssertionError, RuntimeError), match=r"Guard failed: .*size\(\)"):
            module(torch.ones(2, 4))


def test_train_and_eval_are_no_longer_refused() -> None:
    # The tutorials' calibration loop calls model.eval(), which exported modules refuse.
    gm = export()
    with pytest.raises(NotImplementedError):
        gm.eval()
    assert clone(gm).eval() is not None
    with pytest.raises(NotImplementedError):
        gm.eval()


def names(gm: GraphModule) -> list[object]:
    """Annotations of ``gm`` with nodes as (name, is it a node of gm's own graph)."""
    own = set(gm.graph.nodes)

    def show(point: object) -> object:
        return (point.name, point in own) if isinstance(point, Node) else tuple(map(show, point))

    found: list[object] = []
    for n in gm.graph.nodes:
        annotation = get_annotation(n)
        if annotation is None:
            continue
        for producer, spec in [*annotation.input_qspec_map.items(), (None, annotation.output_qspec)]:
            points = getattr(spec, "derived_from", None) or getattr(spec, "edge_or_node", ())
            found.append((n.name, producer and show(producer), show(points)))
    return found


def annotated() -> GraphModule:
    graph = Graph()
    x = graph.placeholder("x")
    a = graph.call_function(aten.relu.default, (x,), name="a")
    b = graph.call_function(aten.add.Tensor, (a, x), name="b")
    graph.output(b)
    derived = DerivedQuantizationSpec(
        [(x, a), a], lambda observers: observers[0].calculate_qparams(), torch.int32
    )
    set_annotation(a, QuantizationAnnotation({x: INT8}, SharedQuantizationSpec((x, a)), _annotated=True))
    set_annotation(
        b,
        QuantizationAnnotation(
            {a: SharedQuantizationSpec(a), x: None}, derived, allow_implicit_sharing=False
        ),
    )
    return GraphModule(nn.Module(), graph)


def test_annotations_point_at_the_clones_own_nodes() -> None:
    gm = annotated()
    expected = [
        ("a", ("x", True), ()),
        ("a", None, (("x", True), ("a", True))),
        ("b", ("a", True), ("a", True)),
        ("b", ("x", True), ()),
        ("b", None, ((("x", True), ("a", True)), ("a", True))),
    ]
    assert names(gm) == expected
    new = clone(gm)
    assert names(new) == expected
    assert names(gm) == expected
    annotation = get_annotation(node(new, "b"))
    assert annotation is not get_annotation(node(gm, "b"))
    assert not annotation.allow_implicit_sharing
    assert get_annotation(node(new, "a"))._annotated


def test_annotating_the_clone_leaves_the_original_alone() -> None:
    gm = annotated()
    new = clone(gm)
    a, x = node(new, "a"), node(new, "x")
    get_annotation(a).input_qspec_map[x] = None
    get_annotation(a).output_qspec = INT8
    original = get_annotation(node(gm, "a"))
    assert original.input_qspec_map == {node(gm, "x"): INT8}
    assert original.output_qspec == SharedQuantizationSpec((node(gm, "x"), node(gm, "a")))


@pytest.mark.parametrize(
    "annotation",
    [
        {"output_qspec": INT8},
        QuantizationAnnotation({"x": INT8}),
        QuantizationAnnotation(output_qspec=SharedQuantizationSpec("ab")),
        QuantizationAnnotation(output_qspec=SharedQuantizationSpec(Graph().placeholder("elsewhere"))),
        QuantizationAnnotation(output_qspec=torch.int8),
    ],
)
def test_bogus_annotations_come_along_for_others_to_report(annotation) -> None:
    gm = export()
    node(gm, "conv2d").meta["quantization_annotation"] = annotation
    assert node(clone(gm), "conv2d").meta["quantization_annotation"] == annotation


def test_nested_graphs_are_copies_of_their_own() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((2,), 3.0))

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda y: y * self.weight, lambda y: y.neg(), (x,))

    gm = torch.export.export(Branches(), (torch.ones(2),)).module()
    new = clone_graph_module(gm)
    body = new.true_graph_0
    assert body is not gm.true_graph_0
    assert body.graph.owning_module is body
    for n in body.graph.find_nodes(op="call_function", target=aten.mul.Tensor):
        n.target = aten.add.Tensor
    body.recompile()
    new.recompile()
    assert new(torch.ones(2)).tolist() == [4.0, 4.0]
    assert new(-torch.ones(2)).tolist() == [1.0, 1.0]
    assert gm(torch.ones(2)).tolist() == [3.0, 3.0]


def observed() -> GraphModule:
    """x → observer → output, with an observer that derives from it beside it."""
    root = nn.Module()
    root.source = MinMaxObserver()
    root.derived = DerivedObserver(
        [root.source], lambda observers: observers[0].calculate_qparams(), torch.uint8
    )
    graph = Graph()
    x = graph.call_module("source", (graph.placeholder("x"),))
    graph.output(graph.call_module("derived", (x,)))
    return GraphModule(root, graph)


@pytest.mark.parametrize("copied", [clone, copy.deepcopy, lambda gm: clone(clone(gm))])
def test_derived_observers_derive_from_the_observers_of_the_copy(copied) -> None:
    gm = observed()
    gm(torch.tensor([0.0, 255.0]))
    new = copied(gm)
    assert new.derived.sources == (new.source,)
    assert new.source is not gm.source
    assert gm.derived.sources == (gm.source,)
    assert new.derived.calculate_qparams()[0].item() == 1.0
    new.source.max_val = torch.tensor(510.0)
    assert new.derived.calculate_qparams()[0].item() == 2.0
    assert gm.derived.calculate_qparams()[0].item() == 1.0


def test_a_clone_can_be_deep_copied() -> None:
    gm = clone(annotated())
    new = copy.deepcopy(gm)
    assert str(new.graph) == str(gm.graph)
    assert names(new) == names(gm)
    assert torch.equal(new(torch.ones(2)), gm(torch.ones(2)))


TARGETS = [aten.relu.default, aten.add.Tensor, aten.cat.default, aten.clamp.Tensor]


@st.composite
def graphs(draw: st.DrawFn) -> GraphModule:
    """Random graphs, with names, kwargs, lists and metadata."""
    graph = Graph()
    inputs = draw(
        st.lists(st.sampled_from(["x", "x_1", "x_01", "arg7"]), min_size=2, max_size=2, unique=True)
    )
    nodes = [graph.placeholder(name) for name in inputs]
    for _ in range(draw(st.integers(0, 12))):
        target = draw(st.sampled_from(TARGETS))
        a, b = (nodes[draw(st.integers(0, len(nodes) - 1))] for _ in range(2))
        args, kwargs = {
            "relu": ((a,), {}),
            "add": ((a, b), {"alpha": 2}),
            "cat": (([a, b, a], 0), {}),
            "clamp": ((a,), {"min": b}),
        }[target.name().split("::")[1].split(".")[0]]
        name = draw(st.sampled_from(["x", "y", "y_1", "relu", "relu_3", "relu_03", "cat_1_1"]))
        nodes.append(graph.create_node("call_function", target, args, kwargs, name=name))
        nodes[-1].meta["index"] = len(nodes)
    for index in sorted(draw(st.sets(st.integers(2, len(nodes)), max_size=3)), reverse=True):
        # Names that were given up are not given again.
        if index < len(nodes) and not nodes[index].users:
            graph.erase_node(nodes.pop(index))
    graph.output((nodes[-1], [nodes[0]]))
    return GraphModule(nn.Module(), graph)


@settings(max_examples=150)
@given(graphs())
def test_a_clone_is_equal_node_by_node_whatever_the_graph(gm: GraphModule) -> None:
    new = clone_graph_module(gm)
    assert new.graph.owning_module is new
    new.graph.lint()
    for old_node, new_node in zip(gm.graph.nodes, new.graph.nodes, strict=True):
        assert new_node is not old_node
        assert new_node.graph is new.graph
        assert new_node.format_node() == old_node.format_node()
        assert new_node.meta == old_node.meta
        assert new_node.meta is not old_node.meta
    assert take_snapshot(new).digest == take_snapshot(gm).digest
