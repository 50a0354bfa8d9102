"""The learnable fake quantizer: how it starts, its gradients, and that it learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.errors import CalibrationDataError, SpecError
from lowbit.ir.observers import (
    FakeQuantize,
    LearnableFakeQuantize,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    observing,
)
from torch import nn

SYMMETRIC = {"dtype": torch.int8, "qscheme": torch.per_tensor_symmetric}
CHANNELS = {"dtype": torch.int8, "qscheme": torch.per_channel_symmetric}


def data(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (4, 6)), generator=torch.Generator().manual_seed(seed))


def parameters(module: LearnableFakeQuantize) -> tuple[list[float], list[float]]:
    return module.scale.tolist(), module.zero_point.tolist()


def test_the_parameters_are_there_from_the_start_and_set_in_place() -> None:
    affine, symmetric = (
        LearnableFakeQuantize(MinMaxObserver),
        LearnableFakeQuantize(MinMaxObserver, **SYMMETRIC),
    )
    assert [name for name, _ in affine.named_parameters()] == ["scale", "zero_point"]
    assert [name for name, _ in symmetric.named_parameters()] == ["scale"]
    assert symmetric.zero_point.dtype is torch.int32
    for module, observer in ((affine, MinMaxObserver()), (symmetric, MinMaxObserver(**SYMMETRIC))):
        before = dict(module.named_parameters())
        module(data())
        observer(data())
        scale, zero_point = observer.calculate_qparams()
        assert parameters(module) == (scale.tolist(), zero_point.tolist())
        assert all(p is before[name] for name, p in module.named_parameters())
        # From then on they are learned.
        assert not module.observer_enabled
        module(data(1) * 100)
        assert parameters(module) == (scale.tolist(), zero_point.tolist())


def test_all_that_is_seen_without_gradients_counts_for_the_start() -> None:
    module, observer = LearnableFakeQuantize(MinMaxObserver).eval(), MinMaxObserver()
    for seed in range(3):
        x = data(seed) * (seed + 1)
        with torch.no_grad(), observing(module):
            module(x)
        observer(x)
    module.train()
    x = data(3)
    module(x)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    assert parameters(module) == (scale.tolist(), zero_point.tolist())
    assert not module.observer_enabled


def test_an_enabled_observer_starts_over() -> None:
    module = LearnableFakeQuantize(MinMaxObserver)
    module(data())
    module.enable_observer()
    module(data() * 10)
    observer = MinMaxObserver()
    observer(data() * 10)
    assert module.scale.item() == observer.calculate_qparams()[0].item()


def reference(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    *,
    bounds: tuple[int, int],
    gradient_scale: float,
) -> torch.Tensor:
    """Learned step size quantization of the papers, differentiated by autograd but for the rounding."""

    def rounded(y: torch.Tensor) -> torch.Tensor:
        return y + (y.round() - y).detach()

    def scaled(p: torch.Tensor) -> torch.Tensor:
        return p * gradient_scale + (p * (1 - gradient_scale)).detach()

    s, z = scaled(scale), rounded(scaled(zero_point))
    return (torch.clamp(rounded(x / s) + z, *bounds) - z) * s


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([torch.uint8, torch.int8]), st.booleans(), st.booleans())
def test_gradients_are_those_of_the_papers(
    seed: int, dtype: torch.dtype, affine: bool, per_channel: bool
) -> None:
    kind = "channel" if per_channel else "tensor"
    qscheme = getattr(torch, f"per_{kind}_{'affine' if affine else 'symmetric'}")
    observer = PerChannelMinMaxObserver if per_channel else MinMaxObserver
    more = {"ch_axis": 1, "channels": 5} if per_channel else {}
    module = LearnableFakeQuantize(observer, dtype=dtype, qscheme=qscheme, **more)
    module(data(seed, 3, 5, 4))
    # Larger than at the start, so that some are clipped; away from half steps, where rounding is a matter
    # of the last bit.
    scale, zero_point = module.calculate_qparams()
    shape = (1, -1, 1) if per_channel else (1,)
    steps = (data(seed + 1, 3, 5, 4) * 90).round() + (data(seed + 2, 3, 5, 4) * 0.1).clamp(-0.4, 0.4)
    x = (steps * scale.view(shape)).requires_grad_()
    gradient = data(seed + 3, 3, 5, 4)
    module(x).backward(gradient)
    exact = [
        t.detach().double().requires_grad_() for t in (x, scale.view(shape), zero_point.float().view(shape))
    ]
    numel = x.numel() // (5 if per_channel else 1)
    gradient_scale = (numel * module.quant_max) ** -0.5
    bounds = module.quant_min, module.quant_max
    expected = reference(*exact, bounds=bounds, gradient_scale=gradient_scale)
    expected.backward(gradient.double())
    trained = [x, module.scale, *([module.zero_point] if affine else [])]
    for found, oracle in zip(trained, exact, strict=False):
        assert found.grad is not None
        assert oracle.grad is not None
        torch.testing.assert_close(
            found.grad.double(), oracle.grad.view(found.grad.shape), rtol=1e-4, atol=1e-5
        )


def test_values_are_those_of_a_fake_quantizer_with_the_same_parameters() -> None:
    module, other = LearnableFakeQuantize(MinMaxObserver), FakeQuantize(MinMaxObserver)
    x = data()
    assert torch.equal(module(x), other(x))
    with torch.no_grad():
        module.scale.mul_(0.7)
        module.zero_point.add_(3.4)
    other.scale, other.zero_point = module.calculate_qparams()
    other.eval()
    assert other.zero_point.item() == round(module.zero_point.item())
    assert torch.equal(module(x), other(x))


def test_it_learns_a_better_scale_than_it_starts_with() -> None:
    # One outlier, which costs all others their precision.
    x = data(0, 4096)
    x[0] = 40.0
    module = LearnableFakeQuantize(MinMaxObserver, -8, 7, **SYMMETRIC)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(150):
        loss = (module(x) - x).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert 0.2 < module.scale.item() < 0.6


@pytest.mark.parametrize("bad", [-3.0, 0.0, 1e-12])
def test_the_scale_stays_positive(bad: float) -> None:
    module = LearnableFakeQuantize(MinMaxObserver, eps=2**-12, **SYMMETRIC)
    module(data())
    with torch.no_grad():
        module.scale.fill_(bad)
        assert module.calculate_qparams()[0].item() == 2**-12
        # An evaluation changes nothing.
        module.eval()(data())
        assert module.scale.item() == torch.tensor(bad).item()
    module.train()
    loss = (module(data()) - data()).square().sum()
    assert module.scale.item() == 2**-12
    loss.backward()
    assert module.scale.grad is not None
    # Too small a scale clips, and wants to grow.
    assert module.scale.grad.item() < 0


def test_the_zero_point_stays_among_the_integers() -> None:
    module = LearnableFakeQuantize(MinMaxObserver)
    module(data())
    for learned, used in ((-7.0, 0), (1000.0, 255), (12.4, 12)):
        with torch.no_grad():
            module.zero_point.fill_(learned)
        assert module.calculate_qparams()[1].tolist() == [used]
        assert module.zero_point.item() == torch.tensor(learned).item()


def test_one_that_several_tensors_share_can_be_differentiated() -> None:
    module = LearnableFakeQuantize(MinMaxObserver)
    (module(data()) * module(data(1))).sum().backward()
    assert module.scale.grad is not None
    assert module.scale.grad.isfinite()


def test_frozen_parameters_get_no_gradient() -> None:
    module = LearnableFakeQuantize(MinMaxObserver)
    module.scale.requires_grad_(False)
    x = data().requires_grad_()
    module(x).sum().backward()
    assert module.scale.grad is None
    assert module.zero_point.grad is not None
    assert x.grad is not None
    assert module(data()).grad_fn is not None
    with torch.no_grad():
        assert module(data()).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_trained_in_float32(dtype: torch.dtype) -> None:
    module = LearnableFakeQuantize(MinMaxObserver)
    x = data().to(dtype).requires_grad_()
    y = module(x)
    y.sum().backward()
    assert y.dtype is dtype
    assert x.grad is not None
    assert module.scale.grad is not None
    assert (x.grad.dtype, module.scale.grad.dtype) == (dtype, torch.float32)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = data(step)
        loss = (module(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_resumes_to_the_bit() -> None:
    def fresh() -> tuple[LearnableFakeQuantize, torch.optim.Optimizer]:
        module = LearnableFakeQuantize(PerChannelMinMaxObserver, channels=4, **CHANNELS)
        return module, torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)

    module, optimizer = fresh()
    train(module, optimizer, range(3))
    stored = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    expected = train(module, optimizer, range(3, 6))
    resumed, optimizer = fresh()
    resumed.load_state_dict(stored[0])
    optimizer.load_state_dict(stored[1])
    assert train(resumed, optimizer, range(3, 6)) == expected
    assert parameters(resumed) == parameters(module)


def test_other_channels_than_were_announced_are_refused() -> None:
    module = LearnableFakeQuantize(PerChannelMinMaxObserver, channels=3, **CHANNELS)
    with pytest.raises(CalibrationDataError, match="channels=3 and saw 4 channels"):
        module(data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observer": PerChannelMinMaxObserver, **CHANNELS}, "no channels"),
        ({"is_dynamic": True, "averaging_constant": 1.0}, "is_dynamic=True"),
        ({"observer": PlaceholderObserver, "dtype": torch.int8}, "a PlaceholderObserver"),
    ],
)
def test_what_cannot_be_learned_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        LearnableFakeQuantize(**arguments)
