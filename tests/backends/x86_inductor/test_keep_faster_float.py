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
from lowbit.backends.x86_inductor import KeepFasterFloat, keep_faster_float
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
        monkeypatch.setattr(keep_faster_float, "measure_nodes", nodes)
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


class Counter(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.linear(x) + self.calls


def test_measuring_does_not_count_as_a_call() -> None:
    x = torch.randn(2, 4)
    model = converted(Counter(), x)
    calls = model.calls.clone()
    inputs = example_inputs(model)
    assert [i.shape for i in inputs] == [x.shape]
    lower = get_backend("x86_inductor").lower
    assert lower is not None
    lowered = lower_pt2e(model, pipeline=lower.before("emit-inductor", KeepFasterFloat()))
    assert torch.equal(model.calls, calls)
    assert torch.equal(lowered.calls, calls)


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
