"""Operators whose kernel is measured to be slower stay float, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    lowering_report,
    prepare_pt2e,
)
from lowbit.backends import get_backend
from lowbit.backends.x86_inductor import KeepFasterFloat, keep_faster_float, regions
from lowbit.backends.x86_inductor.measured_costs import (
    LoopTimes,
    example_inputs,
    measure_loops,
    measure_nodes,
)
from lowbit.errors import UnsupportedError
from lowbit.ir.attributes import get_tensor
from lowbit.passes import PassManager, Pipeline
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
MICROSECOND = 1e-6
X = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """Two convolutions in a row, a pool and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.head(torch.max_pool2d(x, 4).flatten(1))


def converted(model: nn.Module, *inputs: Tensor, **export: object) -> GraphModule:
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config(reduce_range=True))
    exported = torch.export.export(model.eval(), inputs, **export).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, quantizer)
    prepared(*inputs)
    prepared(-inputs[0], *inputs[1:])  # the other branch, of those who have one
    return convert_pt2e(prepared)


@pytest.fixture
def model() -> GraphModule:
    torch.manual_seed(0)
    return converted(Net(), X)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how long nodes take, those of kernels and others, in microseconds; one in place of measuring."""

    def say(kernel: Callable[[Node], float], operator: Callable[[Node], float], loop: float = 0) -> None:
        def nodes(gm: GraphModule, inputs: object) -> dict[str, float]:
            return {
                n.name: MICROSECOND * (kernel if n.target.namespace == "onednn" else operator)(n)
                for n in gm.graph.nodes
                if isinstance(n.target, torch._ops.OpOverload)
            }

        each = loop * MICROSECOND
        loops = LoopTimes(plain=0, quantizing=each, dequantizing=each, rounding=each)
        monkeypatch.setattr(regions, "measure_nodes", nodes)
        monkeypatch.setattr(keep_faster_float, "measure_loops", lambda: loops)

    return say


def tuned(model: GraphModule) -> GraphModule:
    lower = get_backend("x86_inductor").lower
    assert lower is not None
    return lower_pt2e(model, pipeline=lower.before("emit-inductor", KeepFasterFloat()))


def floats(model: GraphModule) -> list[str]:
    return [d.node for d in decisions(model) if d.reason == "faster-in-float"]


def is_linear(node: Node) -> bool:
    return "linear" in str(node.target)


@pytest.mark.usefixtures("linears_stay")
def test_what_is_faster_in_float_stays_float(model: GraphModule, measured) -> None:
    measured(lambda n: 40 if is_linear(n) else 10, lambda n: 20)
    lowered = tuned(model)
    assert floats(lowered) == ["linear"]
    (linear,) = lowered.graph.find_nodes(op="call_function", target=aten.linear.default)
    weight = linear.args[1]
    assert weight.op == "get_attr"
    assert get_tensor(lowered, weight.target).dtype is torch.float32
    (missed,) = lowering_report(lowered).missed
    assert missed.detail == "int8 takes 40 µs here and float 20, without the loops around them"
    torch.testing.assert_close(lowered(X), model(X), rtol=0, atol=1e-6)


def test_what_is_faster_in_int8_gets_its_kernel(model: GraphModule, measured) -> None:
    measured(lambda n: 10, lambda n: 20)
    lowered = tuned(model)
    assert floats(lowered) == []
    assert not lowering_report(lowered).missed


def test_a_little_faster_is_not_enough(model: GraphModule, measured) -> None:
    measured(lambda n: 21, lambda n: 20)
    assert floats(tuned(model)) == []


@pytest.mark.usefixtures("linears_stay")
def test_what_was_timed_is_not_timed_again(model: GraphModule, measured) -> None:
    seen = set()

    def slow_next_time(node: Node) -> float:
        if is_linear(node):
            return 40
        return 1000 if node.name in seen else seen.add(node.name) or 10

    measured(slow_next_time, lambda n: 20)
    assert floats(tuned(model)) == ["linear"]


def test_loops_between_operators_count(model: GraphModule, measured) -> None:
    # Alone each convolution is faster in float, but a loop of 2 x 8 x 36 elements would be between them.
    measured(lambda n: 40, lambda n: 20 if not is_linear(n) else 90, loop=1)
    assert floats(tuned(model)) == []
    measured(lambda n: 40, lambda n: 20 if not is_linear(n) else 90, loop=0.001)
    assert floats(tuned(model)) == ["conv2d", "relu", "conv2d_1", "relu_1"]


def test_the_model_is_left_as_it_was(model: GraphModule, measured) -> None:
    measured(lambda n: 40, lambda n: 20)
    before, code = {k: v.clone() for k, v in model.state_dict().items()}, model.code
    tuned(model)
    assert model.code == code
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Cache(nn.Module):
    """Keeps what it computed, four times at most."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("rows", torch.zeros(4, 4))
        self.register_buffer("calls", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.rows.index_copy_(0, self.calls, y)
        self.calls.add_(1)
        return y + self.rows.sum(0)


def test_measuring_does_not_count_as_a_call() -> None:
    model = converted(Cache(), torch.randn(1, 4))
    before = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    lowered = tuned(model)
    assert torch.equal(torch.get_rng_state(), state)
    for gm in (model, lowered):
        assert torch.equal(gm.rows, before["rows"])
        assert torch.equal(gm.calls, before["calls"])


class Branches(nn.Module):
    """A linear, and one in a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.outside, self.inside = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.outside(x)
        return torch.cond(x.sum() > 0, self.inside, torch.relu, (x,))


def test_branches_stay_as_they_are(measured) -> None:
    measured(lambda n: 40, lambda n: 20)
    torch.manual_seed(0)
    model = converted(Branches(), X[0, 0, :2, :4])
    x = X[0, 0, :2, :4]
    lowered = tuned(model)
    assert floats(lowered) == ["linear"]
    torch.testing.assert_close(lowered(x), model(x), rtol=0, atol=1e-6)


class Dense(nn.Module):
    """Convolutions whose results are concatenated for another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(torch.cat([x, self.second(x).relu()], 1))


def test_between_integers_that_are_concatenated_there_is_no_loop(measured) -> None:
    model = converted(Dense(), X)
    # As fast in either form: what decides is what would be between them.
    measured(lambda n: 20, lambda n: 18, loop=0.01)
    assert floats(tuned(model)) == []


class Attention(nn.Module):
    """Linears of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (part(x) for part in self.parts)
        return first.softmax(-1) * second + third


def test_linears_that_are_merged_are_timed_as_one_kernel(measured) -> None:
    x = X[0, 0, :2, :4]
    model = converted(Attention(), x)
    measured(lambda n: 40, lambda n: 20)
    assert floats(tuned(model)) == []
    measured(lambda n: 70, lambda n: 20)
    assert floats(tuned(model)) == ["linear", "linear_1", "linear_2"]


def test_a_model_that_was_loaded_says_so_too(measured, tmp_path) -> None:
    model = converted(nn.Linear(4, 4), X[0, 0, :2, :4])
    torch.export.save(torch.export.export(model, (X[0, 0, :2, :4],)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    measured(lambda n: 40, lambda n: 20)
    lower = get_backend("x86_inductor").lower
    assert lower is not None
    lowered = lower_pt2e(loaded, "x86_inductor", pipeline=lower.before("emit-inductor", KeepFasterFloat()))
    (missed,) = lowering_report(lowered).missed
    assert missed.reason == "faster-in-float"


class Odd(nn.Module):
    """Inputs that are expanded, and no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor, times: int, nothing: None) -> Tensor:
        return self.linear(x) * mask * times


def test_inputs_are_made_up_as_the_graph_says() -> None:
    mask = torch.ones(1, 4).expand(2, 4)
    exported = torch.export.export(Odd().eval(), (torch.randn(2, 4), mask, 3, None)).module()
    assert isinstance(exported, GraphModule)
    x, like_mask, times, nothing = example_inputs(exported)
    assert x.shape == like_mask.shape == (2, 4)
    assert (times, nothing) == (3, None)


class Checks(nn.Module):
    """A linear of data that zeros are not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        torch._check(count.item() >= 1)
        return self.linear(x)


def test_what_does_not_run_on_made_up_inputs_cannot_be_timed() -> None:
    model = converted(Checks(), torch.randn(2, 4), torch.tensor(2))
    with pytest.raises(UnsupportedError, match="does not run on made-up inputs"):
        tuned(model)


def test_sizes_of_run_time_cannot_be_timed() -> None:
    batch = torch.export.Dim("batch", min=2, max=8)
    model = converted(nn.Linear(4, 4), torch.randn(3, 4), dynamic_shapes=({0: batch},))
    with pytest.raises(UnsupportedError, match="known at run time only"):
        tuned(model)


def test_each_call_is_timed_and_so_is_each_loop(model: GraphModule) -> None:
    seconds = measure_nodes(model, (X,))
    assert seconds.keys() == {n.name for n in model.graph.nodes if n.op == "call_function"}
    assert min(seconds.values()) > 0
    loops = measure_loops()
    assert loops.rounding > 0
    assert loops.dequantizing > 0


def test_it_is_a_pass_like_others(model: GraphModule) -> None:
    assert Pipeline.parse("keep-faster-float") == Pipeline((KeepFasterFloat(),))
    with pytest.raises(Exception, match="operator patterns"):
        PassManager().run(model, Pipeline((KeepFasterFloat(),)))
