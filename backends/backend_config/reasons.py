"""Why operators stay float under a BackendConfig."""

from __future__ import annotations

from typing import Final

from ...ir.reasons import Reason

__all__ = ["BACKEND_CONFIG_REASONS"]

BACKEND_CONFIG_REASONS: Final = {
    "missing-fusion-pattern": Reason(
        "the backend has the operator only together with others than stand there",
        "add a pattern of the operator alone to the BackendConfig",
    ),
    "fused-only": Reason(
        "the BackendConfig fuses the pattern, and says nothing of quantizing it",
        "add a config for the fused module, with the dtypes it takes",
    ),
    "not-observed": Reason(
        "the BackendConfig says that nothing around the operator is quantized",
        "use another observation type for the pattern",
    ),
    "dtypes-not-supported": Reason(
        "the backend does not take the dtypes that the QConfig asks for", "use dtypes of its DTypeConfigs"
    ),
    "quantization-range": Reason(
        "the range of the QConfig is not within that of the backend", "narrow quant_min and quant_max"
    ),
    "scale-too-small": Reason(
        "the observer may find a smaller scale than the backend takes", "give it a larger eps"
    ),
    "parameters-not-fixed": Reason(
        "the backend asks for parameters that are fixed, and others are",
        "use the QConfig of fixed parameters for it",
    ),
    "mixed-qconfig": Reason(
        "the parts of a fused pattern have different QConfigs",
        "give all parts of the pattern the same QConfig",
    ),
}
