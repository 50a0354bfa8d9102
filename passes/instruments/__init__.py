"""Instruments: small objects that look on while passes run."""

from .base import Change, Instrument
from .diff_to_folder import DiffToFolder
from .timing import PassRecord, Timing
from .verify import Verify

__all__ = ["Change", "DiffToFolder", "Instrument", "PassRecord", "Timing", "Verify"]
