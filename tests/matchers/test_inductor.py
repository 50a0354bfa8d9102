"""Operator patterns as patterns of Inductor's matcher.

``lowbit.matchers.inductor`` is the one module that uses ``torch._inductor.pattern_matcher``. The first test
says which of its names and behaviours are relied on; should they move, it is that module that changes.
"""

from __future__ import annotations

import inspect

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit.ir import quantized_decomposed as qd
from lowbit.matchers.inductor import replace_with_kernels
from lowbit.matchers.operator_pattern import (
    KernelCall,
    Occurrence,
    OperatorPattern,
    OutputQuantization,
    QuantizedOperand,
    Refusal,
    Role,
    Sharing,
)
from torch import Tensor
from torch._inductor import pattern_matcher
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
UINT8 = (0, 255, torch.uint8)


def test_what_is_relied_on_of_the_private_interface() -> None:
    assert "pass_name" in inspect.signature(pattern_matcher.PatternMatcherPass).parameters
    assert {"extra_check", "pass_dict"} <= set(
        inspect.signature(pattern_matcher.register_graph_pattern).parameters
    )
    assert {"nodes", "kwargs"} <= inspect.get_annotations(pattern_matcher.Match).keys()
    assert {"graph", "output_node", "erase_nodes"} <= set(dir(pattern_matcher.Match))
    # A call matches one with more keyword arguments than the pattern has, which out_dtype needs.
    graph = Graph()
    call = graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (graph.placeholder("x"), 0.5, 3, *UINT8))
    call.kwargs = {"out_dtype": None}
    arguments = [pattern_matcher.KeywordArg(name) for name in ("x", "s", "z", "lo", "hi", "dtype")]
    match = pattern_matcher.CallFunction(qd.DEQUANTIZE_PER_TENSOR, *arguments).match(call)
    assert match
    assert (match.kwargs["s"], match.kwargs["dtype"]) == (0.5, torch.uint8)
    # A name used twice is one value.
    twice = pattern_matcher.CallFunction(
        aten.add.Tensor, pattern_matcher.KeywordArg("a"), pattern_matcher.KeywordArg("a")
    )
    x, y = graph.placeholder("y"), graph.placeholder("z")
    assert twice.match(graph.call_function(aten.add.Tensor, (x, x)))
    assert not twice.match(graph.call_function(aten.add.Tensor, (x, y)))


@attrs.define
class Recorder:
    """A kernel that records what it is asked and puts the call of an operator in its place."""

    refusal: Refusal | None = None
    calls: list[KernelCall] = attrs.Factory(list)
    name: str = "recorder"

    def refuses(self, call: KernelCall) -> Refusal | None:
        return self.refusal

    def emit(self, call: KernelCall) -> Node:
        self.calls.append(call)
        first = next(o for o in call.operands.values() if isinstance(o, QuantizedOperand))
        return call.graph.call_function(aten.neg.default, (first.node,))


@attrs.define
class Lowering:
    """Applies patterns to a graph and keeps what was reported."""

    gm: GraphModule
    lowered: list[str] = attrs.Factory(list)
    refused: list[tuple[str, str]] = attrs.Factory(list)

    def apply(self, *patterns: OperatorPattern) -> list[object]:
        replace_with_kernels(
            self.gm,
            patterns,
            lambda pattern, call, node: self.lowered.append(pattern.name),
            lambda pattern, call, refusal: self.refused.append((pattern.name, refusal.reason)),
            lambda pattern, call: True,
        )
        self.gm.graph.eliminate_dead_code()
        self.gm.graph.lint()
        return [n.target for n in self.gm.graph.nodes if n.op == "call_function"]


@attrs.define
class Builder:
    """Writes graphs of quantized operators by hand."""

    graph: Graph = attrs.Factory(Graph)

    def quantized(self, name: str, scale: float = 0.5, zero_point: int = 3) -> Node:
        """A dequantized input."""
        return self.dequantize(self.graph.placeholder(name), scale, zero_point)

    def dequantize(self, x: Node, scale: float = 0.5, zero_point: int = 3) -> Node:
        node = self.graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (x, scale, zero_point, *UINT8))
        node.kwargs = {"out_dtype": None}
        return node

    def quantize(self, x: Node, scale: float = 0.25, zero_point: int = 7) -> Node:
        return self.graph.call_function(qd.QUANTIZE_PER_TENSOR, (x, scale, zero_point, *UINT8))

    def weight(self) -> Node:
        parts = [self.graph.get_attr(name) for name in ("w", "w_scale", "w_zero_point")]
        node = self.graph.call_function(qd.DEQUANTIZE_PER_CHANNEL, (*parts, 0, -128, 127, torch.int8))
        node.kwargs = {"out_dtype": None}
        return node

    def call(self, target: object, *args: object, **kwargs: object) -> Node:
        return self.graph.call_function(target, args, kwargs)

    def done(self, *outputs: Node) -> Lowering:
        self.graph.output(outputs)
        root = torch.nn.Module()
        root.register_buffer("w", torch.zeros(4, 3, dtype=torch.int8))
        root.register_buffer("w_scale", torch.ones(4))
        root.register_buffer("w_zero_point", torch.zeros(4, dtype=torch.int64))
        return Lowering(GraphModule(root, self.graph))


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def linear_add(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    return F.linear(x, weight, bias) + other


def max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3)


def cat(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y])


def linear_inputs() -> tuple[Tensor, ...]:
    return torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)


WEIGHTED = (Role.ACTIVATION, Role.WEIGHT, Role.BIAS)


def linear_pattern(kernel: Recorder | None, **options: object) -> OperatorPattern:
    return OperatorPattern("linear", linear, linear_inputs, WEIGHTED, kernel, **options)


def linear_add_pattern(kernel: Recorder) -> OperatorPattern:
    return OperatorPattern(
        "linear-add",
        linear_add,
        lambda: (*linear_inputs(), torch.zeros(2, 4)),
        (*WEIGHTED, Role.ACTIVATION),
        kernel,
    )


def pool_pattern(kernel: Recorder | None) -> OperatorPattern:
    inputs = (torch.zeros(1, 1, 6, 6),)
    same = Sharing.SAME_AS_INPUT
    return OperatorPattern("max_pool2d", max_pool, lambda: inputs, (Role.ACTIVATION,), kernel, same)


def cat_pattern(kernel: Recorder) -> OperatorPattern:
    inputs = torch.zeros(1), torch.zeros(1)
    roles = (Role.ACTIVATION, Role.ACTIVATION)
    return OperatorPattern("cat", cat, lambda: inputs, roles, kernel, Sharing.SAME_AS_INPUT)


def test_a_call_with_its_quantize() -> None:
    build, kernel = Builder(), Recorder()
    x, weight = build.quantized("x"), build.weight()
    lowering = build.done(build.quantize(build.call(aten.linear.default, x, weight, None)))
    assert lowering.apply(linear_pattern(kernel)) == [aten.neg.default]
    assert lowering.lowered == ["linear"]
    (call,) = kernel.calls
    assert call.quantization == OutputQuantization(0.25, 7, 0, 255, torch.uint8)
    operand, weights = call.operands["x"], call.operands["weight"]
    assert isinstance(operand, QuantizedOperand)
    assert isinstance(weights, QuantizedOperand)
    assert (operand.node.target, operand.scale, operand.zero_point, operand.axis) == ("x", 0.5, 3, None)
    assert (weights.node.target, weights.axis, weights.dtype) == ("w", 0, torch.int8)
    assert weights.scale.target == "w_scale"
    assert call.operands["bias"] is None
    assert [node.target for node in call.nodes] == [aten.linear.default]


def test_a_call_whose_result_is_read_in_float() -> None:
    build, kernel = Builder(), Recorder()
    y = build.call(aten.linear.default, build.quantized("x"), build.weight(), build.graph.placeholder("b"))
    lowering = build.done(build.quantize(y), build.quantize(y, 0.5))
    quantizes = [qd.QUANTIZE_PER_TENSOR] * 2
    assert lowering.apply(linear_pattern(kernel)) == [aten.neg.default, *quantizes]
    assert kernel.calls[0].quantization is None


@pytest.mark.parametrize("swapped", [False, True])
def test_larger_patterns_first_and_additions_either_way(swapped: bool) -> None:
    build, small, large = Builder(), Recorder(), Recorder()
    other = build.quantized("other", 0.125)
    y = build.call(aten.linear.default, build.quantized("x"), build.weight(), None)
    operands = (other, y) if swapped else (y, other)
    lowering = build.done(build.quantize(build.call(aten.add.Tensor, *operands, alpha=1)))
    lowering.apply(linear_pattern(small), linear_add_pattern(large))
    assert lowering.lowered == ["linear-add"]
    operand = large.calls[0].operands["other"]
    assert isinstance(operand, QuantizedOperand)
    assert operand.node.target == "other"


def test_a_scaled_addition_is_another_function() -> None:
    build, small, large = Builder(), Recorder(), Recorder()
    y = build.call(aten.linear.default, build.quantized("x"), build.weight(), None)
    total = build.call(aten.add.Tensor, y, build.quantized("other"), alpha=2)
    lowering = build.done(build.quantize(total))
    lowering.apply(linear_pattern(small), linear_add_pattern(large))
    assert lowering.lowered == ["linear"]


def test_a_refusal_is_reported_and_the_next_smaller_pattern_tried() -> None:
    build, small, large = Builder(), Recorder(), Recorder(refusal=Refusal("too-wide"))
    y = build.call(aten.linear.default, build.quantized("x"), build.weight(), None)
    total = build.call(aten.add.Tensor, y, build.quantized("other"), alpha=1)
    lowering = build.done(build.quantize(total))
    lowering.apply(linear_pattern(small), linear_add_pattern(large))
    assert set(lowering.refused) == {("linear-add", "too-wide")}
    assert lowering.lowered == ["linear"]


def test_guards_are_asked_before_the_kernel() -> None:
    seen: list[Occurrence] = []

    def guard(occurrence: Occurrence) -> str:
        seen.append(occurrence)
        return "guarded"

    build, kernel = Builder(), Recorder()
    lowering = build.done(build.call(aten.linear.default, build.quantized("x"), build.weight(), None))
    lowering.apply(linear_pattern(kernel, guards=(guard,)))
    assert lowering.refused == [("linear", "guarded")]
    assert not kernel.calls
    # Activations as they are read, in float; weights as they are stored.
    x, weight, bias = seen[0].inputs
    assert qd.is_dequantize(x)
    assert isinstance(weight, Node)
    assert weight.target == "w"
    assert bias is None
    assert seen[0].output.target is aten.linear.default


def test_value_preserving_operators_need_equal_parameters() -> None:
    for scale, found in ((0.5, True), (0.25, False)):
        build, kernel = Builder(), Recorder()
        pooled = build.call(aten.max_pool2d.default, build.quantized("x"), [2, 2], [], [0, 0], [1, 1], False)
        lowering = build.done(build.quantize(pooled, scale, 3))
        lowering.apply(pool_pattern(kernel))
        assert bool(lowering.lowered) is found


def test_value_preserving_operators_need_their_quantize() -> None:
    build, kernel = Builder(), Recorder()
    pooled = build.call(aten.max_pool2d.default, build.quantized("x"), [2, 2], [], [0, 0], [1, 1], False)
    lowering = build.done(pooled)
    lowering.apply(pool_pattern(kernel))
    assert not lowering.lowered


@pytest.mark.parametrize("names", [("x",), ("x", "y"), ("x", "y", "z"), ("x", "x"), ("x", "y", "x")])
def test_lists_of_tensors(names: tuple[str, ...]) -> None:
    build, kernel = Builder(), Recorder()
    inputs = {name: build.quantized(name) for name in dict.fromkeys(names)}
    joined = build.call(aten.cat.default, [inputs[name] for name in names], 0)
    lowering = build.done(build.quantize(joined, 0.5, 3))
    lowering.apply(cat_pattern(kernel))
    (call,) = kernel.calls
    operands = [o for o in call.operands.values() if isinstance(o, QuantizedOperand)]
    assert [o.node.target for o in operands] == list(dict.fromkeys(names))


def test_lists_need_equal_parameters_throughout() -> None:
    build, kernel = Builder(), Recorder()
    joined = build.call(aten.cat.default, [build.quantized("x"), build.quantized("y", 0.25)], 0)
    lowering = build.done(build.quantize(joined, 0.5, 3))
    lowering.apply(cat_pattern(kernel))
    assert not lowering.lowered


def test_patterns_without_kernel_are_left_to_the_compiler() -> None:
    build = Builder()
    pooled = build.call(aten.max_pool2d.default, build.quantized("x"), [2, 2], [], [0, 0], [1, 1], False)
    y = build.call(aten.linear.default, pooled, build.weight(), None)
    lowering = build.done(build.quantize(pooled, 0.5, 3), y)
    assert aten.max_pool2d.default in lowering.apply(pool_pattern(None), linear_pattern(None))
    assert not lowering.lowered
    assert not lowering.refused


@attrs.define
class Accumulator(Recorder):
    """A kernel that writes into its operand."""

    def emit(self, call: KernelCall) -> Node:
        first = next(o for o in call.operands.values() if isinstance(o, QuantizedOperand))
        return call.graph.call_function(aten.neg_.default, (first.node,))


def test_kernels_that_write_do_not_make_the_work_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    # Inductor numbers the regions between operators that write, over the whole graph.
    numbered: list[Graph] = []
    original = pattern_matcher.compute_mutation_region_ids
    monkeypatch.setattr(
        pattern_matcher,
        "compute_mutation_region_ids",
        lambda graph: (numbered.append(graph), original(graph)),
    )
    builder = Builder()
    value = builder.quantized("x")
    for _ in range(5):
        pooled = builder.call(aten.max_pool2d.default, value, [3, 3], [3, 3], [0, 0], [1, 1], False)
        value = builder.dequantize(builder.quantize(pooled, 0.5, 3))
    lowering = builder.done(value)
    targets = lowering.apply(pool_pattern(Accumulator()))
    assert targets == [*[aten.neg_.default] * 5, qd.DEQUANTIZE_PER_TENSOR]
    assert len(numbered) == 1
    assert not any("mutation_region_id" in node.meta for node in lowering.gm.graph.nodes)
