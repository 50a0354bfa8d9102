"""Prints how small and how fast what fails is shown: ``python tests/tools/testing/shrinking.py``.

Each of twenty seeded bugs calls one operator in place of another, so one call is as few as there can be.
Fails where a graph has more, or where the median takes over five seconds of processor time.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
import warnings
from pathlib import Path

import click
import torch
from lowbit.tools.testing import laws


def main() -> int:
    """Shrink, count, report."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    spec = importlib.util.spec_from_file_location("test_kit", Path(__file__).parent / "test_kit.py")
    assert spec is not None
    assert spec.loader is not None
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    seconds: list[float] = []
    minimal = True
    for name, (old, new) in kit.BUGS.items():
        started = time.process_time()
        try:
            laws.check(kit.Replace(old, new), max_steps=2, laws=laws.LAWS[:4])
            calls = 0
        except laws.LawBroken as broken:
            calls = kit.operators_shown(str(broken))
        seconds.append(time.process_time() - started)
        minimal &= calls == 1
        click.echo(f"{name}: {calls} operator, {seconds[-1]:.1f} s")
    median = statistics.median(seconds)
    click.echo(f"\n{len(seconds)} bugs, median {median:.1f} s, each on one operator: {minimal}")
    return 0 if minimal and median <= 5.0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
