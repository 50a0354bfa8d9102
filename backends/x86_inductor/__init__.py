"""X86 CPUs through Inductor: int8 kernels of oneDNN."""

from ...ir.reasons import register_reasons
from ...passes import EmitInductor, PackWeights, Pipeline
from ..base import Backend
from ..pipelines import CONVERT, PREPARE, PREPARE_QAT
from ..registry import register_backend
from .checks import look_at_cpu
from .cpu import has_vnni, is_x86
from .keep_faster_float import KeepFasterFloat
from .linears_to_convolutions import LinearsToConvolutions
from .merge_parallel_linears import MergeParallelLinears
from .patterns import PATTERNS
from .presets import PRESETS
from .quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
    get_x86_inductor_linear_weight_only_config,
)
from .reasons import MERGE_REASONS, ONEDNN_REASONS

__all__ = [
    "X86_INDUCTOR",
    "KeepFasterFloat",
    "LinearsToConvolutions",
    "MergeParallelLinears",
    "X86InductorQuantizer",
    "get_default_x86_inductor_quantization_config",
    "get_x86_inductor_linear_dynamic_fp16_config",
    "get_x86_inductor_linear_weight_only_config",
    "has_vnni",
]

register_reasons(ONEDNN_REASONS)
register_reasons(MERGE_REASONS)
X86_INDUCTOR = register_backend(
    Backend(
        name="x86_inductor",
        patterns=PATTERNS,
        quantizer=lambda: X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()),
        prepare=PREPARE,
        convert=CONVERT,
        lower=Pipeline((EmitInductor(), MergeParallelLinears(), LinearsToConvolutions(), PackWeights())),
        prepare_qat=PREPARE_QAT,
        presets=PRESETS,
        device="cpu",
        architecture="x86",
        is_available=is_x86,
        is_default=True,
        checks=look_at_cpu,
    )
)
