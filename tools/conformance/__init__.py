"""Whether a backend is right: properties generated from its declarations.

In a test file, one line::

    test_my_backend = conformance_test(MY_BACKEND)

Each operator pattern is made a small model, which goes through the backend's pipelines under every preset.
What comes of it is held against what the declarations say: roles, sharing, dtypes, kernels, and numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from ...backends.base import Backend
from . import annotated, annotated_by_hand, converted, declared, lowered, of_backend, selected
from .flow import Flows

__all__ = ["Check", "check_backend", "conformance_test"]


_OF_PATTERNS = (
    *declared.PROPERTIES,
    *annotated.PROPERTIES,
    *converted.PROPERTIES,
    *lowered.PROPERTIES,
)


@attrs.frozen(eq=False)
class Check:
    """One property of a backend.

    Args:
        name: the property, and the operator pattern where it is one of a pattern.
        run: looks; raises AssertionError, with what was found, where the property does not hold.
    """

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Look whether the property holds."""
        self.run()


def check_backend(backend: Backend) -> tuple[Check, ...]:
    """The properties that ``backend`` must have: some of it as a whole, and some of each of its patterns.

    Nothing is run before the first is called; what several need is made once.
    """
    flows = Flows(backend)
    return (
        *(Check(_words(p), lambda p=p: p(flows)) for p in (*of_backend.PROPERTIES, *selected.PROPERTIES)),
        *(
            Check(f"{pattern.name} {_words(p)}", lambda p=p, pattern=pattern: p(flows, pattern))
            for pattern in backend.patterns
            for p in _OF_PATTERNS
        ),
        *(
            Check(f"{each.name} {_words(p)}", lambda p=p, each=each: p(flows, each))
            for each in backend.by_hand
            for p in annotated_by_hand.PROPERTIES
        ),
    )


def conformance_test(backend: Backend) -> Callable[[Check], None]:
    """A test function for pytest that runs :func:`check_backend`, a test a property."""
    # Only those who test need pytest.
    import pytest

    @pytest.mark.parametrize("check", check_backend(backend), ids=lambda check: check.name.replace(" ", "-"))
    def test(check: Check) -> None:
        check()

    return test


def _words(function: Callable[..., None]) -> str:
    return function.__name__.replace("_", " ")
