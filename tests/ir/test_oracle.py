"""The oracle: float64, exact where arithmetic is exact, at every stage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lowbit.errors import UnsupportedError
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.observers import MinMaxObserver, PerChannelMinMaxObserver, PlaceholderObserver
from lowbit.ir.oracle import Memory, Observers, run_exactly
from torch import nn
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten


def make(build: Callable[[Graph, Node], object], **attributes: object) -> GraphModule:
    root = nn.Module()
    for name, value in attributes.items():
        setattr(root, name, value)
    graph = Graph()
    x = graph.placeholder("x")
    graph.output(build(graph, x))
    return GraphModule(root, graph)


def test_sums_are_exact_that_float32_rounds() -> None:
    gm = make(lambda g, x: g.call_function(aten.sum.default, (x,)))
    x = torch.tensor([2.0**24, 1.0, 1.0, 1.0])
    assert gm(x).item() != 2**24 + 3
    got = run_exactly(gm, x)
    assert (got.dtype, got.item()) == (torch.float64, 2**24 + 3)
    assert x.dtype is torch.float32


def test_integers_stay_integers() -> None:
    gm = make(lambda g, x: g.call_function(aten.add.Tensor, (x, 2)))
    got = run_exactly(gm, torch.tensor([1, 2], dtype=torch.int32))
    assert got.dtype is torch.int32
    assert got.tolist() == [3, 4]


def test_a_parameter_is_not_written_to() -> None:
    counter = torch.zeros(())
    gm = make(lambda g, x: g.call_function(aten.add_.Tensor, (g.get_attr("n"), x)), n=nn.Buffer(counter))
    assert run_exactly(gm, torch.ones(())).item() == 1.0
    assert counter.item() == 0.0


def test_quantize_rounds_as_the_graph_does_and_dequantize_is_exact() -> None:
    # In float32 1.0 / 0.1 is 10 and 0.35 · 10 is 3.5, which is rounded to even; 0.35 / 0.1 is less than 3.5.
    parameters = (0.1, 3, 0, 255, torch.uint8)

    def build(graph: Graph, x: Node) -> list[Node]:
        q = graph.call_function(qd.QUANTIZE_PER_TENSOR, (x, *parameters))
        return [q, graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (q, *parameters))]

    gm = make(build)
    x = torch.arange(-40, 400) / 20
    q, real = run_exactly(gm, x)
    assert torch.equal(q, gm(x)[0])
    assert torch.equal(real, (q.double() - 3) * 0.1)


def test_convert_element_type_rounds_and_other_casts_do_not() -> None:
    third = torch.tensor([1 / 3])
    cast = make(lambda g, x: g.call_function(qd.CONVERT_ELEMENT_TYPE, (x, torch.float16)))
    assert run_exactly(cast, third).item() == third.half().item()
    to = make(lambda g, x: g.call_function(aten.to.dtype, (x, torch.float16)))
    assert run_exactly(to, third).item() == third.item()


def test_observers_look_on_or_quantize() -> None:
    observer = MinMaxObserver(torch.uint8, torch.per_tensor_affine, quant_min=0, quant_max=3)
    x = torch.tensor([-1.0, 0.4, 2.0])
    observer(x)
    gm = make(lambda g, n: g.call_module("observer", (n,)), observer=observer)
    assert torch.equal(run_exactly(gm, x), x.double())
    assert run_exactly(gm, x, observers=Observers.QUANTIZE).tolist() == [-1.0, 0.0, 2.0]


def test_observers_by_channel_and_at_run_time() -> None:
    weight = torch.tensor([[1.0, 0.5], [4.0, 2.2]])
    by_channel = PerChannelMinMaxObserver(
        dtype=torch.int8, qscheme=torch.per_channel_symmetric, quant_min=-2, quant_max=2, ch_axis=0
    )
    by_channel(weight)
    gm = make(lambda g, n: g.call_module("observer", (n,)), observer=by_channel)
    scale = by_channel.calculate_qparams()[0]
    got = run_exactly(gm, weight, observers=Observers.QUANTIZE)
    assert torch.equal(got, (weight / scale[:, None]).round().clamp(-2, 2).double() * scale[:, None].double())
    dynamic = PlaceholderObserver(torch.int8, quant_min=-128, quant_max=127, is_dynamic=True)
    gm = make(lambda g, n: g.call_module("observer", (n,)), observer=dynamic)
    got = run_exactly(gm, weight, observers=Observers.QUANTIZE)
    assert 0 < (got - weight).abs().max() <= 4 / 255


def test_a_module_that_is_no_observer_is_refused() -> None:
    gm = make(lambda g, n: g.call_module("layer", (n,)), layer=nn.ReLU())
    with pytest.raises(UnsupportedError, match="ReLU"):
        run_exactly(gm, torch.ones(2))


def test_branches_of_cond_run_in_float64_too() -> None:
    class Model(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda y: y + 2**-30, lambda y: y - 1, (x,))

    gm = torch.export.export(Model(), (torch.ones(2),)).module()
    assert run_exactly(gm, torch.ones(2)).tolist() == [1 + 2**-30] * 2
    assert run_exactly(gm, -torch.ones(2)).tolist() == [-2.0, -2.0]


def test_values_are_watched_and_recalled() -> None:
    gm = make(lambda g, x: g.call_function(aten.neg.default, (g.call_function(aten.relu.default, (x,)),)))
    seen: dict[str, float] = {}

    def watch(node: Node, value: object) -> object:
        if isinstance(value, torch.Tensor):
            seen[node.name] = value.item()
        return value

    got = run_exactly(
        gm,
        torch.tensor(3.0),
        watch=watch,
        recall=lambda node: torch.tensor(5.0) if node.target is aten.relu.default else NotImplemented,
    )
    assert got.item() == -5.0
    assert seen == {"x": 3.0, "relu_default": 5.0, "neg_default": -5.0, "output": -5.0}


def test_memory_is_of_the_same_tensors_as_they_were() -> None:
    memory, x = Memory(), torch.tensor([0.5, 1.0])
    limits = (0, 255, torch.uint8)
    first = memory.compute(qd.QUANTIZE_PER_TENSOR, x, 0.5, 0, *limits)
    assert memory.compute(qd.QUANTIZE_PER_TENSOR, x, 0.5, 0, *limits) is first
    assert memory.compute(qd.QUANTIZE_PER_TENSOR, x.clone(), 0.5, 0, *limits) is not first
    # Other parameters, and then other numbers in the same memory; of the result too.
    assert memory.compute(qd.QUANTIZE_PER_TENSOR, x, 0.25, 0, *limits).tolist() == [2, 4]
    x.mul_(2)
    again = memory.compute(qd.QUANTIZE_PER_TENSOR, x, 0.25, 0, *limits)
    assert again.tolist() == [4, 8]
    again.zero_()
    assert memory.compute(qd.QUANTIZE_PER_TENSOR, x, 0.25, 0, *limits).tolist() == [4, 8]


def test_memory_compares_parameters_that_are_tensors() -> None:
    memory, x, zero = Memory(), torch.tensor([[0.5], [1.0]]), torch.zeros(2, dtype=torch.int32)
    limits = (0, 0, 255, torch.uint8)
    first = memory.compute(qd.QUANTIZE_PER_CHANNEL, x, torch.tensor([0.5, 0.5]), zero, *limits)
    assert memory.compute(qd.QUANTIZE_PER_CHANNEL, x, torch.tensor([0.5, 0.5]), zero, *limits) is first
    other = memory.compute(qd.QUANTIZE_PER_CHANNEL, x, torch.tensor([0.5, 0.25]), zero, *limits)
    assert other.tolist() == [[1], [4]]


def test_a_write_is_seen_by_all_that_read_the_attribute() -> None:
    def build(graph: Graph, x: Node) -> Node:
        graph.call_function(aten.add_.Tensor, (graph.get_attr("n"), x))
        return graph.call_function(aten.mul.Tensor, (graph.get_attr("n"), 2))

    gm = make(build, n=nn.Buffer(torch.zeros(())))
    assert run_exactly(gm, torch.ones(())).item() == 2.0
    assert gm.n.item() == 0.0


def test_what_is_written_into_a_cast_is_not_in_what_was_cast() -> None:
    """In float64 a cast from one float dtype to another has nothing to do."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.float()
            y.add_(1)
            return y + x.float()

    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def inside(x: torch.Tensor) -> torch.Tensor:
                y = x.float()
                y.add_(1)
                return y.tanh()

            return torch.cond(x.sum() > 0, inside, lambda x: x.float() * 2, (x,)) + x.float()

    x = torch.ones(3, 4, dtype=torch.bfloat16)
    for model in (Model(), Branch()):
        gm = torch.export.export(model, (x,)).module()
        assert isinstance(gm, GraphModule)
        torch.testing.assert_close(run_exactly(gm, x), model(x).double())
