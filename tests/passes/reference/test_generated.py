"""Generated shapes: Q/DQ graphs and lowered int8 kernels against the integer reference.

A graph has many independent operators, so that passes run once for all of them; a failing one shrinks to a
single operator. The Q/DQ graphs are written as conversion writes them, node by node: exporting so many models
would take minutes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import PassManager, Pipeline, lower_pt2e
from lowbit.ir import quantized_decomposed as qd
from lowbit.passes import ReferenceRepresentation
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
SHAPES_OF_KERNELS = 20_000 if NIGHTLY else 2_010
"""How many operators are compared as Q/DQ graphs, as kernels and as the reference."""
SHAPES_OF_ALL = 10_000 if NIGHTLY else 300
"""How many more, of schemes that there are no kernels for, as Q/DQ graphs and as the reference."""
PER_GRAPH = 30


@attrs.frozen
class Case:
    """An operator with what stands behind it.

    Args:
        target: the operator; it takes the tensors and then ``arguments``.
        shapes: of the tensors it reads; of a list of tensors where ``joins``.
        weight: shape of the weight between them and the arguments.
        bias: whether there is a bias behind the weight.
        adds: whether something of the result's shape is added behind it.
        clamp: an operator behind that.
    """

    target: Any
    shapes: tuple[tuple[int, ...], ...]
    arguments: tuple[Any, ...] = ()
    weight: tuple[int, ...] | None = None
    bias: bool = False
    adds: bool = False
    clamp: Any = None
    joins: bool = False


CLAMPS = st.sampled_from([None, aten.relu.default, aten.relu6.default, aten.hardtanh.default])
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


@st.composite
def convolutions(draw: st.DrawFn, dimensions: int, *, for_kernels: bool) -> Case:
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    size_in, size_out = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel, stride = ([draw(st.integers(1, 3)) for _ in range(dimensions)] for _ in range(2))
    dilation = [draw(st.integers(1, 2)) for _ in range(dimensions)]
    # Windows that see nothing but padding are not for kernels.
    most = [d * (k - 1) if for_kernels else 3 for k, d in zip(kernel, dilation, strict=True)]
    padding = [draw(st.integers(0, min(2, m))) for m in most]
    extent = [
        d * (k - 1) + draw(st.integers(1, 5)) + (s if for_kernels else 0)
        for d, k, s in zip(dilation, kernel, stride, strict=True)
    ]
    return Case(
        CONVOLUTIONS[dimensions - 1],
        ((draw(st.integers(0, 2)), size_in, *extent),),
        (stride, padding, dilation, groups),
        weight=(size_out, size_in // groups, *kernel),
        bias=draw(st.booleans()),
        adds=draw(st.booleans()),
        clamp=draw(CLAMPS),
    )


@st.composite
def linears(draw: st.DrawFn) -> Case:
    size_in, size_out = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    batch = draw(st.lists(st.integers(0, 3), max_size=3))
    return Case(
        aten.linear.default,
        ((*batch, size_in),),
        weight=(size_out, size_in),
        bias=draw(st.booleans()),
        adds=draw(st.booleans()),
        clamp=draw(CLAMPS),
    )


@st.composite
def elementwise(draw: st.DrawFn) -> Case:
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    other = tuple(draw(st.sampled_from([size, 1])) for size in shape)[draw(st.integers(0, len(shape) - 1)) :]
    target = draw(st.sampled_from([aten.add.Tensor, aten.mul.Tensor]))
    return Case(target, (shape, other), clamp=draw(CLAMPS))


@st.composite
def pools(draw: st.DrawFn) -> Case:
    target = draw(
        st.sampled_from(
            [
                aten.max_pool2d.default,
                aten.avg_pool2d.default,
                aten.adaptive_avg_pool2d.default,
                aten.cat.default,
            ]
        )
    )
    batch, channels = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    if target is aten.cat.default:
        sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        return Case(target, tuple((batch, size, 3, 2) for size in sizes), (1,), joins=True)
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    if target is aten.adaptive_avg_pool2d.default:
        output = [draw(st.integers(1, 3)) for _ in range(2)]
        extent = [k * size for k, size in zip(kernel, output, strict=True)]
        return Case(target, ((batch, channels, *extent),), (output,))
    extent = [k + draw(st.integers(0, 5)) for k in kernel]
    stride = [draw(st.integers(1, 3)) for _ in range(2)]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    ceil_mode = draw(st.booleans())
    if target is aten.max_pool2d.default:
        arguments: tuple[Any, ...] = (kernel, stride, padding, [1, 1], ceil_mode)
    else:
        divisor = draw(st.sampled_from([None, 1, 5]))
        arguments = (kernel, stride, padding, ceil_mode, draw(st.booleans()), divisor)
    return Case(target, ((batch, channels, *extent),), arguments)


@attrs.frozen
class Scheme:
    """How tensors are quantized."""

    dtype: torch.dtype
    low: int
    high: int
    per_channel: bool
    symmetric: bool


KERNELS = Scheme(torch.uint8, 0, 127, per_channel=True, symmetric=True)
RANGES = [(torch.uint8, 0, 255), (torch.uint8, 0, 127), (torch.int8, -128, 127), (torch.int8, -127, 127)]
SCHEMES = st.builds(
    lambda activation, *weight: Scheme(*activation, *weight),
    st.sampled_from(RANGES),
    st.booleans(),
    st.booleans(),
)


class Writer:
    """Writes a Q/DQ graph, computing it at the same time to know the ranges of what is quantized."""

    def __init__(self, scheme: Scheme, seed: int) -> None:
        self.scheme = scheme
        self.generator = torch.Generator().manual_seed(seed)
        self.graph, self.root = Graph(), nn.Module()
        self.inputs: list[Tensor] = []
        self._values: dict[Node, Tensor] = {}

    def write(self, cases: list[Case]) -> GraphModule:
        shapes = [shape for case in cases for shape in case.shapes]
        adds = [self._result(case) for case in cases if case.adds]
        nodes = [self._input(shape) for shape in (*shapes, *adds)]
        read, others = iter(nodes), iter(nodes[len(shapes) :])
        results = []
        for case in cases:
            x = tuple(self._quantized(next(read)) for _ in case.shapes)
            weight = () if case.weight is None else self._weight(case)
            y = self._call(case.target, *((x,) if case.joins else x), *weight, *case.arguments)
            if case.adds:
                y = self._call(aten.add.Tensor, y, self._quantized(next(others)))
            if case.clamp is not None:
                y = self._call(case.clamp, y)
            results.append(self._quantized(y))
        self.graph.output(results)
        return GraphModule(self.root, self.graph)

    def _result(self, case: Case) -> tuple[int, ...]:
        assert case.weight is not None
        tensors = [torch.empty(shape, device="meta") for shape in (*case.shapes, case.weight)]
        return tuple(case.target(*tensors, None, *case.arguments).shape)

    def _keep(self, node: Node, value: Tensor) -> Node:
        self._values[node] = value
        node.meta["val"] = value  # a fake one would do, and takes a hundred times as long to make
        return node

    def _input(self, shape: tuple[int, ...]) -> Node:
        value = torch.randn(shape, generator=self.generator)
        self.inputs.append(value)
        return self._keep(self.graph.placeholder(f"x_{len(self.inputs)}"), value)

    def _constant(self, value: Tensor) -> Node:
        name = f"constant_{len(list(self.root.buffers()))}"
        self.root.register_buffer(name, value)
        return self._keep(self.graph.get_attr(name), value)

    def _call(self, target: Any, *args: Any) -> Node:
        node = self.graph.call_function(target, args)
        return self._keep(node, target(*map_arg(args, self._values.__getitem__)))

    def _quantized(self, x: Node) -> Node:
        """Per tensor, by the range of the values; of nothing, by any."""
        scheme, value = self.scheme, self._values[x]
        low, high = (float(v) for v in value.aminmax()) if value.numel() else (-1.0, 2.0)
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / (scheme.high - scheme.low), 2.0**-12)
        zero_point = min(max(scheme.low - round(low / scale), scheme.low), scheme.high)
        parameters = (scale, zero_point, scheme.low, scheme.high, scheme.dtype)
        q = self.graph.call_function(qd.QUANTIZE_PER_TENSOR, (x, *parameters))
        q.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=scheme.dtype)
        # Both at once, as each takes a while.
        back = torch.fake_quantize_per_tensor_affine(value, *parameters[:-1])
        return self._keep(self.graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (q, *parameters)), back)

    def _weight(self, case: Case) -> tuple[Node, Node | None]:
        assert case.weight is not None
        out, terms = case.weight[0], max(1, math.prod(case.weight[1:]))
        integers = torch.randint(-128, 128, case.weight, dtype=torch.int8, generator=self.generator)
        scales = (0.5 + torch.rand(out, generator=self.generator)) / 128 / terms**0.5
        zeros = torch.randint(-128, 128, (out,), generator=self.generator, dtype=torch.int32)
        zeros = torch.zeros_like(zeros) if self.scheme.symmetric else zeros
        constant = self._constant(integers)
        if self.scheme.per_channel:
            parameters = (self._constant(scales), self._constant(zeros), 0, -128, 127, torch.int8)
            weight = self._call(qd.DEQUANTIZE_PER_CHANNEL, constant, *parameters)
        else:
            parameters = (float(scales[0]), int(zeros[0]), -128, 127, torch.int8)
            weight = self._call(qd.DEQUANTIZE_PER_TENSOR, constant, *parameters)
        bias = self._constant(torch.randn(out, generator=self.generator)) if case.bias else None
        return weight, bias


def reference_of(qdq: GraphModule) -> GraphModule:
    return PassManager().run(qdq, Pipeline((ReferenceRepresentation(),)))


def assert_within_one_step(qdq: GraphModule, x: list[Tensor], *others: GraphModule) -> None:
    """That all of them, and ``qdq``, return the same integers but for one step between any two."""
    with torch.no_grad():
        results = [gm(*x) for gm in (qdq, *others)]
    for node, *values in zip(qdq.graph.output_node().all_input_nodes, *results, strict=True):
        (first, *rest), what = values, node.all_input_nodes[0].args[0]
        assert {(v.shape, v.dtype) for v in rest} == {(first.shape, first.dtype)}, what
        if first.numel():
            steps = torch.stack(values) / node.args[1]
            assert float((steps.amax(0) - steps.amin(0)).max()) <= 1.001, what


def float_operators(qdq: GraphModule, reference: GraphModule) -> list[str]:
    known = {n.name for n in qdq.graph.nodes if n.op == "call_function" and "quantized" not in str(n.target)}
    return [n.name for n in reference.graph.nodes if n.name in known]


def many(*cases: st.SearchStrategy[Case]) -> st.SearchStrategy[list[Case]]:
    return st.lists(st.one_of(*cases), min_size=PER_GRAPH, max_size=PER_GRAPH)


FOR_KERNELS = many(
    convolutions(1, for_kernels=True),
    convolutions(2, for_kernels=True),
    linears(),
    linears(),
    pools(),
)
OF_ALL = many(
    convolutions(1, for_kernels=False),
    convolutions(2, for_kernels=False),
    convolutions(3, for_kernels=False),
    linears(),
    elementwise(),
    pools(),
)


@settings(max_examples=SHAPES_OF_ALL // PER_GRAPH)
@given(cases=OF_ALL, scheme=SCHEMES, seed=st.integers(0, 99))
def test_qdq_graphs(cases: list[Case], scheme: Scheme, seed: int) -> None:
    writer = Writer(scheme, seed)
    qdq = writer.write(cases)
    reference = reference_of(qdq)
    assert float_operators(qdq, reference) == []
    # The second saturates.
    for x in (writer.inputs, [2.5 * x for x in writer.inputs]):
        assert_within_one_step(qdq, x, reference)


@pytest.fixture(scope="module")
def compared() -> Iterator[Counter[str]]:
    """How many shapes were compared, in whichever process the test ran; checked when it is over."""
    counts: Counter[str] = Counter()
    yield counts
    if counts:
        assert counts["shapes"] >= 2_000
        assert counts["kernels"] >= 1_000


@settings(max_examples=SHAPES_OF_KERNELS // PER_GRAPH)
@given(cases=FOR_KERNELS, seed=st.integers(0, 99))
def test_lowered_kernels(cases: list[Case], seed: int, compared: Counter[str]) -> None:
    writer = Writer(KERNELS, seed)
    qdq = writer.write(cases)
    reference = reference_of(qdq)
    lowered = lower_pt2e(qdq, "x86_inductor")
    kernels = sum("onednn" in str(node.target) for node in lowered.graph.nodes)
    assert kernels >= sum(case.weight is not None for case in cases) // 2
    for x in (writer.inputs, [2.5 * x for x in writer.inputs]):
        assert_within_one_step(qdq, x, reference, lowered)
    compared.update(shapes=len(cases), kernels=kernels)


def test_the_comparison_sees_a_step_of_a_scale() -> None:
    """What makes the tests above worth something."""
    writer = Writer(KERNELS, 0)
    qdq = writer.write([Case(aten.linear.default, ((3, 8),), weight=(4, 8), clamp=aten.relu.default)])
    reference = reference_of(qdq)
    assert_within_one_step(qdq, writer.inputs, reference)
    multiplier = next(n for n, _ in reference.named_buffers() if "multiplier" in n)
    reference.get_buffer(multiplier).mul_(1.05)
    with pytest.raises(AssertionError):
        assert_within_one_step(qdq, writer.inputs, reference)
