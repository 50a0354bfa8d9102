"""Switches of the fake quantizers of a model, in the form ``model.apply(disable_observer)``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

from .fake_quantize_base import FakeQuantizeBase

__all__ = ["disable_fake_quant", "disable_observer", "enable_fake_quant", "enable_observer", "observing"]


def disable_observer(mod: nn.Module) -> None:
    """Let ``mod``, if it is a fake quantizer, keep its parameters: ``model.apply(disable_observer)``."""
    _call(mod, "disable_observer")


def enable_observer(mod: nn.Module) -> None:
    """Let ``mod``, if it is a fake quantizer, observe in training: ``model.apply(enable_observer)``."""
    _call(mod, "enable_observer")


def disable_fake_quant(mod: nn.Module) -> None:
    """Let ``mod``, if it is a fake quantizer, return its inputs: ``model.apply(disable_fake_quant)``."""
    _call(mod, "disable_fake_quant")


def enable_fake_quant(mod: nn.Module) -> None:
    """Let ``mod``, if it is a fake quantizer, quantize: ``model.apply(enable_fake_quant)``."""
    _call(mod, "enable_fake_quant")


def _call(mod: nn.Module, name: str) -> None:
    # By name, so that fake quantizers of the user's own are switched too.
    method = getattr(mod, name, None)
    if callable(method):
        method()


@contextmanager
def observing(model: nn.Module) -> Generator[None]:
    """Let the fake quantizers of ``model`` observe, be it in training or eval mode; their switches count."""
    modes = [(m, m.training) for m in model.modules() if isinstance(m, FakeQuantizeBase)]
    for module, _ in modes:
        module.training = True
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
