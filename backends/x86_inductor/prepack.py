"""oneDNN's weight packing operators, and what they give when traced.

torch has no fake implementation of them, which ``torch.export`` and ``torch.compile`` need as long as packing
is part of the graph. They are registered when a graph is lowered, not when lowbit is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import torch

__all__ = ["QCONV_PREPACK", "QLINEAR_PREPACK", "register_fakes"]

QCONV_PREPACK: Final = torch.ops.onednn.qconv_prepack.default
"""``(weight, w_scales, x_scale, x_zp, stride, padding, dilation, groups, x_shape=None) -> packed``"""
QLINEAR_PREPACK: Final = torch.ops.onednn.qlinear_prepack.default
"""``(weight, x_shape) -> packed``"""


def _opaque(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    # What a packed tensor reports of itself; the compiler checks real ones against it.
    strides = (1, *(0 for _ in shape[1:]))
    return torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)


@functools.cache
def register_fakes() -> None:
    """Register the fake implementations, once in a process."""

    def qconv_prepack(weight: torch.Tensor, *_: object) -> torch.Tensor:
        return _opaque(weight.shape, weight)

    def qlinear_prepack(weight: torch.Tensor, *_: object) -> torch.Tensor:
        return _opaque(weight.shape[::-1], weight)

    torch.library.register_fake("onednn::qconv_prepack", qconv_prepack)
    torch.library.register_fake("onednn::qlinear_prepack", qlinear_prepack)
