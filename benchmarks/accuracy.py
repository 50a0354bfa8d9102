"""Accuracy on scikit-learn's digits, float and int8, over seeds of weights and of the split."""

from __future__ import annotations

import statistics

import click
import torch
from lowbit.tools.demo.data import load_digits
from lowbit.tools.demo.measure import accuracy
from lowbit.tools.demo.quantize import quantize
from lowbit.tools.demo.train import train_digits
from results import report, table, write_option

BATCH = 100


def accuracies(seed: int) -> tuple[float, float]:
    """The accuracy of the float model and of the lowered int8 model of one seed, both run eagerly."""
    digits = load_digits(seed=seed)
    model = train_digits(digits, seed=seed)
    calibration = digits.calibration_batches(BATCH, count=4)
    with torch.no_grad():
        lowered = quantize(model, calibration, example=calibration[0]).lowered
        return accuracy(model, digits.test_batches(BATCH)), accuracy(lowered, digits.test_batches(BATCH))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", default=5, show_default=True, help="Number of seeds.")
@write_option
def main(*, seeds: int, write: bool) -> None:
    """Train and quantize the digits model once a seed, and compare accuracies."""
    torch.set_num_threads(1)
    pairs = []
    for seed in range(seeds):
        click.echo(f"seed {seed}", err=True)
        pairs.append(accuracies(seed))
    differences = [int8 - float32 for float32, int8 in pairs]
    rows = [
        [f"{seed}", f"{float32:.1%}", f"{int8:.1%}", f"{difference * 100:+.1f}"]
        for seed, (float32, int8), difference in zip(range(seeds), pairs, differences, strict=True)
    ]
    mean_float32, mean_int8 = (statistics.mean(column) for column in zip(*pairs, strict=True))
    rows.append(
        ["mean", f"{mean_float32:.2%}", f"{mean_int8:.2%}", f"{statistics.mean(differences) * 100:+.2f}"]
    )
    if seeds > 1:
        rows.append(
            [
                "standard deviation",
                *(f"{statistics.stdev(column) * 100:.2f} points" for column in zip(*pairs, strict=True)),
                f"{statistics.stdev(differences) * 100:.2f}",
            ]
        )
    text = "500 test images a seed.\n\n" + table(["seed", "float32", "int8", "difference, points"], rows)
    report("Accuracy", text, write=write)


if __name__ == "__main__":
    main()
