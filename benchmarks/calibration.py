"""What a calibration step costs with the default histogram observers, next to min-max observers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import click
import torch
from flows import Flow, export, lowbit_flow
from lowbit.quantize_pt2e import calibrate
from lowbit.tools.demo.data import blended_colours
from lowbit.tools.interleaved import time_interleaved
from lowbit.tools.models import resnet50
from results import report, table, write_option
from torch import Tensor
from torch.fx import GraphModule

THREADS = (1, 2)


def step(flow: Flow, exported: GraphModule, batches: list[Tensor]) -> Callable[[], object]:
    """One calibration step of ``flow``, on the next of ``batches``."""
    prepared, each = flow.prepare(exported), cycle(batches)
    return lambda: calibrate(prepared, [next(each)], progress=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=8, show_default=True, help="Steps that are timed of each.")
@click.option(
    "--batch", default=(1, 16), multiple=True, show_default=True, help="Batch size; may be repeated."
)
@write_option
def main(*, rounds: int, batch: tuple[int, ...], write: bool) -> None:
    """Time a ResNet-50 calibration step with histogram and with min-max observers."""
    rows = []
    flows = {"min-max": lowbit_flow(min_max=True), "histogram": lowbit_flow()}
    for size in batch:
        batches = blended_colours(4, batch=size, seed=0)
        model = resnet50().to(memory_format=torch.channels_last)
        exported = export(model, batches[0])
        with torch.no_grad():
            steps = {
                "float": lambda exported=exported, batches=batches: exported(batches[0]),
                **{name: step(flow, exported, batches) for name, flow in flows.items()},
            }
            for threads in THREADS:
                torch.set_num_threads(threads)
                click.echo(f"batch {size}, {threads} threads", err=True)
                timings = time_interleaved(steps, rounds=rounds)
                rows.append(
                    [
                        f"{size}",
                        f"{threads}",
                        *(f"{timings.median(name) * 1e3:.0f}" for name in ("float", "min-max", "histogram")),
                        f"{timings.ratio('min-max', 'float'):.2f}",
                        f"{timings.ratio('histogram', 'min-max'):.2f}",
                    ]
                )
    headings = ["batch", "threads", "float, ms", "min-max, ms", "histogram, ms", "min-max / float"]
    headings += ["histogram / min-max"]
    text = f"A step of ResNet-50, medians of {rounds} interleaved rounds.\n\n{table(headings, rows)}"
    report("Calibration", text, write=write)


if __name__ == "__main__":
    main()
