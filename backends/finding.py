"""What was found out about a machine."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

__all__ = ["Finding", "Status"]

Status: TypeAlias = Literal["ok", "note", "slow", "wrong"]


@attrs.frozen
class Finding:
    """One thing that was looked at, for ``lowbit doctor``.

    Args:
        name: what was looked at.
        found: what it is.
        status: "ok"; "note": something to know; "slow": quantized models gain less here; "wrong": something
            will fail or compute wrong numbers.
        means: what follows, and what to do; empty where all is well.
    """

    name: str
    found: str
    status: Status
    means: str = ""
