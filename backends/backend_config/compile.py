"""From a BackendConfig and a QConfigMapping to a backend: a quantizer and its pipelines."""

from __future__ import annotations

from ..base import Backend
from ..pipelines import CONVERT, PREPARE, PREPARE_QAT
from .config import BackendConfig
from .qconfig_mapping import QConfigMapping
from .quantizer import BackendConfigQuantizer

__all__ = ["compile_backend"]


def compile_backend(
    backend_config: BackendConfig, qconfig_mapping: QConfigMapping, *, is_qat: bool = False
) -> Backend:
    """The backend that runs what ``backend_config`` describes, as ``qconfig_mapping`` asks.

    BatchNorm is folded where a pattern has it, not everywhere as other backends do, so ``fold-batch-norm`` is
    not in its pipeline. Converted models are lowered for another backend by its name.

    Args:
        backend_config: what can be quantized.
        qconfig_mapping: what is to be, and how it is observed.
        is_qat: whether the model is to be trained.

    Raises:
        UnknownNameError: a pattern names a function that is not torch's.
    """
    return Backend(
        name=backend_config.name,
        patterns=(),
        quantizer=lambda: BackendConfigQuantizer(backend_config, qconfig_mapping, is_qat=is_qat),
        prepare=PREPARE.without("fold-batch-norm"),
        convert=CONVERT,
        lower=None,
        lowered_by="lower_pt2e(converted, backend=…) with the name of a backend that has kernels",
        prepare_qat=PREPARE_QAT if is_qat else None,
    )
