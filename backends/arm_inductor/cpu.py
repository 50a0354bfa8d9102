"""Whether this is an Arm machine."""

from __future__ import annotations

import platform

__all__ = ["is_arm"]


def is_arm() -> bool:
    """Whether this machine has an Arm CPU of 64 bits."""
    return platform.machine().lower() in {"aarch64", "arm64"}
