"""The presets of X86, by name."""

from __future__ import annotations

from typing import Final

from ..capabilities import Preset
from .quantizer import (
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
    get_x86_inductor_linear_weight_only_config,
)

__all__ = ["PRESETS"]

_default = get_default_x86_inductor_quantization_config

PRESETS: Final = (
    Preset("static", _default),
    Preset("static-7-bit", lambda: _default(reduce_range=True)),
    Preset("static-qat", lambda: _default(is_qat=True)),
    Preset("dynamic", lambda: _default(is_dynamic=True)),
    Preset("dynamic-qat", lambda: _default(is_qat=True, is_dynamic=True)),
    Preset("weight-only", get_x86_inductor_linear_weight_only_config),
    Preset("float16-weight", get_x86_inductor_linear_dynamic_fp16_config),
)
