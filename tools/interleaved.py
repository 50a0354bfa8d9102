"""Timing functions against each other on a machine whose speed drifts.

Running A, B, A, B, … and comparing medians makes a slow second hit both; running all of A and then all of B
makes the comparison measure the machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import attrs

__all__ = ["Timings", "time_interleaved"]


@attrs.frozen
class Timings:
    """Seconds of each run, in order, by the name of what was run."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """The median run of ``name``, in seconds: what one call typically costs."""
        return statistics.median(self.seconds[name])

    def ratio(self, slower: str, faster: str) -> float:
        """How many times longer ``slower`` takes than ``faster``: the median of the ratios of the rounds."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return statistics.median(a / b for a, b in pairs)


def time_interleaved(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> Timings:
    """Call every function once a round, for ``rounds`` rounds after ``warmup`` untimed ones.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least one round is needed")
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return Timings({name: tuple(runs) for name, runs in seconds.items()})
