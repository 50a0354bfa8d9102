"""Bisecting: the pass, and in it the rule application, that breaks a model; what costs the accuracy.

::

    steps = verb_steps(exported, quantizer=quantizer, data=loader)
    print(bisect(exported, steps, check))
"""

from .accuracy import CostlyOperators, Metric, QuantizedOperator, costly_operators
from .check import Check, script_check
from .replay import reduce_reproducer, replay
from .search import Bisection, bisect
from .steps import Calibration, Passes, Step, verb_steps

__all__ = [
    "Bisection",
    "Calibration",
    "Check",
    "CostlyOperators",
    "Metric",
    "Passes",
    "QuantizedOperator",
    "Step",
    "bisect",
    "costly_operators",
    "reduce_reproducer",
    "replay",
    "script_check",
    "verb_steps",
]
