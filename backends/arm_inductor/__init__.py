"""Arm CPUs through Inductor: int8 kernels of oneDNN."""

from ...passes import EmitInductor, PackWeights, Pipeline
from ..base import Backend
from ..capabilities import Preset
from ..pipelines import CONVERT, PREPARE, PREPARE_QAT
from ..registry import register_backend
from .cpu import is_arm
from .patterns import PATTERNS
from .quantizer import ArmInductorQuantizer, get_default_arm_inductor_quantization_config

__all__ = ["ARM_INDUCTOR", "ArmInductorQuantizer", "get_default_arm_inductor_quantization_config"]

ARM_INDUCTOR = register_backend(
    Backend(
        name="arm_inductor",
        patterns=PATTERNS,
        quantizer=lambda: ArmInductorQuantizer().set_global(get_default_arm_inductor_quantization_config()),
        prepare=PREPARE,
        convert=CONVERT,
        lower=Pipeline((EmitInductor(), PackWeights())),
        prepare_qat=PREPARE_QAT,
        presets=(
            Preset("static", get_default_arm_inductor_quantization_config),
            Preset("static-qat", lambda: get_default_arm_inductor_quantization_config(is_qat=True)),
            Preset("dynamic", lambda: get_default_arm_inductor_quantization_config(is_dynamic=True)),
            Preset("dynamic-qat", lambda: get_default_arm_inductor_quantization_config(True, True)),
        ),
        device="cpu",
        architecture="arm",
        is_available=is_arm,
        is_default=True,
    )
)
