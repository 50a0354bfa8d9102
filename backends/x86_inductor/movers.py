"""Operators that move or pick values: on X86 they run on the integers, with the scale of what they read.

That is a property of the operator, whatever its arguments are, so each is declared by one call of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ...matchers.operator_pattern import Kernel, OperatorPattern, Role, Sharing
from .kernels import IntegerOperator, MaxPool2d

__all__ = ["MOVERS"]


def _zeros(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.zeros(shape) for shape in shapes)


def _mover(name: str, function: Callable[..., Any], *shapes: tuple[int, ...]) -> OperatorPattern:
    return _follower(name, function, IntegerOperator(), *shapes)


def _follower(
    name: str, function: Callable[..., Any], kernel: Kernel | None, *shapes: tuple[int, ...]
) -> OperatorPattern:
    shapes = shapes or ((2, 4, 6, 6),)
    return OperatorPattern(
        name,
        function,
        _zeros(*shapes),
        (Role.ACTIVATION,) * len(shapes),
        kernel,
        sharing=Sharing.SAME_AS_INPUT,
    )


_VECTORS: Final = ((2, 4), (2, 4))

MOVERS: Final[tuple[OperatorPattern, ...]] = (
    _mover("flatten", lambda x: torch.flatten(x, 1)),
    _mover("unflatten", lambda x: x.unflatten(1, (2, 2))),
    _mover("reshape", lambda x: x.reshape(8, 36)),
    _mover("view", lambda x: x.view(8, 36)),
    _mover("contiguous", lambda x: x.contiguous(memory_format=torch.channels_last)),
    _mover("permute", lambda x: x.permute(0, 2, 3, 1)),
    _mover("transpose", lambda x: x.transpose(1, 2)),
    _mover("slice", lambda x: x[:, 1:]),
    _mover("select", lambda x: x[:, 0]),
    _mover("squeeze", lambda x: x.squeeze(1), (2, 1, 4)),
    _mover("squeeze-all", lambda x: x.squeeze(), (2, 1, 4)),
    _mover("unsqueeze", lambda x: x.unsqueeze(1)),
    _mover("expand", lambda x: x.expand(3, -1), (1, 4)),
    _mover("repeat", lambda x: x.repeat(1, 2), (2, 4)),
    _mover("roll", lambda x: x.roll(1, 1), (2, 4)),
    _mover("flip", lambda x: x.flip(1), (2, 4)),
    _mover("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2)),
    _mover("channel_shuffle", lambda x: F.channel_shuffle(x, 2)),
    _mover("cat", lambda x, y: torch.cat([x, y], 1), *_VECTORS),
    _mover("stack", lambda x, y: torch.stack([x, y], 1), *_VECTORS),
    _mover("split", lambda x: x.split(2, 1)[0]),
    _mover("split_with_sizes", lambda x: x.split([1, 3], 1)[0]),
    _mover("chunk", lambda x: x.chunk(2, 1)[0]),
    _mover("unbind", lambda x: x.unbind(1)[0]),
    _follower("max_pool2d", lambda x: F.max_pool2d(x, 3), MaxPool2d()),
    # ATen has no max_pool1d of integers.
    _follower("max_pool1d", lambda x: F.max_pool1d(x, 3), None, (2, 4, 6)),
    # Averages round, so they are left to Inductor: it fuses dequantize → average → quantize into one loop
    # that reads and writes 8-bit values.
    _follower("avg_pool1d", lambda x: F.avg_pool1d(x, 3), None, (2, 4, 6)),
    _follower("avg_pool2d", lambda x: F.avg_pool2d(x, 3), None),
    _follower("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 1), None, (2, 4, 6)),
    _follower("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (1, 1)), None),
    _follower("mean", lambda x: x.mean((2, 3)), None),
)
"""What follows its inputs into 8 bits, and shares their scale."""
