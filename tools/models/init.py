"""Seeded parameters that make an untrained model look like a trained one to quantization."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

__all__ = ["seed_parameters", "settle_batch_norms"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def seed_parameters(model: ModuleT, seed: int) -> ModuleT:
    """Draw all parameters and BatchNorm statistics of ``model`` from ``seed``, and put it in eval mode.

    Convolutions and linears get He's initialization (He et al. 2015, fan-in, ReLU gain), which keeps the
    variance of activations through a ReLU; norms get scales and statistics scattered around 1 and 0, as
    training leaves them; embeddings and tokens are normal with variance 1, and an LSTM is uniform in
    ±1/√hidden. The branches of n residual blocks are scaled by 1/√n: the variance of the sum then grows by
    (1 + 1/n)^n < e over the whole network instead of 2^n. Nothing depends on, or changes, torch's global
    generator.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0.0, 0.05, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                _seed_batch_norm(module, generator)
            elif isinstance(module, nn.LayerNorm):
                _seed_scale_and_shift(module, generator)
            elif isinstance(module, nn.LSTM):
                bound = 1 / math.sqrt(module.hidden_size)
                for parameter in module.parameters(recurse=False):
                    parameter.uniform_(-bound, bound, generator=generator)
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.normal_(0.0, 1.0, generator=generator)
        lasts = _last_norms_of_branches(model)
        for norm in lasts:
            norm.weight.div_(math.sqrt(len(lasts)))
    return model.eval()


def settle_batch_norms(model: ModuleT, shape: tuple[int, ...]) -> ModuleT:
    """Give every BatchNorm of ``model`` (in eval mode) the statistics of its input for noise of ``shape``.

    For networks whose activations no initialization keeps in range: without this, layers without activation
    in front of saturating ones grow, gates shrink, and what is quantized is all zeros or all sixes.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches, here one
        norm.train()
    with torch.no_grad():
        model(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _seed_batch_norm(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None, "the models here track running statistics"
    assert var is not None, "the models here track running statistics"
    _seed_scale_and_shift(norm, generator)
    mean.normal_(0.0, 0.1, generator=generator)
    var.uniform_(0.75, 1.25, generator=generator)


def _seed_scale_and_shift(norm: nn.BatchNorm2d | nn.LayerNorm, generator: torch.Generator) -> None:
    norm.weight.uniform_(0.75, 1.25, generator=generator)
    norm.bias.normal_(0.0, 0.1, generator=generator)


def _last_norms_of_branches(model: nn.Module) -> list[nn.BatchNorm2d]:
    """The BatchNorm in front of the addition of each residual block (a module with a ``downsample``)."""
    blocks = [module for module in model.modules() if hasattr(module, "downsample")]
    return [
        [child for child in block.children() if isinstance(child, nn.BatchNorm2d)][-1] for block in blocks
    ]
