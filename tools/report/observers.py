"""What observers saw: the histogram or the extremes, and the parameters that come of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ...errors import NotCalibratedError
from ...ir.attributes import AttributeFinder
from ...ir.observers.histogram import DyadicHistogram
from ...ir.text.short import DTYPE_NAMES
from ...ir.verifiers import is_observer

__all__ = ["Histogram", "Observation", "Parameters", "observations", "parameters_of"]

_MOST_BARS: Final = 64
"""As many as can be told apart in a panel."""


@attrs.frozen
class Histogram:
    """How many values fell between ``low`` and ``high``, in bars of one width.

    The last bar may reach beyond ``high``, the largest value.
    """

    low: float
    high: float
    width: float
    counts: tuple[int, ...]


@attrs.frozen
class Parameters:
    """Quantization parameters.

    Args:
        scale: the smallest and the largest of the scales.
        zero_point: the smallest and the largest of the zero points.
        count: how many there are of each: one per tensor, or one for each channel.
    """

    scale: tuple[float, float]
    zero_point: tuple[int, int]
    count: int


@attrs.frozen
class Observation:
    """What one observer saw, and the nodes that show it.

    Args:
        calls: the numbers of the nodes that call the observer.
        tensors: the numbers of the nodes whose values it observes.
        observer: the observer itself.
        kind: its class.
        dtype: what is quantized to.
        integers: the smallest and largest quantized value, if it says so.
        scheme: the qscheme, per tensor or per channel.
        has_data: whether it saw any.
        extremes: smallest and largest value of each channel (of some in a row, if there are many).
        histogram: the distribution, if the observer keeps one.
    """

    calls: tuple[int, ...]
    tensors: tuple[int, ...]
    observer: torch.nn.Module = attrs.field(repr=False)
    kind: str
    dtype: str
    integers: tuple[int, int] | None
    scheme: str
    has_data: bool
    extremes: tuple[tuple[float, float], ...]
    histogram: Histogram | None


def observations(gm: GraphModule, key_of: Callable[[Node], int]) -> tuple[Observation, ...]:
    """What the observers and fake quantizers of ``gm`` saw so far, in the order of the graph.

    Args:
        gm: a graph module at any stage; those without observers have no observations.
        key_of: the number of a node.
    """
    find = AttributeFinder(gm).find
    calls: dict[str, list[Node]] = {}
    for node in gm.graph.find_nodes(op="call_module"):
        if is_observer(find(str(node.target))):
            calls.setdefault(str(node.target), []).append(node)
    return tuple(_observation(find(target), nodes, key_of) for target, nodes in calls.items())


def _observation(observer: Any, nodes: list[Node], key_of: Callable[[Node], int]) -> Observation:
    integers = (getattr(observer, "quant_min", None), getattr(observer, "quant_max", None))
    dtype = getattr(observer, "dtype", None)
    tensors = dict.fromkeys(key_of(source) for node in nodes for source in node.all_input_nodes)
    return Observation(
        calls=tuple(map(key_of, nodes)),
        tensors=tuple(tensors),
        observer=observer,
        kind=type(observer).__name__,
        dtype=DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch.")) if dtype is not None else "",
        integers=None if None in integers else integers,  # pyright: ignore[reportArgumentType]
        scheme=str(getattr(observer, "qscheme", "")).removeprefix("torch."),
        has_data=not getattr(observer, "is_dynamic", False) and bool(getattr(observer, "has_data", True)),
        extremes=_channels(observer),
        histogram=_histogram(observer),
    )


def parameters_of(seen: Observation) -> Parameters | None:
    """The parameters that come of what was seen; None without data, or if they are found at run time.

    They take a while to find for an observer that searches its histogram.
    """
    if not seen.has_data:
        return None
    observer: Any = seen.observer
    try:
        scale, zero_point = observer.calculate_qparams()
    except NotCalibratedError:
        return None
    low, high = _extremes(scale)
    zeros = (0, 0) if zero_point is None else tuple(map(int, _extremes(zero_point)))
    return Parameters((_short(low), _short(high)), (zeros[0], zeros[1]), scale.numel())


def _extremes(values: Tensor) -> tuple[float, float]:
    return values.min().item(), values.max().item()


def _short(value: float) -> float:
    """Seven digits, which is all that float32 has."""
    return float(f"{value:.7g}")


def _channels(observer: torch.nn.Module) -> tuple[tuple[float, float], ...]:
    for module in observer.modules():
        low, high = getattr(module, "min_val", None), getattr(module, "max_val", None)
        if isinstance(low, Tensor) and isinstance(high, Tensor) and low.shape == high.shape:
            low, high = low.detach().flatten(), high.detach().flatten()
            if low.numel() and bool((low <= high).all()):
                size = -(-low.numel() // _MOST_BARS)
                pairs = zip(low.split(size), high.split(size), strict=True)
                return tuple((_short(a.min().item()), _short(b.max().item())) for a, b in pairs)
    return ()


def _histogram(observer: torch.nn.Module) -> Histogram | None:
    for module in observer.modules():
        statistic = getattr(module, "statistic", None)
        if isinstance(statistic, DyadicHistogram) and not statistic.is_empty:
            used, grid = statistic.used.cpu(), statistic.grid
            size = -(-len(used) // _MOST_BARS)
            counts = torch.nn.functional.pad(used, (0, -len(used) % size)).view(-1, size).sum(1)
            return Histogram(
                low=grid.edge(0),
                high=_short(statistic.max_val),
                width=grid.edge(size) - grid.edge(0),
                counts=tuple(counts.tolist()),
            )
    return None
