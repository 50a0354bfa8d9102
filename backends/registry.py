"""Backends by name."""

from __future__ import annotations

from ..errors import PipelineError
from ..passes.registry import unknown_name
from .base import Backend

__all__ = ["backend_names", "get_backend", "register_backend"]

_backends: dict[str, Backend] = {}


def register_backend(backend: Backend) -> Backend:
    """Make ``backend`` known by its name.

    Raises:
        PipelineError: another backend has that name.
    """
    if _backends.get(backend.name, backend) is not backend:
        raise PipelineError(
            f"the backend name {backend.name!r} is taken",
            hint="give the new backend a name of its own",
        )
    _backends[backend.name] = backend
    return backend


def backend_names() -> tuple[str, ...]:
    """The names of all registered backends, sorted."""
    return tuple(sorted(_backends))


def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UnknownNameError: there is none; the hint has the nearest names.
    """
    try:
        return _backends[name]
    except KeyError:
        raise unknown_name("backend", name, backend_names()) from None
