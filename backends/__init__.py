"""Backends: who a graph is quantized for."""

from .base import Backend
from .registry import backend_names, get_backend, register_backend

__all__ = ["Backend", "backend_names", "get_backend", "register_backend"]
