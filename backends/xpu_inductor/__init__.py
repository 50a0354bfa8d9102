"""Intel GPUs through Inductor: int8 kernels of oneDNN."""

import torch

from ...passes import EmitInductor, PackWeights, Pipeline
from ..base import Backend
from ..capabilities import Preset
from ..pipelines import CONVERT, PREPARE
from ..registry import register_backend
from .patterns import PATTERNS
from .quantizer import XPUInductorQuantizer, get_default_xpu_inductor_quantization_config

__all__ = ["XPU_INDUCTOR", "XPUInductorQuantizer", "get_default_xpu_inductor_quantization_config"]

XPU_INDUCTOR = register_backend(
    Backend(
        name="xpu_inductor",
        patterns=PATTERNS,
        quantizer=lambda: XPUInductorQuantizer().set_global(get_default_xpu_inductor_quantization_config()),
        prepare=PREPARE,
        convert=CONVERT,
        lower=Pipeline((EmitInductor(), PackWeights())),
        presets=(Preset("static", get_default_xpu_inductor_quantization_config),),
        device="xpu",
        is_available=torch.xpu.is_available,
    )
)
