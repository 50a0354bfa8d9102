"""The order of interleaved runs and the arithmetic on their times."""

from __future__ import annotations

import pytest
from lowbit.tools.interleaved import Timings, time_interleaved


def test_functions_take_turns() -> None:
    calls: list[str] = []
    timings = time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2
    )
    assert calls == ["a", "b"] * 5
    assert {name: len(runs) for name, runs in timings.seconds.items()} == {"a": 3, "b": 3}
    assert all(run >= 0 for runs in timings.seconds.values() for run in runs)


def test_ratio_is_taken_round_by_round() -> None:
    """A second in which the machine is four times slower changes medians of each, but not their ratio."""
    timings = Timings({"slow": (2.0, 8.0, 8.0), "fast": (1.0, 4.0, 4.0)})
    assert timings.ratio("slow", "fast") == 2.0
    assert timings.median("slow") == 8.0


def test_no_rounds_is_an_error() -> None:
    with pytest.raises(ValueError, match="rounds=0"):
        time_interleaved({}, rounds=0)
