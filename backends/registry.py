"""Backends by name: those registered, those that installed packages offer, and compositions of them.

A package offers a backend by an entry point; its name is the backend's, its object the
:class:`~lowbit.backends.base.Backend`::

    [project.entry-points."lowbit.backends"]
    my_accelerator = "my_package:MY_ACCELERATOR"
"""

from __future__ import annotations

from importlib import metadata

from ..errors import PipelineError
from ..passes.registry import unknown_name
from .base import Backend
from .composable import compose_backends

__all__ = ["ENTRY_POINTS", "backend_names", "get_backend", "register_backend"]

ENTRY_POINTS = "lowbit.backends"
"""The group of entry points that packages offer backends by."""

_backends: dict[str, Backend] = {}


def register_backend(backend: Backend) -> Backend:
    """Make ``backend`` known by its name.

    Raises:
        PipelineError: another backend has that name, or it is that of a composition.
    """
    if "+" in backend.name or _backends.get(backend.name, backend) is not backend:
        reason = "is that of a composition" if "+" in backend.name else "is taken"
        raise PipelineError(
            f"the backend name {backend.name!r} {reason}",
            hint="give the new backend a name of its own",
        )
    _backends[backend.name] = backend
    return backend


def backend_names() -> tuple[str, ...]:
    """The names of all backends, registered or offered by installed packages, sorted."""
    return tuple(sorted({*_backends, *metadata.entry_points(group=ENTRY_POINTS).names}))


def get_backend(name: str) -> Backend:
    """The backend of that name; of ``"a+b"``, the composition of both.

    Raises:
        UnknownNameError: there is none; the hint has the nearest names.
        PipelineError: what a package offers under that name is no backend of that name, two packages offer
            one, or the backends of a composition do not go together.
    """
    if "+" in name:
        return compose_backends(*map(get_backend, name.split("+")))
    if name not in _backends:
        _load(name)
    return _backends[name]


def _load(name: str) -> None:
    """Register the backend that an installed package offers."""
    offers = tuple(metadata.entry_points(group=ENTRY_POINTS, name=name))
    if not offers:
        raise unknown_name("backend", name, backend_names())
    offer, *others = offers
    package = _package(offer)
    # A package that is found twice (installed, and in a folder on the path) offers one thing still.
    other = next((other for other in others if other.value != offer.value), None)
    if other is not None:
        raise PipelineError(
            f"the packages {package} and {_package(other)} both offer a backend named {name!r}",
            where=tuple(f"entry point {each.name} = {each.value}" for each in (offer, other)),
            hint="remove one of them",
        )
    try:
        backend = offer.load()
    except (ImportError, AttributeError) as error:
        raise PipelineError(
            f"the backend {name!r} of the package {package} could not be loaded: {error}",
            where=f"entry point {offer.name} = {offer.value}",
            hint="repair or remove that package",
        ) from error
    if not isinstance(backend, Backend) or backend.name != name:
        kind = f"a backend named {backend.name!r}" if isinstance(backend, Backend) else type(backend).__name__
        raise PipelineError(
            f"the package {package} offers a backend named {name!r}, which is {kind}",
            where=f"entry point {offer.name} = {offer.value}",
            hint="an entry point has the name of the backend that it points at",
        )
    register_backend(backend)


def _package(offer: metadata.EntryPoint) -> str:
    return offer.dist.name if offer.dist is not None else offer.value
