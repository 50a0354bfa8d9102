"""Advice in the words of the command: options where Python has functions."""

from __future__ import annotations

from ...ir.reasons import REASONS

__all__ = ["in_command"]


def in_command(text: str) -> str:
    """``text`` with every advice that names functions put as the options that do the same."""
    for reason in REASONS.values():
        if reason.in_command:
            text = text.replace(reason.advice, reason.in_command)
    return text
