"""Backends: who a graph is quantized for."""

from .base import Backend
from .capabilities import Capabilities, Capability, Preset
from .composable import ComposableQuantizer, compose_backends
from .finding import Finding
from .registry import backend_names, get_backend, register_backend

__all__ = [
    "Backend",
    "Capabilities",
    "Capability",
    "ComposableQuantizer",
    "Finding",
    "Preset",
    "backend_names",
    "compose_backends",
    "get_backend",
    "register_backend",
]
