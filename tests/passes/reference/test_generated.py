"""Generated shapes: Q/DQ graphs and lowered int8 kernels against the integer reference.

A model has many independent operators, so that export and passes run once for all of them. A failing one
shrinks to a single operator.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import lower_pt2e
from torch import Tensor, nn

SHAPES = 6000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 300
"""How many operators are generated for each of the two comparisons."""
_PER_MODEL = 12

Shapes = list[tuple[int, ...]]


class Call(nn.Module):
    """A function by its name; its repr is what a failing example shows."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.name = name
        self.options = options

    def forward(self, *x: Tensor) -> Tensor:
        if self.name == "cat":
            return torch.cat(x, **self.options)
        function = getattr(F, self.name, None) or getattr(torch, self.name)
        return function(*x, **self.options)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.options}"


class Behind(nn.Module):
    """An operator, maybe an addition, maybe a clamp."""

    def __init__(self, operator: nn.Module, clamp: str | None) -> None:
        super().__init__()
        self.operator = operator
        self.clamp = clamp

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.operator(x)
        y = y if other is None else y + other
        return y if self.clamp is None else getattr(F, self.clamp)(y)

    def extra_repr(self) -> str:
        return str(self.clamp)


@attrs.frozen
class Case:
    """An operator, and the shapes of its inputs."""

    model: nn.Module
    shapes: Shapes


CLAMPS = st.sampled_from([None, "relu", "relu6", "hardtanh"])


@st.composite
def convolutions(draw: st.DrawFn, dimensions: int, *, for_kernels: bool) -> Case:
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    size_in = groups * draw(st.integers(1, 3))
    size_out = groups * draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(dimensions)]
    stride = [draw(st.integers(1, 3)) for _ in range(dimensions)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dimensions)]
    # Windows that see nothing but padding are not for kernels.
    most = [d * (k - 1) if for_kernels else 3 for k, d in zip(kernel, dilation, strict=True)]
    padding = [draw(st.integers(0, min(2, m))) for m in most]
    extent = [
        d * (k - 1) + draw(st.integers(1, 5)) + (s if for_kernels else 0)
        for d, k, s in zip(dilation, kernel, stride, strict=True)
    ]
    if for_kernels:
        extent = [max(e, d + 1) for e, d in zip(extent, dilation, strict=True)]
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](
        size_in,
        size_out,
        kernel,
        stride,
        padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    shapes: Shapes = [(draw(st.integers(0, 2)), size_in, *extent)]
    if draw(st.booleans()):
        with torch.no_grad():
            shapes.append(tuple(convolution(torch.zeros(shapes[0])).shape))
    return Case(Behind(convolution, draw(CLAMPS)), shapes)


@st.composite
def linears(draw: st.DrawFn) -> Case:
    size_in, size_out = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    batch = draw(st.lists(st.integers(0, 3), max_size=3))
    return Case(
        Behind(nn.Linear(size_in, size_out, bias=draw(st.booleans())), draw(CLAMPS)), [(*batch, size_in)]
    )


@st.composite
def elementwise(draw: st.DrawFn) -> Case:
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    other = tuple(draw(st.sampled_from([size, 1])) for size in shape)[draw(st.integers(0, len(shape) - 1)) :]
    return Case(Call(draw(st.sampled_from(["add", "mul"]))), [shape, other])


@st.composite
def pools(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "cat"]))
    batch, channels = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    if name == "cat":
        sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        return Case(Call("cat", dim=1), [(batch, size, 3, 2) for size in sizes])
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    if name == "adaptive_avg_pool2d":
        output = [draw(st.integers(1, 3)) for _ in range(2)]
        extent = [k * size for k, size in zip(kernel, output, strict=True)]
        return Case(Call(name, output_size=output), [(batch, channels, *extent)])
    extent = [k + draw(st.integers(0, 5)) for k in kernel]
    options: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": [draw(st.integers(1, 3)) for _ in range(2)],
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "ceil_mode": draw(st.booleans()),
    }
    if name == "avg_pool2d":
        options["count_include_pad"] = draw(st.booleans())
        options["divisor_override"] = draw(st.sampled_from([None, 1, 5]))
    return Case(Call(name, **options), [(batch, channels, *extent)])


class Branches(nn.Module):
    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, inputs: list[list[Tensor]]) -> list[Tensor]:
        return [branch(*x) for branch, x in zip(self.branches, inputs, strict=True)]


def data(cases: Sequence[Case], seed: int, size: float) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[size * torch.randn(shape, generator=generator) for shape in case.shapes] for case in cases]


def assert_within_one_step(forms: Any, lowered: Any, inputs: list[list[Tensor]]) -> None:
    with torch.no_grad():
        got, want = lowered(inputs), forms.reference(inputs)
    (nodes,) = forms.qdq.graph.output_node().args
    for node, one, other in zip(nodes, got, want, strict=True):
        assert one.shape == other.shape
        assert one.dtype is other.dtype
        if one.numel():
            assert float(((one - other) / node.args[1]).abs().max()) <= 1.001, node


TWELVE_OF_ALL = st.lists(
    st.one_of(
        convolutions(1, for_kernels=False),
        convolutions(2, for_kernels=False),
        convolutions(3, for_kernels=False),
        linears(),
        elementwise(),
        pools(),
    ),
    min_size=_PER_MODEL,
    max_size=_PER_MODEL,
)
TWELVE_FOR_KERNELS = st.lists(
    st.one_of(convolutions(2, for_kernels=True), convolutions(2, for_kernels=True), linears(), pools()),
    min_size=_PER_MODEL,
    max_size=_PER_MODEL,
)
SCHEMES = st.sampled_from(
    [
        torch.per_channel_symmetric,
        torch.per_channel_affine,
        torch.per_tensor_affine,
        torch.per_tensor_symmetric,
    ]
)
RANGES = st.sampled_from(
    [(torch.uint8, 0, 255), (torch.uint8, 0, 127), (torch.int8, -128, 127), (torch.int8, -127, 127)]
)


@settings(max_examples=SHAPES // _PER_MODEL)
@given(cases=TWELVE_OF_ALL, activation=RANGES, qscheme=SCHEMES, seed=st.integers(0, 99))
def test_qdq_graphs(
    cases: list[Case],
    activation: tuple[Any, int, int],
    qscheme: torch.qscheme,
    *,
    seed: int,
    make_forms: Any,
    specs: Any,
) -> None:
    model = Branches([case.model for case in cases])
    inputs = data(cases, seed, 1.0)
    forms = make_forms(model, inputs, activation=specs.activation(*activation), weight=specs.weight(qscheme))
    assert forms.float_operators() == []
    # The second saturates.
    for x in (inputs, data(cases, seed + 1, 2.5)):
        assert_within_one_step(forms, forms.qdq, x)


@settings(max_examples=SHAPES // _PER_MODEL)
@given(cases=TWELVE_FOR_KERNELS, seed=st.integers(0, 99))
def test_lowered_kernels(cases: list[Case], *, seed: int, make_forms: Any) -> None:
    model = Branches([case.model for case in cases])
    inputs = data(cases, seed, 1.0)
    forms = make_forms(model, inputs)
    lowered = lower_pt2e(forms.qdq, "x86_inductor")
    kernels = sum("onednn" in str(node.target) for node in lowered.graph.nodes)
    assert kernels >= sum(isinstance(case.model, Behind) for case in cases) // 2
    for x in (inputs, data(cases, seed + 1, 2.5)):
        assert_within_one_step(forms, lowered, x)


def test_the_comparison_sees_a_step_of_a_scale(make_forms: Any) -> None:
    """What makes the tests above worth something."""
    cases = [Case(Behind(nn.Linear(8, 4), "relu"), [(3, 8)])]
    inputs = data(cases, 0, 1.0)
    forms = make_forms(Branches([case.model for case in cases]), inputs)
    assert_within_one_step(forms, forms.qdq, inputs)
    multiplier = next(n for n, _ in forms.reference.named_buffers() if "multiplier" in n)
    forms.reference.get_buffer(multiplier).mul_(1.05)
    with pytest.raises(AssertionError):
        assert_within_one_step(forms, forms.qdq, inputs)
