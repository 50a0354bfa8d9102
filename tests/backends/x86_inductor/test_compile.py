"""Lowered models under ``torch.compile``, which computes what they compute eagerly.

Compilation takes seconds each, so one model has everything in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
import torch
import torch.nn.functional as F
from lowbit.backends.x86_inductor.cpu import convolves_faster
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from torch.utils import _pytree as pytree


class Flow(Protocol):
    converted: GraphModule
    lowered: GraphModule

    def targets(self) -> list[str]: ...


class RunFlow(Protocol):
    def __call__(self, model: nn.Module, *inputs: Any, **options: Any) -> Flow: ...


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def assert_equal_on(inputs: tuple[Tensor, ...], model: GraphModule, compiled: Callable[..., Any]) -> None:
    with torch.no_grad():
        expected = pytree.tree_leaves(model(*inputs))
        actual = pytree.tree_leaves(compiled(*inputs))
    for e, a in zip(expected, actual, strict=True):
        assert a.dtype is e.dtype
        assert torch.equal(a, e)


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1)


class Network(nn.Module):
    """Convolutions, residuals, everything that moves values, and linears of 2-D and 3-D inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.a, self.b, self.c = conv(16, 16), conv(16, 16), conv(32, 16)
        self.d = conv(16, 16)
        self.wide, self.narrow = nn.Linear(64, 24), nn.Linear(24, 10)
        self.tokens = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = F.max_pool2d(F.relu(self.stem(x)), 3, stride=2, padding=1)
        y = F.relu_(self.b(F.relu(self.a(r))) + r)  # r is read again
        y = F.relu(self.c(torch.cat([y, r], 1)))
        y = self.d(y) + y  # added to its own convolution
        y = F.max_pool2d(y, 2)
        flat = torch.flatten(y, 2)
        pooled = torch.flatten(F.adaptive_avg_pool2d(y, (2, 2)), 1)
        return self.narrow(F.relu(self.wide(pooled))), self.tokens(flat)


KERNELS = [
    "onednn.qconv_pointwise.default",
    "onednn.qconv2d_pointwise.binary",
    "onednn.qlinear_pointwise.default",
]


@pytest.mark.parametrize("pack_weights", [True, False])
def test_compiled_is_eager(pack_weights: bool, run_flow: RunFlow) -> None:
    x = torch.randn(2, 3, 32, 32)
    flow = run_flow(Network(), x, pack_weights=pack_weights)
    assert [flow.targets().count(kernel) for kernel in KERNELS] == (
        [7, 1, 0] if convolves_faster() else [4, 1, 3]
    )
    assert_equal_on((x,), flow.lowered, torch.compile(flow.lowered))


def test_any_batch_size_of_one_export(run_flow: RunFlow) -> None:
    x = torch.randn(3, 3, 32, 32)
    flow = run_flow(Network(), x, dynamic_shapes=({0: torch.export.Dim("batch")},))
    compiled = torch.compile(flow.lowered)
    for size in (3, 5, 1):
        assert_equal_on((torch.randn(size, 3, 32, 32),), flow.lowered, compiled)


def test_images_of_one_channel_of_any_batch_size(run_flow: RunFlow) -> None:
    """They lie in every layout at once; what the kernel writes does not."""

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pointwise = nn.Conv2d(1, 6, 3), nn.Conv2d(1, 5, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(x), F.relu(self.pointwise(x))

    flow = run_flow(Digits(), torch.randn(3, 1, 28, 28), dynamic_shapes=({0: torch.export.Dim("batch")},))
    compiled = torch.compile(flow.lowered)
    for size in (3, 5, 1):
        assert_equal_on((torch.randn(size, 1, 28, 28),), flow.lowered, compiled)


class ReadAgain(nn.Module):
    """Residuals that others read too: the compiler must not let the kernel overwrite them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = conv(3, 16), conv(16, 16), conv(16, 16), conv(16, 16)
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor, given: Tensor, pixel: Tensor) -> tuple[Tensor, ...]:
        r = F.relu(self.stem(x))
        inner = F.relu(self.a(r))
        first = F.relu(self.b(inner) + r)
        second = F.relu(self.c(inner) + r)
        own = F.relu(self.a(first) + first)
        as_view = self.b(second) + torch.flatten(first, 3)
        input_read_again = F.relu(self.c(own) + given)
        p = F.relu(self.stem(pixel))
        flat = torch.flatten(p, 1)
        over_view = self.a(F.relu(self.b(F.relu(self.c(p))) + p))
        return (
            self.c(second),
            self.c(as_view),
            self.a(input_read_again),
            torch.sigmoid(r),
            r,
            over_view,
            self.linear(flat),
        )


def test_nothing_that_is_read_again_is_overwritten(run_flow: RunFlow) -> None:
    inputs = torch.randn(2, 3, 33, 33), torch.randn(2, 16, 33, 33), torch.randn(2, 3, 1, 1)
    flow = run_flow(ReadAgain(), *inputs)
    assert flow.targets().count("onednn.qconv2d_pointwise.binary") >= 4
    before = [x.clone() for x in inputs]
    assert_equal_on(inputs, flow.lowered, torch.compile(flow.lowered))
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_stock_inductor_lowers_the_converted_model_when_freezing(run_flow: RunFlow) -> None:
    """The way of the tutorials: no ``lower_pt2e``, ``TORCHINDUCTOR_FREEZING=1``."""
    x = torch.randn(2, 3, 32, 32)
    flow = run_flow(Network(), x)
    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        actual = torch.compile(flow.converted)(x)
        expected = flow.converted(x)
    found = counters["inductor"]
    assert found["qconv_unary_lower_count"] + found["qconv2d_binary_lower_count"] == 5
    assert found["qlinear_unary_lower_count"] == 3
    assert found["qmaxpool2d_matcher_count"] == 2
    for e, a in zip(expected, actual, strict=True):
        assert (a - e).abs().max() < 0.02 * e.abs().max()
