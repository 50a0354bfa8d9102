"""The presets of X86, by name."""

from __future__ import annotations

from typing import Final

from ..capabilities import Preset
from .cpu import has_vnni
from .quantizer import (
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
    get_x86_inductor_linear_weight_only_config,
)

__all__ = ["PRESETS"]

_default = get_default_x86_inductor_quantization_config

PRESETS: Final = (
    Preset(
        "static",
        _default,
        suits=has_vnni,
        unsuited="the int8 kernels of this CPU, which has no VNNI, overflow with activations of 8 bits",
    ),
    Preset("static-7-bit", lambda: _default(reduce_range=True)),
    Preset("static-qat", lambda: _default(is_qat=True)),
    Preset("dynamic", lambda: _default(is_dynamic=True)),
    Preset("dynamic-qat", lambda: _default(is_qat=True, is_dynamic=True)),
    Preset("weight-only", get_x86_inductor_linear_weight_only_config),
    Preset("float16-weight", get_x86_inductor_linear_dynamic_fp16_config),
)
