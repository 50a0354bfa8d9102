"""Passes: what changes a graph, and what runs them."""

from .annotate import Annotate
from .base import Pass, PassContext
from .duplicate_dequantize import DuplicateDequantize
from .emit_inductor import EmitInductor
from .fold_batch_norm import FoldBatchNorm
from .fold_quantize import FoldQuantize
from .insert_fake_quantizers import InsertFakeQuantizers
from .insert_observers import InsertObservers
from .manager import PassManager
from .normalize import Normalize
from .observers_to_qdq import ObserversToQdq
from .pack_weights import PackWeights
from .pipeline import Pipeline
from .propagate_bf16 import PropagateBf16
from .propagate_metadata import PropagateMetadata
from .qat.fold_conv_bn import FoldConvBnQat
from .qat.fuse_conv_bn import FuseConvBnQat
from .reference import ReferenceRepresentation
from .registry import pass_class, pass_names, register_pass
from .resolve_sharing import ResolveSharing

__all__ = [
    "Annotate",
    "DuplicateDequantize",
    "EmitInductor",
    "FoldBatchNorm",
    "FoldConvBnQat",
    "FoldQuantize",
    "FuseConvBnQat",
    "InsertFakeQuantizers",
    "InsertObservers",
    "Normalize",
    "ObserversToQdq",
    "PackWeights",
    "Pass",
    "PassContext",
    "PassManager",
    "Pipeline",
    "PropagateBf16",
    "PropagateMetadata",
    "ReferenceRepresentation",
    "ResolveSharing",
    "pass_class",
    "pass_names",
    "register_pass",
]
