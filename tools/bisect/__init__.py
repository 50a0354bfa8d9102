"""Bisecting: the pass, and in it the rule application, that breaks a model; what costs the accuracy.

::

    steps = verb_steps(exported, quantizer=quantizer, data=loader)
    print(bisect(exported, steps, check))
"""

from .check import Check, script_check
from .search import Bisection, bisect
from .steps import Calibration, Passes, Step, verb_steps

__all__ = [
    "Bisection",
    "Calibration",
    "Check",
    "Passes",
    "Step",
    "bisect",
    "script_check",
    "verb_steps",
]
