"""Where observers stand, how many there are, and what they see."""

from __future__ import annotations

import copy

import pytest
import torch
from lowbit import calibrate, prepare_pt2e
from lowbit.errors import UnsupportedError
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.attributes import is_constant
from lowbit.ir.ledger import Ledger
from lowbit.ir.observers import (
    DerivedObserver,
    FixedQParamsObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from lowbit.ir.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from lowbit.ir.stages import Stage, get_stage
from lowbit.ir.verifiers import is_observer
from lowbit.passes import Annotate, InsertObservers, Normalize, PassContext, PassManager, Pipeline
from torch import nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
INT8 = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
WEIGHT = QuantizationSpec(
    torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, ch_axis=0
)
FLOAT = QuantizationSpec(torch.float32, PlaceholderObserver)
FLOAT16 = QuantizationSpec(torch.float16, PlaceholderObserver)


@pytest.fixture
def prepare(export, quantizer):
    """``prepare(model, inputs, {target: function of its node that returns an annotation})``."""

    def prepare(model, inputs, annotations, ledger: Ledger | None = None) -> GraphModule:
        def annotate_node(node: Node) -> None:
            if node.target in annotations:
                set_annotation(node, annotations[node.target](node))

        context = PassContext(quantizer=quantizer(annotate_node), ledger=ledger or Ledger())
        pipeline = Pipeline((Normalize(), Annotate(), InsertObservers()))
        return PassManager().run(export(model, *inputs), pipeline, context)

    return prepare


def observer_calls(gm: GraphModule) -> list[tuple[str, str]]:
    """What each observer is called on, and its name, in graph order."""
    return [
        (node.args[0].name, node.target)
        for node in gm.graph.find_nodes(op="call_module")
        if is_observer(gm.get_submodule(node.target))
    ]


def the(gm: GraphModule, target: object) -> Node:
    (node,) = gm.graph.find_nodes(op="call_function", target=target)
    return node


def read(gm: GraphModule, target: object) -> list[str]:
    """What the node reads."""
    return [node.name for node in the(gm, target).all_input_nodes]


def edge(position: int, spec) -> object:
    return lambda node: QuantizationAnnotation({node.args[position]: spec})


def output(spec) -> object:
    return lambda node: QuantizationAnnotation(output_qspec=spec)


class Unary(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Binary(Unary):
    def forward(self, x, y):
        return self.function(x, y)


X = (torch.tensor([[-1.0, 3.0]]),)


# -- where


def test_an_annotated_edge_is_read_through_an_observer_and_others_are_not(prepare) -> None:
    gm = prepare(Unary(lambda x: (x.relu(), x.tanh())), X, {aten.relu.default: edge(0, UINT8)})
    assert observer_calls(gm) == [("x", "activation_post_process")]
    assert read(gm, aten.relu.default) == ["activation_post_process"]
    assert read(gm, aten.tanh.default) == ["x"]
    assert get_stage(gm) is Stage.OBSERVED


def test_an_annotated_output_is_read_through_its_observer_by_all(prepare) -> None:
    # Also by consumers that are not annotated, and by the output of the graph, as with torch.
    gm = prepare(Unary(lambda x: (x.relu(), x.relu().tanh())), X, {aten.relu.default: output(UINT8)})
    assert len(observer_calls(gm)) == 2
    returned = [node.op for node in gm.graph.output_node().all_input_nodes]
    assert returned == ["call_module", "call_function"]
    assert [n.op for n in the(gm, aten.tanh.default).all_input_nodes] == ["call_module"]


def test_nothing_is_inserted_where_nothing_is_annotated(prepare) -> None:
    with pytest.warns(UserWarning, match="annotated no tensor"):
        gm = prepare(Unary(lambda x: x.relu()), X, {})
    assert observer_calls(gm) == []


def test_x_plus_x_is_one_edge(prepare) -> None:
    # PEER: "x + x can carry one spec only"; it is one producer, so one spec is what there is.
    gm = prepare(Unary(lambda x: x + x), X, {aten.add.Tensor: edge(0, UINT8)})
    assert len(observer_calls(gm)) == 1
    observed, again = the(gm, aten.add.Tensor).args[:2]
    assert observed is again
    assert observed.op == "call_module"


def test_inputs_in_lists_and_keyword_arguments_are_observed(prepare) -> None:
    # PEER: a Node in kwargs crashes there.
    def function(x, y):
        return torch.cat([x, y, x], 1), torch.clamp(x, min=y)

    def keyword(node):
        return QuantizationAnnotation({node.kwargs["min"]: UINT8})

    def list_of(node):
        return QuantizationAnnotation({node.args[0][0]: UINT8, node.args[0][1]: UINT8})

    inputs = (torch.ones(1, 2), torch.zeros(1, 2))

    # Normalization may write a keyword argument as a positional one, so it is left out here.
    graph_module = torch.export.export(Binary(function), inputs).module()
    clamp = the(graph_module, aten.clamp.Tensor)
    clamp.args, clamp.kwargs = (clamp.args[0],), {"min": clamp.args[1]}
    set_annotation(clamp, keyword(clamp))
    set_annotation(the(graph_module, aten.cat.default), list_of(the(graph_module, aten.cat.default)))
    InsertObservers().run(graph_module, PassContext())
    graph_module.graph.lint()
    graph_module.recompile()

    # x under cat, y under cat and clamp (implicitly shared).
    assert sorted(source for source, _ in observer_calls(graph_module)) == ["x", "y"]
    assert [n.op for n in the(graph_module, aten.cat.default).all_input_nodes] == ["call_module"] * 2
    assert the(graph_module, aten.clamp.Tensor).kwargs["min"].op == "call_module"
    for found, expected in zip(graph_module(*inputs), function(*inputs), strict=True):
        assert torch.equal(found, expected)


def test_different_specs_on_one_tensor_are_two_observers_in_a_row(prepare) -> None:
    gm = prepare(
        Unary(lambda x: x.relu().tanh()),
        X,
        {aten.relu.default: output(UINT8), aten.tanh.default: edge(0, INT8)},
    )
    (first, outer), (second, inner) = observer_calls(gm)
    assert first == "relu"
    assert second == outer
    assert (gm.get_submodule(outer).dtype, gm.get_submodule(inner).dtype) == (torch.uint8, torch.int8)
    assert read(gm, aten.tanh.default) == [inner]


def test_an_output_that_stays_float32_has_no_observer_and_neither_do_its_readers(prepare) -> None:
    gm = prepare(
        Unary(lambda x: x.relu().tanh()),
        X,
        {aten.relu.default: output(FLOAT), aten.tanh.default: edge(0, FLOAT)},
    )
    assert observer_calls(gm) == []
    assert read(gm, aten.tanh.default) == ["relu"]


def test_a_float32_output_does_not_keep_an_edge_from_being_quantized(prepare) -> None:
    gm = prepare(
        Unary(lambda x: x.relu().tanh()),
        X,
        {aten.relu.default: output(FLOAT), aten.tanh.default: edge(0, UINT8)},
    )
    assert observer_calls(gm) == [("relu", "activation_post_process")]


def test_casts_are_marked(prepare) -> None:
    gm = prepare(Unary(lambda x: x.relu()), X, {aten.relu.default: edge(0, FLOAT16)})
    ((_, target),) = observer_calls(gm)
    assert gm.get_submodule(target).dtype is torch.float16


def test_guards_look_at_what_came_in(prepare) -> None:
    gm = prepare(
        Unary(lambda x: x.relu()),
        X,
        {"x": output(UINT8)},
    )
    assert observer_calls(gm) == [("x", "activation_post_process")]
    (guards,) = [n for n in gm.graph.find_nodes(op="call_module") if n.target == "_guards_fn"]
    assert [n.name for n in guards.all_input_nodes] == ["x"]


def test_observer_nodes_say_where_they_come_from(prepare) -> None:
    gm = prepare(Unary(lambda x: x.relu().tanh()), X, {aten.tanh.default: edge(0, UINT8)})
    (observer,) = [n for n in gm.graph.find_nodes(op="call_module") if n.target != "_guards_fn"]
    relu = the(gm, aten.relu.default)
    for key in ("val", "stack_trace", "nn_module_stack", "from_node"):
        assert observer.meta[key] is relu.meta[key]
    assert "quantization_annotation" not in observer.meta


# -- how many


def test_a_group_is_one_module_called_at_each_of_its_tensors(prepare) -> None:
    def cat(node):
        first, second = node.args[0]
        shared = SharedQuantizationSpec((first, node))
        return QuantizationAnnotation({first: UINT8, second: shared}, shared)

    inputs = (torch.tensor([[0.0, 1.0]]), torch.tensor([[-7.0, 2.0]]))
    gm = prepare(Binary(lambda x, y: torch.cat([x, y], 1)), inputs, {aten.cat.default: cat})
    calls = observer_calls(gm)
    assert sorted(source for source, _ in calls) == ["cat", "x", "y"]
    (target,) = {target for _, target in calls}
    gm(*inputs)
    observer = gm.get_submodule(target)
    assert (observer.min_val.item(), observer.max_val.item()) == (-7.0, 2.0)


def test_readers_that_agree_share_one_call_and_those_that_may_not_do_not(prepare) -> None:
    def alone(node):
        return QuantizationAnnotation({node.args[0]: UINT8}, allow_implicit_sharing=False)

    gm = prepare(
        Unary(lambda x: (x.relu(), x.tanh(), x.sigmoid())),
        X,
        {
            aten.relu.default: edge(0, UINT8),
            aten.tanh.default: edge(0, UINT8),
            aten.sigmoid.default: alone,
        },
    )
    assert read(gm, aten.relu.default) == read(gm, aten.tanh.default) != read(gm, aten.sigmoid.default)
    assert len(observer_calls(gm)) == 2


def test_modules_are_named_in_graph_order_and_around_names_in_use(prepare) -> None:
    gm = prepare(
        Unary(lambda x: x.relu().tanh().sigmoid()),
        X,
        {target: edge(0, UINT8) for target in (aten.sigmoid.default, aten.relu.default, aten.tanh.default)},
    )
    assert [target for _, target in observer_calls(gm)] == [
        *("activation_post_process", "activation_post_process_1", "activation_post_process_2"),
    ]

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activation_post_process = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x.relu() * self.activation_post_process

    gm = prepare(Named(), X, {aten.relu.default: edge(0, UINT8)})
    assert observer_calls(gm) == [("x", "activation_post_process_1")]


def test_fixed_and_derived_specs_make_their_observers(prepare) -> None:
    def linear(node):
        x, weight, bias = node.args
        derived = DerivedQuantizationSpec(
            [(x, node), (weight, node)],
            lambda observers: (
                observers[0].calculate_qparams()[0] * observers[1].calculate_qparams()[0],
                torch.zeros(1, dtype=torch.int32),
            ),
            torch.int32,
            qscheme=torch.per_tensor_symmetric,
        )
        fixed = FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0)
        # The bias comes first in the graph, before what it is derived from.
        return QuantizationAnnotation({bias: derived, weight: INT8, x: UINT8}, fixed)

    gm = prepare(nn.Linear(2, 2), X, {aten.linear.default: linear})
    by_source = {source: gm.get_submodule(target) for source, target in observer_calls(gm)}
    assert isinstance(by_source["bias"], DerivedObserver)
    assert by_source["bias"].sources == (by_source["input_1"], by_source["weight"])
    assert isinstance(by_source["linear"], FixedQParamsObserver)
    # Sources stay those of the model when it is copied.
    copied = copy.deepcopy(gm)
    calls = dict(observer_calls(copied))
    assert copied.get_submodule(calls["bias"]).sources == (
        copied.get_submodule(calls["input_1"]),
        copied.get_submodule(calls["weight"]),
    )


# -- what they see


class Counting(PerChannelMinMaxObserver):
    observed = 0

    def _observe(self, x):
        type(self).observed += 1
        super()._observe(x)


def test_weights_are_observed_once_however_many_steps(export, quantizer, monkeypatch) -> None:
    monkeypatch.setattr(Counting, "observed", 0)
    weight = QuantizationSpec(torch.int8, Counting, -128, 127, torch.per_channel_symmetric, ch_axis=0)

    def annotate_node(node):
        if node.target is aten.linear.default:
            set_annotation(node, QuantizationAnnotation({node.args[0]: UINT8, node.args[1]: weight}))

    gm = prepare_pt2e(export(nn.Linear(2, 3), *X), quantizer(annotate_node))
    calibrate(gm, [torch.randn(1, 2) for _ in range(5)], progress=False)
    assert Counting.observed == 1
    # A weight that changed is another.
    with torch.no_grad():
        gm.weight.mul_(2)
    gm(*X)
    assert Counting.observed == 2
    observer = gm.get_submodule(dict(observer_calls(gm))["weight"])
    assert torch.equal(observer.max_val, gm.weight.amax(1))


def test_a_tied_weight_has_one_observer_that_looks_once(prepare) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2, bias=False)
            self.second = nn.Linear(2, 2, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    gm = prepare(Tied(), X, {aten.linear.default: edge(1, WEIGHT)})
    ((source, target),) = observer_calls(gm)
    assert source in ("first_weight", "second_weight")
    assert gm.get_submodule(target).observe_once


def test_the_work_on_a_weight_does_not_grow_with_the_square_of_its_users(prepare, monkeypatch) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

        def forward(self, x):
            for _ in range(6):
                x = x @ self.weight
            return x

    looked_at: list[Node] = []

    def counting(node: Node) -> bool:
        looked_at.append(node)
        return is_constant(node)

    def alone(node):
        return QuantizationAnnotation({node.args[1]: INT8}, allow_implicit_sharing=False)

    monkeypatch.setattr("lowbit.passes.insert_observers.is_constant", counting)
    gm = prepare(Recurrent(), X, {aten.matmul.default: alone})
    assert len(observer_calls(gm)) == 6
    assert [node.name for node in looked_at] == ["weight"]


@pytest.mark.parametrize("shared", [False, True])
def test_only_observers_of_one_constant_look_once(prepare, shared: bool) -> None:
    def add(node):
        x, weight = node.args[:2]
        return QuantizationAnnotation(
            {x: UINT8, weight: SharedQuantizationSpec((x, node)) if shared else UINT8}
        )

    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 2))

        def forward(self, x):
            return x + self.weight

    gm = prepare(Add(), X, {aten.add.Tensor: add})
    once = {source: gm.get_submodule(target).observe_once for source, target in observer_calls(gm)}
    assert once == {"x": False, "weight": not shared}


# -- memory that is written into


class Cache(nn.Module):
    """Writes into a slice of its buffer, then reads the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1, 2))

    def forward(self, x):
        self.cache[:, 0:1].add_(1.0)
        return self.cache * x


class Assign(Cache):
    def forward(self, x):
        y = self.cache + x
        self.cache.copy_(y)
        return self.cache * x


@pytest.mark.parametrize("model", [Cache, Assign])
@pytest.mark.parametrize("functional", [False, True])
def test_a_buffer_is_read_as_it_is_at_that_moment(model, functional, quantizer) -> None:
    program = torch.export.export(model(), X)
    gm = (program.run_decompositions() if functional else program).module()

    def annotate_node(node):
        if node.op == "call_function" and node.target is not aten.mul.Tensor:
            inputs = {n: UINT8 for n in node.all_input_nodes if n.meta["val"].dtype is torch.float32}
            set_annotation(node, QuantizationAnnotation(inputs))
        elif node.target is aten.mul.Tensor:
            set_annotation(node, QuantizationAnnotation({node.args[0]: UINT8}))

    from lowbit import convert_pt2e

    prepared = prepare_pt2e(gm, quantizer(annotate_node))
    reference = model()
    scale_one = torch.tensor([[255.0, 0.0]])
    for node in prepared.graph.nodes:
        # The destination of a write is never observed.
        if node.target in (aten.copy_.default, aten.add_.Tensor):
            assert not is_observer(getattr(prepared, str(node.args[0].target), None))
    for module in prepared.modules():
        if is_observer(module):
            module(scale_one)
    converted = convert_pt2e(prepared)
    for x in (torch.ones(1, 2), 2 * torch.ones(1, 2), torch.ones(1, 2)):
        # Scales are 1 and values small integers: quantized or not, they are the same.
        expected = reference(x)
        assert torch.equal(converted(x), expected)
    assert torch.equal(converted.cache, reference.cache)


def test_a_write_destination_that_was_annotated_is_in_the_ledger(prepare) -> None:
    ledger = Ledger()
    gm = prepare(Assign(), X, {aten.copy_.default: edge(0, UINT8)}, ledger)
    assert observer_calls(gm) == []
    (decision,) = [d for d in ledger.decisions if d.reason == "written-in-place"]
    assert decision.node == "copy_"
    assert "%cache" in decision.detail


# -- what cannot be


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_refused_rather_than_left_float(prepare, dtype: torch.dtype) -> None:
    spec = QuantizationSpec(dtype, PlaceholderObserver)
    with pytest.raises(
        UnsupportedError, match=r"edge %x → %relu is to be quantized to torch\.float8"
    ) as caught:
        prepare(Unary(lambda x: x.relu()), X, {aten.relu.default: edge(0, spec)})
    assert caught.value.pass_name == "insert-observers"
    assert "%relu (aten.relu.default)" in str(caught.value)


def test_float64_tensors_are_refused_before_they_are_calibrated(prepare) -> None:
    with pytest.raises(UnsupportedError, match="edge %x → %relu carries float64") as caught:
        prepare(Unary(lambda x: x.relu()), (X[0].double(),), {aten.relu.default: edge(0, UINT8)})
    assert "model.float()" in caught.value.hint
    # A cast of it is fine.
    prepare(Unary(lambda x: x.relu()), (X[0].double(),), {aten.relu.default: edge(0, FLOAT16)})


def test_a_spec_derived_from_a_tensor_that_stays_float_is_refused(prepare) -> None:
    def add(node):
        x, y = node.args[:2]
        derived = DerivedQuantizationSpec([(x, node)], lambda o: o[0].calculate_qparams(), torch.uint8)
        return QuantizationAnnotation({x: FLOAT, y: derived})

    with pytest.raises(UnsupportedError, match=r"derived from edge %x → %add, which stays torch\.float32"):
        prepare(Binary(lambda x, y: x + y), (X[0], -X[0]), {aten.add.Tensor: add})


class Counts(nn.Module):
    """Updates running statistics, and reads nothing else of its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        self.norm(x)
        return x.relu()


def test_points_that_nobody_reads_have_no_observer(quantizer) -> None:
    def annotate_node(node: Node) -> None:
        if node.target in (aten.batch_norm.default, aten.relu.default):
            set_annotation(node, QuantizationAnnotation(output_qspec=UINT8))

    exported = torch.export.export(Counts().train(), (torch.ones(2, 3),)).module()
    assert isinstance(exported, GraphModule)
    pipeline = Pipeline((Normalize(), Annotate(), InsertObservers()))
    gm = PassManager().run(exported, pipeline, PassContext(quantizer=quantizer(annotate_node)))
    assert aten.batch_norm.default in [node.target for node in gm.graph.nodes]
    called = {node.target for node in gm.graph.find_nodes(op="call_module")}
    observers = {name for name, module in gm.named_modules() if is_observer(module)}
    assert len(observers) == 1
    assert observers <= called
