"""Instruments: small objects that look on while passes run."""

from .applications import Application, Applications
from .base import Change, FailureInstrument, Instrument
from .diff_to_folder import DiffToFolder
from .diff_to_json import DiffToJson
from .print_changes import PrintChanges
from .reproduce import Reproducer
from .timing import PassRecord, Timing
from .trace_changes import TraceChanges
from .verify import Verify
from .verify_numeric import VerifyNumeric

__all__ = [
    "Application",
    "Applications",
    "Change",
    "DiffToFolder",
    "DiffToJson",
    "FailureInstrument",
    "Instrument",
    "PassRecord",
    "PrintChanges",
    "Reproducer",
    "Timing",
    "TraceChanges",
    "Verify",
    "VerifyNumeric",
]
