"""How a property fails: with an assertion that says what was found."""

from __future__ import annotations

__all__ = ["expect", "expect_equal"]


def expect(condition: bool, otherwise: str) -> None:
    """Fail with ``otherwise`` unless ``condition``."""
    if not condition:
        raise AssertionError(otherwise)


def expect_equal(found: object, wanted: object, what: str) -> None:
    """Fail unless ``found`` equals ``wanted``."""
    if found != wanted:
        raise AssertionError(f"{what}: found {found}, expected {wanted}")
