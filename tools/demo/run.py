"""The demo from beginning to end: a trained or seeded model, quantized, compiled, measured, reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from ...backends.x86_inductor import has_vnni
from ...passes.instruments import DiffToFolder
from ..interleaved import Timings, time_interleaved
from ..models import resnet18
from ..report import Report, write_report
from .data import blended_colours, load_digits
from .measure import Classifier, accuracy, agreement, saved_bytes
from .quantize import QuantizedModel, quantize
from .report import Row, passes_table, results_table
from .train import EPOCHS, train_digits

__all__ = ["SUBJECTS", "run_demo"]


@attrs.frozen(eq=False)
class Subject:
    """What is quantized, and how its quality is told.

    Args:
        model: in eval mode.
        calibration: batches, all of one shape.
        quality: from the compiled float and int8 models to the rows that compare what they compute.
        rounds: how often the latency of each is taken.
    """

    model: nn.Module
    calibration: list[Tensor]
    quality: Callable[[Classifier, Classifier], list[Row]]
    rounds: int


def run_demo(name: str, *, seed: int, diffs: Path, report: Path, console: Console) -> list[Row]:
    """Run the demo of one of :data:`SUBJECTS`, show its tables on ``console``, and return what was measured.

    Raises:
        LowbitError: what the flow raises, or scikit-learn is missing for the digits.
    """
    if not has_vnni():
        console.print(
            "this CPU has no VNNI: activations are quantized to 7 bits (reduce_range=True)", soft_wrap=True
        )
    subject = SUBJECTS[name](seed, console)
    # What oneDNN's kernels of both dtypes are fastest on; torch's stub of `to` lacks this overload.
    model = subject.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    example = subject.calibration[0]
    recorded = Report()
    with _step(console, "exported, calibrated, converted and lowered"), torch.no_grad():
        instruments = (DiffToFolder(diffs), recorded)
        quantized = quantize(model, subject.calibration, example=example, instruments=instruments)
    with _step(console, "wrote the report"):
        # The model runs in float64 for it; a few images are enough.
        write_report(report, recorded, title=name, inputs=(example[:4],))
    with torch.no_grad():
        compiled = {"float32": torch.compile(quantized.exported), "int8": torch.compile(quantized.lowered)}
        for dtype, run in compiled.items():
            with _step(console, f"compiled {dtype}"):
                run(example)
        with _step(console, "measured"):
            rows = subject.quality(compiled["float32"], compiled["int8"])
            timings = time_interleaved(
                {dtype: partial(run, example) for dtype, run in compiled.items()}, rounds=subject.rounds
            )

    rows += [_size_row(quantized), _latency_row(timings, len(example))]
    threads = torch.get_num_threads()
    title = f"{name}, compiled, {threads} {'thread' if threads == 1 else 'threads'}, seed {seed}"
    console.print(results_table(title, rows))
    console.print(passes_table(quantized.passes))
    console.print(f"What each pass changed: {diffs}/, and as a page: {report}", soft_wrap=True)
    return rows


def _size_row(quantized: QuantizedModel) -> Row:
    float32, int8 = saved_bytes(quantized.exported), saved_bytes(quantized.converted)
    comparison = f"{float32 / int8:.2f} times smaller"
    return Row("size on disk", f"{float32 / 1e6:.2f} MB", f"{int8 / 1e6:.2f} MB", comparison)


def _latency_row(timings: Timings, batch: int) -> Row:
    float32, int8 = (f"{timings.median(name) * 1e3:.2f} ms" for name in ("float32", "int8"))
    comparison = f"{timings.ratio('float32', 'int8'):.2f} times faster"
    return Row(f"latency, batch of {batch}", float32, int8, comparison)


@contextmanager
def _step(console: Console, done: str) -> Generator[None]:
    """A spinner while the step runs, and a line with its time when it is done."""
    start = time.perf_counter()
    with console.status(f"{done} …"):
        yield
    console.print(f"{done} in {time.perf_counter() - start:.1f} s")


def _digits(seed: int, console: Console) -> Subject:
    digits = load_digits(seed=seed)
    batch = 100
    start = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training", total=EPOCHS)
        model = train_digits(digits, seed=seed, on_epoch=lambda loss: progress.advance(task))
    console.print(f"trained on {len(digits.train_labels)} digits in {time.perf_counter() - start:.1f} s")

    def quality(float32: Classifier, int8: Classifier) -> list[Row]:
        wanted, found = (accuracy(each, digits.test_batches(batch)) for each in (float32, int8))
        quantity = f"accuracy on {len(digits.test_labels)} test images"
        return [Row(quantity, f"{wanted:.1%}", f"{found:.1%}", f"{(found - wanted) * 100:+.1f} points")]

    return Subject(
        model,
        digits.calibration_batches(batch, count=4),
        quality,
        rounds=50,
    )


def _resnet18(seed: int, console: Console) -> Subject:
    batch = 16
    console.print(
        "ResNet-18 with seeded random weights: there is no accuracy, so outputs are compared", soft_wrap=True
    )
    *calibration, first, second = blended_colours(6, batch=batch, seed=seed)

    def quality(float32: Classifier, int8: Classifier) -> list[Row]:
        found = agreement(float32, int8, [first, second])
        return [
            Row("SQNR of the logits", "", f"{found.sqnr_db:.1f} dB"),
            Row(f"same top-1 class, of {2 * batch} images", "", f"{found.top1:.1%}"),
        ]

    return Subject(resnet18(seed=seed), calibration, quality, rounds=10)


SUBJECTS: dict[str, Callable[[int, Console], Subject]] = {"digits": _digits, "resnet18": _resnet18}
"""The models that the demo can be run on, by the name the command line knows them by."""
