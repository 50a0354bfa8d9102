"""Observer constructors with arguments bound, comparable by value.

``functools.partial`` compares by identity, so two quantizers that ask for the same observer would look as if
they asked for different ones and could not share it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import nn

from ...errors import SpecError

__all__ = ["ObserverConstructor", "accepted_keywords", "names_parameter"]


def _sorted_items(keywords: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(keywords.items()))


@attrs.frozen(repr=False)
class ObserverConstructor:
    """An observer class with some keyword arguments bound; calling it makes a new observer.

    Made by ``SomeObserver.with_args(...)``. Equal, with equal hashes, when the class and the bound arguments
    are; can be copied and pickled.

    Args:
        factory: the observer (or fake quantizer) class.
        keywords: the bound arguments, a mapping.

    Raises:
        SpecError: an argument that ``factory`` does not take.
    """

    factory: Callable[..., nn.Module]
    keywords: tuple[tuple[str, Any], ...] = attrs.field(converter=_sorted_items)

    def __attrs_post_init__(self) -> None:
        # Found here a typo points at the line that has it, not at the pass that makes the observer.
        try:
            inspect.signature(self.factory).bind_partial(**dict(self.keywords))
        except TypeError as error:
            raise SpecError(
                f"{self!r}: {error}",
                hint=f"{self._name} takes {inspect.signature(self.factory)}",
            ) from None

    def __call__(self, **keywords: Any) -> nn.Module:
        """Make an observer; ``keywords`` win over the bound ones."""
        return self.factory(**{**dict(self.keywords), **keywords})

    def with_args(self, **keywords: Any) -> ObserverConstructor:
        """This constructor with more arguments bound; the new ones win."""
        return ObserverConstructor(self.factory, {**dict(self.keywords), **keywords})

    @property
    def _name(self) -> str:
        return getattr(self.factory, "__name__", repr(self.factory))

    def __repr__(self) -> str:
        bound = ", ".join(f"{name}={value!r}" for name, value in self.keywords)
        return f"{self._name}.with_args({bound})"


def accepted_keywords(constructor: Callable[..., object], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``keywords`` that ``constructor`` has parameters for: all if it takes ``**kwargs``."""
    parameters = _parameters(constructor)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(keywords)
    by_name = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    return {name: value for name, value in keywords.items() if name in by_name}


def names_parameter(constructor: Callable[..., object], name: str) -> bool:
    """Whether ``constructor`` has a parameter ``name`` of its own: ``**kwargs`` may be for somebody else."""
    return any(p.name == name for p in _parameters(constructor))


def _parameters(constructor: Callable[..., object]) -> tuple[inspect.Parameter, ...]:
    factory = constructor.factory if isinstance(constructor, ObserverConstructor) else constructor
    return _class_parameters(factory) if isinstance(factory, type) else _read_parameters(factory)


def _read_parameters(factory: Callable[..., object]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(factory).parameters.values())


# Reading a signature takes a fifth of a millisecond, and is wanted several times an observer. Other callables
# need not be hashable.
_class_parameters = functools.cache(_read_parameters)
