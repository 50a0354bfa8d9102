"""Sharing: which points of a graph have one scale and zero point, and why."""

from .links import Link, LinkReason
from .resolve import resolve_sharing
from .result import SharingGroup, SharingResult

__all__ = ["Link", "LinkReason", "SharingGroup", "SharingResult", "resolve_sharing"]
