"""More than two thousand generated calls: lowered kernels against dequantize → operators → quantize.

Each operator pattern is written as the Q/DQ graph that it stands for, with shapes, arguments and memory
layouts drawn from a seed; many calls are branches of one graph. Results must agree to one step of their
scale. All of it is eager: that compiled kernels give the same is for test_compile, and that models become
such graphs for test_numerics.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest
import torch
from lowbit import Stage, lower_pt2e
from lowbit.backends.x86_inductor import has_vnni
from lowbit.backends.x86_inductor.cpu import convolves_faster
from lowbit.backends.x86_inductor.patterns import PATTERNS
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.meta import KERNEL_KEY
from lowbit.ir.stages import set_stage
from lowbit.matchers.operator_pattern import Mode, OperatorPattern, Role, Sharing
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten
UINT8 = (0, 255 if has_vnni() else 127, torch.uint8)
INT8 = (-128, 127, torch.int8)


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    """Kernels have been seen that race, which one thread does not show."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


Parameters = tuple[float, int]
"""Scale and zero point."""
Draw = Callable[[random.Random], tuple[Any, ...]]


@attrs.define
class Calls:
    """A Q/DQ graph of independent calls, and the inputs to run it on."""

    graph: Graph = attrs.Factory(Graph)
    root: torch.nn.Module = attrs.Factory(torch.nn.Module)
    inputs: list[Tensor] = attrs.Factory(list)
    results: list[Node] = attrs.Factory(list)
    kernels: Counter[str] = attrs.Factory(Counter)
    """What they are to be lowered to."""
    constants: int = 0

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A node, which computes right away: graphs that were exported know their shapes and dtypes too."""
        node = self.graph.call_function(target, args, kwargs)
        values = map_arg((args, kwargs), lambda n: n.meta["val"])
        node.meta["val"] = target(*values[0], **values[1])
        return node

    def float_input(self, value: Tensor) -> Node:
        first = next(iter(self.graph.nodes), None)
        node = self.graph.placeholder(f"x{len(self.inputs)}")
        if first is not None:
            first.prepend(node)
        self.inputs.insert(0, value)
        node.meta["val"] = value
        return node

    def constant(self, value: Tensor) -> Node:
        self.constants += 1
        self.root.register_buffer(f"c{self.constants}", value)
        node = self.graph.get_attr(f"c{self.constants}")
        node.meta["val"] = value
        return node

    def quantized(self, node: Node, parameters: Parameters) -> Node:
        values = self.call(qd.QUANTIZE_PER_TENSOR, node, *parameters, *UINT8)
        return self.call(qd.DEQUANTIZE_PER_TENSOR, values, *parameters, *UINT8)

    def quantized_as_it_runs(self, node: Node) -> Node:
        chosen = self.call(qd.CHOOSE_QPARAMS, node, *UINT8[:2], 2**-12, UINT8[2])
        parameters = [self.call(_pick, chosen, i) for i in (0, 1)]
        values = self.call(qd.QUANTIZE_PER_TENSOR_DYNAMIC, node, *parameters, *UINT8)
        return self.call(qd.DEQUANTIZE_PER_TENSOR_DYNAMIC, values, *parameters, *UINT8)

    def weight(self, shape: Sequence[int], *, per_channel: bool) -> Node:
        weight = self.constant(torch.randint(-128, 128, tuple(shape), dtype=torch.int8))
        if not per_channel:
            return self.call(qd.DEQUANTIZE_PER_TENSOR, weight, 0.01, 0, *INT8)
        scales = self.constant(torch.rand(shape[0]) * 0.02 + 1e-4)
        zero_points = self.constant(torch.zeros(shape[0], dtype=torch.int64))
        return self.call(qd.DEQUANTIZE_PER_CHANNEL, weight, scales, zero_points, 0, *INT8)

    def apply(
        self,
        pattern: OperatorPattern,
        tensors: Sequence[Node | None],
        drawn: Sequence[Any],
        rng: random.Random,
    ) -> Node:
        """The operators of ``pattern`` on ``tensors``; ``drawn`` are the other arguments of the first one."""
        graph = pattern.captured.graph
        made: dict[Node, Any] = dict(zip(graph.find_nodes(op="placeholder"), tensors, strict=True))
        first, *others = (node for node in graph.nodes if node.op == "call_function")
        reads = [a for a in first.args if isinstance(a, (Node, list, tuple)) and _nodes(a)]
        made[first] = self.call(first.target, *_replace(reads, made), *drawn, **first.kwargs)
        for node in others:
            literals = SCALARS[node.target](rng) if node.target in SCALARS else _literals(node)
            read = [a for a in node.args if isinstance(a, Node)]
            made[node] = self.call(node.target, *_replace(read, made), *literals, **node.kwargs)
        return next(reversed(made.values()))

    def finish(self, result: Node, parameters: Parameters | None = None) -> None:
        """Return ``result``, quantized if there are parameters."""
        self.results.append(result if parameters is None else self.quantized(result, parameters))

    def module(self) -> GraphModule:
        self.graph.output(tuple(self.results))
        gm = GraphModule(self.root, self.graph)
        set_stage(gm, Stage.QDQ)
        return gm


def _pick(values: Any, index: int) -> Any:
    return values[index]


def _nodes(argument: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(argument, found.append)
    return found


def _replace(arguments: Sequence[Any], made: dict[Node, Any]) -> Any:
    return map_arg(list(arguments), lambda node: made[node])


def _literals(node: Node) -> list[Any]:
    return [a for a in node.args if not isinstance(a, Node)]


SCALARS: dict[Any, Draw] = {
    aten.hardtanh.default: lambda rng: (-rng.random(), 3 * rng.random()),
    aten.leaky_relu.default: lambda rng: (0.3 * rng.random(),),
}


def fitting(value: Tensor) -> Parameters:
    """Parameters that take in ``value``, and zero."""
    low, high = (float(v) for v in torch.aminmax(value)) if value.numel() else (0.0, 0.0)
    low, high = min(low, 0.0), max(high, 0.0, low + 1e-3)
    scale = (high - low) / UINT8[1]
    return scale, min(UINT8[1], max(0, round(-low / scale)))


def randn(rng: random.Random, shape: Sequence[int]) -> Tensor:
    """Normal numbers of a shape, in one of several memory layouts."""
    layout = rng.choice(["contiguous", "contiguous", "channels last", "transposed", "strided"])
    if layout == "channels last" and len(shape) == 4:
        return torch.randn(*shape).contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and len(shape) > 1:
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    if layout == "strided":
        return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    return torch.randn(*shape)


# Operators with weights.


def add_weighted(calls: Calls, pattern: OperatorPattern, mode: Mode, rng: random.Random) -> None:
    drawn = draw_convolution(rng, pattern) if "conv" in pattern.name else draw_linear(rng, mode)
    x = calls.float_input(randn(rng, drawn.input))
    if mode is Mode.DYNAMIC:
        activation = calls.quantized_as_it_runs(x)
    else:
        activation = calls.quantized(x, fitting(x.meta["val"]))
    weight = calls.weight(drawn.weight, per_channel=rng.random() < 0.8)
    bias = calls.constant(torch.randn(drawn.weight[0])) if rng.random() < 0.7 else None
    tensors = [activation, weight, bias]
    added = len(pattern.roles) > 3
    if added:
        other = calls.float_input(randn(rng, drawn.output))
        is_quantized = pattern.roles[3] is Role.ACTIVATION
        tensors.append(calls.quantized(other, fitting(other.meta["val"])) if is_quantized else other)
    result = calls.apply(pattern, tensors, drawn.arguments, rng)
    # What is added is added by the kernel where the sum is quantized; without, the compiler does it.
    stays_float = mode is Mode.DYNAMIC or (not added and rng.random() < 0.2)
    calls.finish(result, None if stays_float else fitting(result.meta["val"]))
    assert pattern.kernel is not None
    calls.kernels[f"{pattern.name} → {pattern.kernel.name}"] += 1


@attrs.frozen
class Drawn:
    """Shapes of an operator's tensors, and its other arguments."""

    input: Sequence[int]
    weight: Sequence[int]
    output: Sequence[int]
    arguments: tuple[Any, ...] = ()


def draw_linear(rng: random.Random, mode: Mode) -> Drawn:
    size_in, size_out = rng.randint(1, 40), rng.randint(1, 40)
    # Of nothing there is no range to find.
    least = 1 if mode is Mode.DYNAMIC else 0
    batch = [max(least, rng.choice([0, 1, 1, 2, 3, 5])) for _ in range(rng.randint(0, 3))]
    return Drawn((*batch, size_in), (size_out, size_in), (*batch, size_out))


def draw_convolution(rng: random.Random, pattern: OperatorPattern) -> Drawn:
    dimensions = int(pattern.name[4])
    depthwise = rng.random() < 0.25
    groups = rng.choice([3, 8, 16]) if depthwise else rng.choice([1, 1, 1, 2, 4])
    size_in = groups * (1 if depthwise else rng.choice([1, 2, 3, 5, 8]))
    size_out = groups * rng.choice([1, 2, 3, 7] if depthwise else [1, 3, 4, 9])
    kernel = [rng.randint(1, 5 if dimensions < 3 else 3) for _ in range(dimensions)]
    stride = [rng.randint(1, 3) for _ in range(dimensions)]
    dilation = [rng.choice([1, 1, 2]) for _ in range(dimensions)]
    # No windows of padding alone and no columns under a stride, which stay float: test_numerics.
    padding = [rng.randint(0, min(2, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True)]
    extent = [d * (k - 1) + rng.randint(1, 7) for d, k in zip(dilation, kernel, strict=True)]
    extent[-1] += stride[-1] * (stride[-1] > 1)
    input_shape = (rng.choice([0, 1, 1, 2, 3]), size_in, *extent)
    weight = (size_out, size_in // groups, *kernel)
    geometry = (stride, padding, dilation, groups)
    first = next(node for node in pattern.captured.graph.nodes if node.op == "call_function")
    output = first.target(
        torch.empty(input_shape, device="meta"), torch.empty(weight, device="meta"), None, *geometry
    )
    return Drawn(input_shape, weight, output.shape, geometry)


# Operators that move values.

Moved = tuple[Sequence[Sequence[int]], tuple[Any, ...]]
"""The shapes of what is read, and the other arguments."""


def shape(rng: random.Random, dimensions: int, least: int = 1) -> list[int]:
    return [rng.randint(least, 5) for _ in range(dimensions)]


def of_any(
    arguments: Callable[[random.Random, list[int]], tuple[Any, ...]],
) -> Callable[[random.Random], Moved]:
    """Of a tensor of four dimensions and any batch; ``arguments`` are drawn for its shape."""

    def draw(rng: random.Random) -> Moved:
        sizes = [rng.choice([0, 1, 2, 3]), *shape(rng, 3)]
        return [sizes], arguments(rng, sizes)

    return draw


def axis(rng: random.Random, sizes: Sequence[int]) -> int:
    return rng.randrange(-len(sizes), len(sizes))


def draw_joined(rng: random.Random, *, stacked: bool) -> Moved:
    sizes, dim = shape(rng, 3), rng.randrange(3)
    others = [*sizes]
    if not stacked:
        others[dim] = rng.randint(1, 4)
    return [sizes, others], (dim,)


def draw_split(rng: random.Random) -> Moved:
    sizes, dim = shape(rng, 3, 2), rng.randrange(3)
    return [sizes], (rng.randint(1, sizes[dim]), dim)


def draw_split_with_sizes(rng: random.Random) -> Moved:
    sizes, dim = shape(rng, 3, 2), rng.randrange(3)
    part = rng.randint(1, sizes[dim] - 1)
    return [sizes], ([part, sizes[dim] - part], dim)


def draw_pool(rng: random.Random, dimensions: int, *, maximum: bool) -> Moved:
    kernel = [rng.randint(1, 4) for _ in range(dimensions)]
    sizes = [rng.choice([1, 2, 3]), rng.randint(1, 5), *(k + rng.randint(0, 5) for k in kernel)]
    stride = [rng.randint(1, 3) for _ in kernel]
    padding = [rng.randint(0, k // 2) for k in kernel]
    ceil = rng.random() < 0.3
    if maximum:
        return [sizes], (kernel, stride, padding, [1] * dimensions, ceil)
    divisor = (None,) if dimensions == 2 else ()
    return [sizes], (kernel, stride, padding, ceil, rng.random() < 0.5, *divisor)


MOVED: dict[str, Callable[[random.Random], Moved]] = {
    "flatten": of_any(lambda rng, s: ((start := rng.randrange(4)), rng.randrange(start, 4))),
    "unflatten": lambda rng: ([[2, 2 * (n := rng.randint(1, 3)), 3]], (1, [2, n])),
    "reshape": of_any(lambda rng, s: ([s[0], s[2], s[1] * s[3]],)),
    "view": lambda rng: ([(s := [*shape(rng, 2), 4])], ([s[0], s[1], 2, 2],)),
    "contiguous": of_any(lambda rng, s: ()),
    "permute": of_any(lambda rng, s: (rng.sample(range(4), 4),)),
    "transpose": of_any(lambda rng, s: (axis(rng, s), axis(rng, s))),
    "slice": of_any(
        lambda rng, s: (rng.randrange(1, 4), rng.randint(0, 2), rng.randint(1, 9), rng.randint(1, 3))
    ),
    "select": of_any(lambda rng, s: ((d := rng.randrange(1, 4)), rng.randrange(s[d]))),
    "squeeze": of_any(lambda rng, s: (axis(rng, s),)),
    "squeeze-all": of_any(lambda rng, s: ()),
    "unsqueeze": of_any(lambda rng, s: (rng.randrange(-5, 5),)),
    "expand": lambda rng: ([[1, (n := rng.randint(1, 4)), 1]], ([rng.randint(0, 3), n, rng.randint(1, 3)],)),
    "repeat": of_any(lambda rng, s: ([rng.randint(1, 2) for _ in s],)),
    "roll": of_any(lambda rng, s: ([rng.randint(-2, 2)], [rng.randrange(1, 4)])),
    "flip": of_any(lambda rng, s: (rng.sample(range(4), rng.randint(1, 3)),)),
    "pixel_shuffle": lambda rng: ([[rng.randint(0, 2), 4 * rng.randint(1, 3), *shape(rng, 2)]], (2,)),
    "channel_shuffle": lambda rng: ([[rng.randint(1, 2), 3 * rng.randint(1, 3), *shape(rng, 2)]], (3,)),
    "cat": lambda rng: draw_joined(rng, stacked=False),
    "stack": lambda rng: draw_joined(rng, stacked=True),
    "split": draw_split,
    "split_with_sizes": draw_split_with_sizes,
    "chunk": lambda rng: ([shape(rng, 3, 2)], (2, rng.randrange(3))),
    "unbind": of_any(lambda rng, s: (rng.randrange(1, 4),)),
    "max_pool1d": lambda rng: draw_pool(rng, 1, maximum=True),
    "max_pool2d": lambda rng: draw_pool(rng, 2, maximum=True),
    "avg_pool1d": lambda rng: draw_pool(rng, 1, maximum=False),
    "avg_pool2d": lambda rng: draw_pool(rng, 2, maximum=False),
    "adaptive_avg_pool1d": lambda rng: ([shape(rng, 3)], ([rng.randint(1, 3)],)),
    "adaptive_avg_pool2d": lambda rng: ([shape(rng, 4)], ([rng.randint(1, 3), rng.randint(1, 3)],)),
    "mean": lambda rng: ([shape(rng, 4)], (rng.sample(range(4), rng.randint(1, 4)), rng.random() < 0.5)),
}


def add_moving(calls: Calls, pattern: OperatorPattern, rng: random.Random) -> None:
    shapes, arguments = MOVED[pattern.name](rng)
    values = [torch.randn(*s) if pattern.name == "view" else randn(rng, s) for s in shapes]
    parameters = fitting(values[0])
    inputs = [calls.quantized(calls.float_input(value), parameters) for value in values]
    calls.finish(calls.apply(pattern, inputs, arguments, rng), parameters)
    if pattern.kernel is not None:
        calls.kernels[f"{pattern.name} → {pattern.kernel.name}"] += 1


# The comparison.


def declared(kernel: str) -> str:
    """As the pattern declares it: without VNNI, linears may have the kernel of convolutions."""
    exchanged = convolves_faster() and kernel.startswith("linear")
    return kernel.replace("qconv", "qlinear") if exchanged else kernel


def compare(calls: Calls) -> None:
    model = calls.module()
    lowered = lower_pt2e(model, "x86_inductor")
    kernels = (node.meta[KERNEL_KEY] for node in lowered.graph.nodes if KERNEL_KEY in node.meta)
    found = Counter(map(declared, kernels))
    assert found == calls.kernels
    # The second is beyond what was calibrated, so that quantization saturates.
    for factor in (1.0, 1.7):
        assert_close(model, lowered, [factor * x for x in calls.inputs])


def assert_close(model: GraphModule, lowered: GraphModule, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        expected, actual = model(*inputs), lowered(*inputs)
    (results,) = model.graph.output_node().args
    different = total = 0
    for node, want, got in zip(results, expected, actual, strict=True):  # pyright: ignore[reportArgumentType]
        assert got.shape == want.shape
        assert got.dtype is want.dtype
        if not want.numel():
            continue
        if node.target is qd.DEQUANTIZE_PER_TENSOR:
            steps = (got - want) / node.args[1]
            assert steps.abs().max().item() <= 1.001, node
            different += int((steps.abs() > 0.5).sum())
            total += steps.numel()
        else:
            assert (got - want).abs().max() <= 1e-5 * want.abs().max(), node
    # Sums are rounded once by the kernel and several times in float: they part at ties, which are rare.
    assert different <= 0.002 * total


STATIC = [p for p in PATTERNS if p.sharing is Sharing.INDEPENDENT and Mode.STATIC in p.modes]
CONVOLUTIONS = [p for p in STATIC if p.name.startswith("conv")]
LINEARS = [p for p in STATIC if p.name.startswith("linear")]
MOVERS = [p for p in PATTERNS if p.sharing is Sharing.SAME_AS_INPUT]


@pytest.mark.parametrize("pattern", CONVOLUTIONS, ids=lambda p: p.name)
def test_convolutions(pattern: OperatorPattern) -> None:
    rng, calls = seeded(pattern), Calls()
    for _ in range(80):
        add_weighted(calls, pattern, Mode.STATIC, rng)
    compare(calls)


@pytest.mark.parametrize("pattern", LINEARS, ids=lambda p: p.name)
def test_linears(pattern: OperatorPattern) -> None:
    rng, calls = seeded(pattern), Calls()
    for mode in pattern.modes:
        for _ in range(60 if mode is Mode.STATIC else 20):
            add_weighted(calls, pattern, mode, rng)
    compare(calls)


@pytest.mark.parametrize("pattern", MOVERS, ids=lambda p: p.name)
def test_operators_that_move_values(pattern: OperatorPattern) -> None:
    rng, calls = seeded(pattern), Calls()
    for _ in range(16):
        add_moving(calls, pattern, rng)
    compare(calls)


def seeded(pattern: OperatorPattern) -> random.Random:
    torch.manual_seed(len(pattern.name))
    return random.Random(pattern.name)


def test_every_pattern_is_generated() -> None:
    others = {p.name for p in PATTERNS if p not in (*STATIC, *MOVERS)}
    assert others == {"linear-weight-only", "linear-half-weight", "linear-relu-half-weight"}
    assert {p.name for p in MOVERS} == set(MOVED)


@pytest.mark.usefixtures("linears_stay")
def test_the_comparison_sees_a_wrong_scale() -> None:
    rng, calls = random.Random(0), Calls()
    for _ in range(8):
        add_weighted(calls, next(p for p in LINEARS if p.name == "linear"), Mode.STATIC, rng)
    model = calls.module()
    lowered = lower_pt2e(model, "x86_inductor", pack_weights=False)
    assert_close(model, lowered, calls.inputs)
    for node in lowered.graph.find_nodes(
        op="call_function", target=torch.ops.onednn.qlinear_pointwise.default
    ):
        node.update_arg(1, 1.05 * node.args[1])
    lowered.recompile()
    with pytest.raises(AssertionError):
        assert_close(model, lowered, calls.inputs)
