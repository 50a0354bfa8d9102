"""Texts, files, diffs and JSON are the same bytes in every process, under any hash seed and thread count."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROGRAM = Path(__file__).with_name("program.py")
# `make determinism` sets 20, for that many processes of each case.
PROCESSES = int(os.environ.get("LOWBIT_DETERMINISM_PROCESSES", "0"))
CASES = list(itertools.product(("0", "1", "2", "4711", "random"), ("1", "2")))
RUNS = CASES * PROCESSES or [("0", "1"), ("4711", "2")]


def digests(seed: str, threads: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, PROGRAM, threads],
        env={**os.environ, "PYTHONHASHSEED": seed},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_everything_written_is_the_same_bytes_in_every_process() -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(digests, *zip(*RUNS, strict=True)))
    first = found[0]
    files = {
        "diffs.jsonl",
        "qat.lowbit",
        "lowered.safetensors",
        "diffs/00-normalize.diff",
        "annotated.lowbit",
    }
    assert files <= first.keys()
    for run, other in zip(RUNS, found, strict=True):
        different = [name for name in first | other if first.get(name) != other.get(name)]
        assert not different, run
