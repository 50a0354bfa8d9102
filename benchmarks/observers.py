"""What calibration costs: min-max and histogram observers, and the search for the range.

Run ``python benchmarks/observers.py [threads]``. The step is that of the convolutions of a ResNet-50 at
224×224, batch 1, each followed by ReLU, with one observer an output. The variants take turns, so that a busy
machine disturbs them alike; the median of the ratios is reported.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from lowbit.ir.observers import HistogramObserver, MinMaxObserver
from torch import Tensor, nn
from torch.nn import functional as F

# (bottlenecks, width, input channels, height of the output)
_STAGES = ((3, 64, 64, 56), (4, 128, 256, 28), (6, 256, 512, 14), (3, 512, 1024, 7))


def _convolutions() -> list[tuple[Tensor, Tensor, int]]:
    """(input, weight, stride) of each convolution."""
    calls = [(torch.randn(1, 3, 224, 224), torch.randn(64, 3, 7, 7) / 12, 2)]
    for blocks, width, channels, height in _STAGES:
        for block in range(blocks):
            stride = 2 if block == 0 and width > 64 else 1
            inputs = channels if block == 0 else 4 * width
            side = height * stride
            calls += [
                (torch.randn(1, inputs, side, side), torch.randn(width, inputs, 1, 1) / inputs**0.5, 1),
                (torch.randn(1, width, side, side), torch.randn(width, width, 3, 3) / width**0.5 / 3, stride),
                (torch.randn(1, width, height, height), torch.randn(4 * width, width, 1, 1) / width**0.5, 1),
            ]
    return calls


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def steps(rounds: int = 9) -> None:
    calls = _convolutions()

    def step(observers: list[nn.Module] | None) -> None:
        for k, (x, weight, stride) in enumerate(calls):
            y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2).relu_()
            if observers is not None:
                observers[k](y)

    min_max: list[nn.Module] = [MinMaxObserver() for _ in calls]
    histograms: list[nn.Module] = [HistogramObserver() for _ in calls]
    variants: list[list[nn.Module] | None] = [None, min_max, histograms]
    for observers in variants:
        step(observers)
    times = [[_seconds(lambda o=observers: step(o)) for observers in variants] for _ in range(rounds)]
    plain, by_min_max, by_histogram = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(histogram / extremes for _, extremes, histogram in times)
    elements = sum(int(h.histogram.sum()) for h in histograms if isinstance(h, HistogramObserver)) / (
        rounds + 1
    )
    print(f"{elements / 1e6:.1f} M elements a step")
    print(f"float {plain:.1f} ms, min-max {by_min_max:.1f} ms, histogram {by_histogram:.1f} ms")
    print(f"histogram step / min-max step: {ratio:.2f}")
    search = _seconds(lambda: [h.calculate_qparams() for h in histograms if isinstance(h, HistogramObserver)])
    print(f"range search: {1e3 * search / len(histograms):.2f} ms an observer")


def elements() -> None:
    print("ns an element of 64*112*112:")
    for name, x in {
        "normal": torch.randn(64, 112, 112),
        "ReLU": torch.randn(64, 112, 112).relu(),
        "ReLU6, saturated": (8 * torch.randn(64, 112, 112)).clamp(0, 6),
        "float16": torch.randn(64, 112, 112).half(),
    }.items():
        observer = HistogramObserver()
        observer(x)
        took = min(_seconds(lambda o=observer, v=x: o(v)) for _ in range(15))
        searched = min(_seconds(observer.calculate_qparams) for _ in range(5))
        print(f"  {name}: {1e9 * took / x.numel():.2f}; search {1e3 * searched:.2f} ms")


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    torch.manual_seed(0)
    elements()
    steps()
