"""The pipelines that backends start from."""

from __future__ import annotations

from ..passes import (
    Annotate,
    DuplicateDequantize,
    FoldBatchNorm,
    FoldQuantize,
    InsertObservers,
    Normalize,
    ObserversToQdq,
    Pipeline,
    PropagateMetadata,
    ResolveSharing,
)

__all__ = ["CONVERT", "PREPARE"]

PREPARE = Pipeline((Normalize(), FoldBatchNorm(), Annotate(), ResolveSharing(), InsertObservers()))
"""FLOAT → OBSERVED, for post-training quantization."""

CONVERT = Pipeline((ObserversToQdq(), DuplicateDequantize(), FoldQuantize(), PropagateMetadata()))
"""OBSERVED → QDQ."""
