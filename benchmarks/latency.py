"""Latency of compiled models, float32 and int8, lowbit's and others', all contestants taking turns.

Each is a process of its own (``contestant.py``). Those that are not installed are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import click
import torch
from contestant import CONTESTANTS
from lowbit.tools.demo.measure import sqnr_db
from lowbit.tools.interleaved import Timings
from lowbit.tools.models.catalogue import CATALOGUE
from results import environment, report, table, write_option

HERE = Path(__file__).parent
OTHERS = {"openvino", "onnxruntime"}
"""What lives in .venv-others."""
OURS = ("lowbit-cpp", "lowbit-aot")
"""Of lowbit's what is compared: compiled by ``lower_pt2e(converted, cpp_wrapper=True)``, and a package."""


def revision() -> str:
    """The commit that is measured, and whether files differ from it."""
    words = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@attrs.frozen
class Setting:
    """What is run: a model on so many inputs at once, by so many threads."""

    model: str
    batch: int
    threads: int

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}, {self.threads} thread{'s' * (self.threads > 1)}"


@attrs.frozen
class Contestant:
    """A process that is ready to be timed."""

    process: subprocess.Popen[str]
    compiled_in: float
    coverage: str
    output: torch.Tensor

    def time(self, calls: int) -> list[float]:
        """Seconds of each of so many calls, one after the other."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(calls, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@contextmanager
def started(name: str, setting: Setting, python: str) -> Iterator[Contestant | None]:
    """The contestant, built; None if it stopped, with its last words shown."""
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder) / "output.pt", Path(folder) / "log.txt"
        command = [python, str(HERE / "contestant.py"), name]
        command += ["--model", setting.model, "--batch", str(setting.batch), "--output", str(output)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(setting.threads),
            # Compilers are timed too: none may find what was compiled before.
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
        }
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                ready = json.loads(line)
                yield Contestant(process, ready["compile"], ready["coverage"], torch.load(output))
            else:
                process.wait()
                click.echo("\n".join(log.read_text().splitlines()[-12:]), err=True)
                yield None
            process.stdin.close()


@attrs.frozen
class Measured:
    """What was seen of one setting, by contestant."""

    timings: Timings
    compiled_in: dict[str, float]
    coverage: str
    sqnr_db: dict[str, float]


def kept(file: Path | None, run: list[object]) -> dict[Setting, Measured]:
    """What a run like this one wrote into ``file`` before it was stopped, a line of JSON a setting.

    ``run`` is what runs have to have in common.
    """
    if file is None or not file.exists():
        return {}
    found: dict[Setting, Measured] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # it may have been stopped within a line
            each = json.loads(line)
            if each["run"] == run:
                timings = Timings({name: tuple(runs) for name, runs in each["seconds"].items()})
                found[Setting(**each["setting"])] = Measured(timings, **each["measured"])
    return found


def keep(file: Path, run: list[object], setting: Setting, measured: Measured) -> None:
    """Add a line to ``file`` for :func:`kept`."""
    line = {
        "run": run,
        "setting": attrs.asdict(setting),
        "seconds": dict(measured.timings.seconds),
        "measured": attrs.asdict(measured, filter=lambda field, _: field.name != "timings"),
    }
    with file.open("a", encoding="utf-8") as lines:
        lines.write("\n" + json.dumps(line))


def measure(setting: Setting, names: list[str], pythons: dict[str, str], *, rounds: int) -> Measured:
    """Build the contestants one after the other, and then let them take turns."""
    with ExitStack() as stack:
        ready: dict[str, Contestant] = {}
        for name in names:
            click.echo(f"{setting}: {name}", err=True)
            contestant = stack.enter_context(started(name, setting, pythons[name]))
            if contestant is not None:
                ready[name] = contestant
        seconds: dict[str, list[float]] = {name: [] for name in ready}
        for each in ready.values():
            each.time(3)
        for _ in range(rounds):
            for name, each in ready.items():
                # The first call after another's turn finds the caches cold.
                seconds[name].append(min(each.time(4)[1:]))
        reference = ready["float32"].output
        return Measured(
            Timings({name: tuple(runs) for name, runs in seconds.items()}),
            {name: each.compiled_in for name, each in ready.items()},
            next((ready[name].coverage for name in OURS if name in ready), ""),
            {name: sqnr_db(reference, each.output) for name, each in ready.items()},
        )


def summary(found: dict[Setting, Measured], ours: str) -> str:
    """Ratios over all settings: of the time of ``ours`` to each of the others'."""
    rows = []
    for other in CONTESTANTS:
        if other == ours:
            continue
        ratios = {
            setting: seen.timings.ratio(ours, other)
            for setting, seen in found.items()
            if {ours, other} <= seen.timings.seconds.keys()
        }
        if ratios:
            worst = max(ratios, key=lambda setting: ratios[setting])
            mean = statistics.geometric_mean(ratios.values())
            rows.append([other, f"{mean:.2f}", f"{ratios[worst]:.2f}", str(worst), str(len(ratios))])
    return table([f"{ours} over", "geometric mean", "worst", "where", "settings"], rows)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", "models", type=click.Choice(list(CATALOGUE)), multiple=True, default=list(CATALOGUE))
@click.option("--batch", "batches", multiple=True, default=(1, 8), show_default=True)
@click.option("--threads", multiple=True, default=(1, 2), show_default=True)
@click.option("--contestant", "names", type=click.Choice(list(CONTESTANTS)), multiple=True)
@click.option("--rounds", default=15, show_default=True, help="Turns of each.")
@click.option(
    "--others-python", default=".venv-others/bin/python", help="What has OpenVINO and ONNX Runtime."
)
@click.option(
    "--keep",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep what is measured in this file, and do not measure again what it has from a run before.",
)
@write_option
def main(
    *,
    models: tuple[str, ...],
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    names: tuple[str, ...],
    rounds: int,
    others_python: str,
    file: Path | None,
    write: bool,
) -> None:
    """Time compiled models: float32, int8 of the default preset, and what others make of the same model."""
    pythons = {name: others_python if name in OTHERS else sys.executable for name in CONTESTANTS}
    wanted = [name for name in CONTESTANTS if (not names or name in names) and Path(pythons[name]).exists()]
    wanted = list(dict.fromkeys(["float32", *wanted]))
    settings = [Setting(m, b, t) for m in models for b in batches for t in threads]
    run = [rounds, wanted, environment(), revision()]
    before = kept(file, run)
    found: dict[Setting, Measured] = {}
    for setting in settings:
        found[setting] = before.get(setting) or measure(setting, wanted, pythons, rounds=rounds)
        if file is not None and setting not in before:
            keep(file, run, setting, found[setting])
    shown = [name for name in wanted if any(name in seen.timings.seconds for seen in found.values())]

    def cells(setting: Setting, values: dict[str, float], form: str) -> list[str]:
        return [str(setting), *(format(values[n], form) if n in values else "-" for n in shown)]

    def milliseconds(seen: Measured) -> dict[str, float]:
        return {name: 1e3 * seen.timings.median(name) for name in seen.timings.seconds}

    latency = [cells(s, milliseconds(seen), ".2f") for s, seen in found.items()]
    compiling = [[*cells(s, seen.compiled_in, ".1f"), seen.coverage] for s, seen in found.items()]
    quality = [cells(s, seen.sqnr_db, ".1f") for s, seen in found.items()]
    text = "\n\n".join(
        [
            f"Milliseconds a call, {rounds} interleaved rounds, random weights.",
            table(["", *shown], latency),
            "Ratios of the rounds, their medians:",
            *(summary(found, ours) for ours in OURS if ours in shown),
            "Seconds to compile, and operators that lowbit runs in int8 of those it was to:",
            table(["", *shown, "int8"], compiling),
            "Signal to quantization noise of the outputs, dB:",
            table(["", *shown], quality),
        ]
    )
    report("Latency", text, write=write)


if __name__ == "__main__":
    main()
