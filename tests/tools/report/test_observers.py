"""What reports say about observers."""

from __future__ import annotations

import pytest
import torch
from lowbit import FakeQuantize, HistogramObserver, MinMaxObserver, ObserverBase, PerChannelMinMaxObserver
from lowbit.tools.report.observers import Observation, Parameters, observations, parameters_of
from torch import Tensor, nn
from torch.fx import Graph, GraphModule


def seen_by(observer: nn.Module, x: Tensor | None) -> Observation:
    if x is not None:
        observer(x)
    graph = Graph()
    source = graph.placeholder("x")
    graph.output((graph.call_module("observer", (source,)), graph.call_module("observer", (source,))))
    root = nn.Module()
    root.observer = observer
    numbers = {node: i for i, node in enumerate(graph.nodes)}
    (seen,) = observations(GraphModule(root, graph), lambda node: numbers[node])
    assert (seen.calls, seen.tensors) == ((1, 2), (0,))
    return seen


def test_a_histogram_is_summed_to_few_bars() -> None:
    x = torch.tensor([0.0] * 5 + [1.0] * 3 + [63.75])
    seen = seen_by(HistogramObserver(bins=2048), x)
    histogram = seen.histogram
    assert histogram is not None
    assert len(histogram.counts) <= 64
    assert sum(histogram.counts) == 9
    assert histogram.low == 0.0
    assert histogram.high == 63.75
    assert histogram.counts[0] == 5
    assert histogram.counts[int(1.0 / histogram.width)] == 3
    assert histogram.counts[-1] == 1
    assert histogram.low + histogram.width * len(histogram.counts) >= 63.75
    assert seen.extremes == ((0.0, 63.75),)


def test_negative_values_begin_at_the_edge_of_a_bar() -> None:
    histogram = seen_by(HistogramObserver(bins=64), torch.linspace(-1, 1, 1001)).histogram
    assert histogram is not None
    assert histogram.low <= -1
    assert sum(histogram.counts) == 1001


def test_parameters_are_those_of_conversion() -> None:
    observer = MinMaxObserver(dtype=torch.uint8)
    seen = seen_by(observer, torch.tensor([0.0, 25.5]))
    scale, zero_point = observer.calculate_qparams()
    found = parameters_of(seen)
    assert found is not None
    assert found.scale == (pytest.approx(scale.item(), rel=1e-6),) * 2
    assert (found.zero_point, found.count) == ((zero_point.item(),) * 2, 1)
    assert (seen.kind, seen.dtype, seen.integers) == ("MinMaxObserver", "u8", (0, 255))
    assert seen.scheme == "per_tensor_affine"
    assert seen.histogram is None


def test_channels() -> None:
    observer = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.int8, qscheme=torch.per_channel_symmetric)
    seen = seen_by(observer, torch.tensor([[-1.0, 0.5], [0.0, 4.0]]))
    assert seen.extremes == ((-1.0, 0.5), (0.0, 4.0))
    found = parameters_of(seen)
    assert found is not None
    assert found.count == 2
    assert found.scale[0] < found.scale[1]


def test_many_channels_are_summed_up() -> None:
    observer = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.int8, qscheme=torch.per_channel_symmetric)
    seen = seen_by(observer, torch.arange(200.0)[:, None])
    assert len(seen.extremes) == 50
    assert seen.extremes[0] == (0.0, 3.0)
    assert seen.extremes[-1] == (196.0, 199.0)


@pytest.mark.parametrize("observer", [HistogramObserver(), MinMaxObserver(), FakeQuantize()])
def test_without_data_nothing_is_made_up(observer: nn.Module) -> None:
    seen = seen_by(observer, None)
    assert not seen.has_data
    assert (parameters_of(seen), seen.extremes, seen.histogram) == (None, (), None)


def test_fake_quantizers_show_their_observer() -> None:
    seen = seen_by(FakeQuantize(observer=HistogramObserver).train(), torch.tensor([-1.0, 3.0]))
    assert seen.kind == "FakeQuantize"
    assert seen.extremes == ((-1.0, 3.0),)
    assert seen.histogram is not None
    assert sum(seen.histogram.counts) == 2


class Constant(ObserverBase):
    """A user's own observer, which keeps nothing that reports know of."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.5]), torch.tensor([3])


def test_observers_of_users() -> None:
    seen = seen_by(Constant(torch.int8), torch.ones(1))
    assert parameters_of(seen) == Parameters((0.5, 0.5), (3, 3), 1)
    assert (seen.kind, seen.integers, seen.extremes) == ("Constant", None, ())


def test_looking_changes_nothing() -> None:
    observer = HistogramObserver()
    observer(torch.randn(100))
    before = {name: tensor.clone() for name, tensor in observer.state_dict().items()}
    parameters_of(seen_by(observer, None))
    assert all(torch.equal(tensor, before[name]) for name, tensor in observer.state_dict().items())
