"""BackendConfig and QConfigMapping: what a backend can quantize and what a user wants, as two objects.

The names, arguments and defaults are those of PyTorch's handbook. A config is compiled into a quantizer and
its pipelines (:func:`compile_backend`), so models go the same way as with any other backend::

    prepared = lowbit.prepare_fx(model, qconfig_mapping, example_inputs, backend_config=backend_config)
    calibrate(prepared, loader)
    converted = lowbit.convert_fx(prepared)
"""

from ...ir.reasons import register_reasons
from .builtin import (
    get_executorch_backend_config,
    get_fbgemm_backend_config,
    get_native_backend_config,
    get_onednn_backend_config,
    get_qnnpack_backend_config,
    get_x86_backend_config,
)
from .compile import compile_backend
from .config import BackendConfig
from .default_mappings import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from .dtype_config import DTypeConfig, DTypeWithConstraints
from .pattern_config import BackendPatternConfig, MatchAllNode, ObservationType
from .qconfig import QConfig, get_default_qat_qconfig, get_default_qconfig
from .qconfig_mapping import QConfigMapping
from .quantizer import BackendConfigQuantizer
from .reasons import BACKEND_CONFIG_REASONS

__all__ = [
    "BackendConfig",
    "BackendConfigQuantizer",
    "BackendPatternConfig",
    "DTypeConfig",
    "DTypeWithConstraints",
    "MatchAllNode",
    "ObservationType",
    "QConfig",
    "QConfigMapping",
    "compile_backend",
    "get_default_qat_qconfig",
    "get_default_qat_qconfig_mapping",
    "get_default_qconfig",
    "get_default_qconfig_mapping",
    "get_executorch_backend_config",
    "get_fbgemm_backend_config",
    "get_native_backend_config",
    "get_onednn_backend_config",
    "get_qnnpack_backend_config",
    "get_x86_backend_config",
]

register_reasons(BACKEND_CONFIG_REASONS)
