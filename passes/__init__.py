"""Passes: what changes a graph, and what runs them."""

from .annotate import Annotate
from .base import Pass, PassContext
from .duplicate_dequantize import DuplicateDequantize
from .emit_inductor import EmitInductor
from .fold_batch_norm import FoldBatchNorm
from .fold_quantize import FoldQuantize
from .insert_observers import InsertObservers
from .manager import PassManager
from .normalize import Normalize
from .observers_to_qdq import ObserversToQdq
from .pack_weights import PackWeights
from .pipeline import Pipeline
from .propagate_metadata import PropagateMetadata
from .registry import pass_class, pass_names, register_pass
from .resolve_sharing import ResolveSharing

__all__ = [
    "Annotate",
    "DuplicateDequantize",
    "EmitInductor",
    "FoldBatchNorm",
    "FoldQuantize",
    "InsertObservers",
    "Normalize",
    "ObserversToQdq",
    "PackWeights",
    "Pass",
    "PassContext",
    "PassManager",
    "Pipeline",
    "PropagateMetadata",
    "ResolveSharing",
    "pass_class",
    "pass_names",
    "register_pass",
]
