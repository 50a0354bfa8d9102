"""The pipelines that backends start from."""

from __future__ import annotations

from ..passes import (
    Annotate,
    DuplicateDequantize,
    FoldBatchNorm,
    FoldConvBnQat,
    FoldQuantize,
    FuseConvBnQat,
    InsertFakeQuantizers,
    InsertObservers,
    Normalize,
    ObserversToQdq,
    Pipeline,
    PropagateMetadata,
    ResolveSharing,
)

__all__ = ["CONVERT", "PREPARE", "PREPARE_QAT"]

PREPARE = Pipeline((Normalize(), FoldBatchNorm(), Annotate(), ResolveSharing(), InsertObservers()))
"""FLOAT → OBSERVED, for post-training quantization."""

PREPARE_QAT = Pipeline(
    (
        Normalize(keep_gradients=True),
        Annotate(bodies=False),
        FuseConvBnQat(),
        ResolveSharing(bodies=False),
        InsertFakeQuantizers(),
    )
)
"""FLOAT → OBSERVED, for quantization-aware training."""

CONVERT = Pipeline(
    (FoldConvBnQat(), ObserversToQdq(), DuplicateDequantize(), FoldQuantize(), PropagateMetadata())
)
"""OBSERVED → QDQ."""
