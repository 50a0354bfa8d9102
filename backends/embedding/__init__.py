"""Embeddings with rows of int8: a quarter of the memory, one scale and offset a row, on any device."""

from ...passes import EmitInductor, PackWeights, Pipeline
from ..base import Backend
from ..capabilities import Preset
from ..pipelines import CONVERT, PREPARE
from ..registry import register_backend
from .patterns import PATTERNS
from .quantizer import EmbeddingQuantizer, get_default_embedding_quantization_config

__all__ = ["EMBEDDING", "EmbeddingQuantizer", "get_default_embedding_quantization_config"]

EMBEDDING = register_backend(
    Backend(
        name="embedding",
        patterns=PATTERNS,
        quantizer=EmbeddingQuantizer,
        prepare=PREPARE,
        convert=CONVERT,
        lower=Pipeline((EmitInductor(), PackWeights())),
        presets=(Preset("weight-only", get_default_embedding_quantization_config),),
    )
)
