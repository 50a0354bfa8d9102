"""Training goes on from a checkpoint as if it had never stopped, to the bit."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    convert_pt2e,
    disable_observer,
    freeze_bn_stats,
    get_default_x86_inductor_quantization_config,
    move_exported_model_to_eval,
    prepare_qat_pt2e,
)
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

STEPS, FREEZE_AT = 8, 5


def make_model() -> nn.Module:
    """Everything that has state of its own in training: BatchNorm, dropout, fake quantizers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(8, eps=0.001, momentum=0.01),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, kernel_size=3, stride=2, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.Hardswish(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8 * 4 * 4, 10),
    ).train()


def prepared_from(seed: int) -> GraphModule:
    torch.manual_seed(seed)
    exported = torch.export.export(make_model(), (torch.randn(16, 1, 8, 8),)).module()
    config = get_default_x86_inductor_quantization_config(is_qat=True)
    return prepare_qat_pt2e(exported, X86InductorQuantizer().set_global(config))


def make_optimizer(model: GraphModule, kind: Callable[..., torch.optim.Optimizer]) -> torch.optim.Optimizer:
    return kind(model.parameters(), lr=0.01)


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)


def train(model: GraphModule, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """The losses of ``steps``; observers and BatchNorm statistics stand still from step FREEZE_AT on."""
    losses = []
    for step in steps:
        if step >= FREEZE_AT:
            model.apply(disable_observer)
            freeze_bn_stats(model)
        images, labels = batch_of(step)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(parameters, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("kind", [sgd, torch.optim.AdamW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 3, 6], ids=lambda stop: f"after-{stop}-steps")
def test_resumed_training_has_the_same_losses(stop: int, kind) -> None:
    model = prepared_from(0)
    optimizer = make_optimizer(model, kind)
    torch.manual_seed(1)
    train(model, optimizer, range(stop))
    checkpoint = io.BytesIO()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()},
        checkpoint,
    )
    wanted = train(model, optimizer, range(stop, STEPS))

    # Other weights to begin with: all that counts comes from the checkpoint.
    resumed = prepared_from(99)
    optimizer = make_optimizer(resumed, kind)
    checkpoint.seek(0)
    saved = torch.load(checkpoint)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"])
    assert train(resumed, optimizer, range(stop, STEPS)) == wanted

    expected, found = model.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    images, _labels = batch_of(STEPS)
    logits = [convert_pt2e(move_exported_model_to_eval(each))(images) for each in (model, resumed)]
    assert torch.equal(*logits)


def test_a_run_differs_where_its_state_is_not_restored() -> None:
    """What the test above compares does depend on the checkpoint."""
    losses = []
    for seed in (0, 99):
        model = prepared_from(seed)
        torch.manual_seed(1)
        losses.append(train(model, make_optimizer(model, sgd), range(2)))
    assert losses[0] != losses[1]
