"""Quantization-aware training on scikit-learn's digits: accuracy of three models, float, PTQ and QAT.

Quantized accuracies are those of the converted graph, run eagerly: what the arithmetic is worth, on any CPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import attrs
import click
import torch
from lowbit import (
    X86InductorQuantizer,
    disable_observer,
    freeze_bn_stats,
    get_default_x86_inductor_quantization_config,
    move_exported_model_to_eval,
)
from lowbit.quantize_pt2e import calibrate, convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from lowbit.tools.demo.data import Digits, load_digits
from lowbit.tools.demo.measure import accuracy
from lowbit.tools.demo.train import fit
from lowbit.tools.models import digits_densenet, digits_mobilenet_v3, digits_resnet
from results import report, table, write_option
from torch import nn
from torch.fx import GraphModule

BATCH = 100
# Fine-tuning: with everything learning, and then with observers and BatchNorm statistics frozen.
QAT_EPOCHS = (3, 1)
QAT_LEARNING_RATE = 0.01


@attrs.frozen
class Subject:
    """A model, and what trains it in float."""

    name: str
    make: Callable[[int], nn.Module]
    epochs: int
    learning_rate: float


SUBJECTS = (
    Subject("MobileNetV3-like", lambda seed: digits_mobilenet_v3(seed=seed), 24, 0.1),
    Subject(
        "ResNet-like, zero-init residual",
        lambda seed: digits_resnet(zero_init_residual=True, seed=seed),
        12,
        0.1,
    ),
    Subject("DenseNet-like", lambda seed: digits_densenet(seed=seed), 12, 0.05),
)


@attrs.frozen
class Accuracies:
    float32: float
    ptq: float
    qat: float


def train(subject: Subject, digits: Digits, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # dropout draws from torch's own generator
    model = subject.make(seed).train()
    fit(model, digits, epochs=subject.epochs, peak_learning_rate=subject.learning_rate, seed=seed)
    return model.eval()


def export(model: nn.Module, digits: Digits) -> GraphModule:
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (digits.train_images[:BATCH],), dynamic_shapes=shapes).module()


def quantizer(*, is_qat: bool, reduce_range: bool) -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=reduce_range)
    return X86InductorQuantizer().set_global(config)


def post_training(model: nn.Module, digits: Digits, *, reduce_range: bool) -> GraphModule:
    prepared = prepare_pt2e(export(model.eval(), digits), quantizer(is_qat=False, reduce_range=reduce_range))
    calibrate(prepared, digits.calibration_batches(BATCH, count=4), progress=False)
    return convert_pt2e(prepared)


def fine_tuned(model: nn.Module, digits: Digits, seed: int, *, reduce_range: bool) -> GraphModule:
    """``model`` trained on with fake quantization, and converted."""
    torch.manual_seed(seed)
    prepared = prepare_qat_pt2e(
        export(model.train(), digits), quantizer(is_qat=True, reduce_range=reduce_range)
    )
    learning, frozen = QAT_EPOCHS
    train_more = partial(fit, prepared, digits, seed=seed)
    train_more(epochs=learning, peak_learning_rate=QAT_LEARNING_RATE)
    prepared.apply(disable_observer)
    freeze_bn_stats(prepared)
    train_more(epochs=frozen, peak_learning_rate=QAT_LEARNING_RATE / 10)
    return convert_pt2e(move_exported_model_to_eval(prepared))


def accuracies(subject: Subject, seed: int, *, reduce_range: bool) -> Accuracies:
    """The three accuracies of one model and one seed, of the weights and of the split."""
    digits = load_digits(seed=seed)
    model = train(subject, digits, seed)
    measure = partial(accuracy, batches=list(digits.test_batches(BATCH)))
    return Accuracies(
        float32=measure(model),
        ptq=measure(post_training(model, digits, reduce_range=reduce_range)),
        qat=measure(fine_tuned(model, digits, seed, reduce_range=reduce_range)),
    )


def row(name: str, runs: list[Accuracies]) -> list[str]:
    """Means, and the differences of QAT to the others with their standard error, in points."""
    means = [statistics.mean(column) for column in zip(*(attrs.astuple(run) for run in runs), strict=True)]
    cells = [name, *(f"{mean:.2%}" for mean in means)]
    for against in ("ptq", "float32"):
        gains = [100 * (run.qat - getattr(run, against)) for run in runs]
        spread = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
        cells.append(f"{statistics.mean(gains):+.2f}{spread}")
    return cells


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", default=10, show_default=True, help="Number of seeds.")
@click.option(
    "--reduce-range/--full-range",
    default=True,
    show_default=True,
    help="Activations of 7 bits or of 8, in both.",
)
@write_option
def main(*, seeds: int, reduce_range: bool, write: bool) -> None:
    """Train, quantize, and train with fake quantization, once a seed and model."""
    torch.set_num_threads(1)
    rows = []
    for subject in SUBJECTS:
        runs = []
        for seed in range(seeds):
            runs.append(accuracies(subject, seed, reduce_range=reduce_range))
            click.echo(f"{subject.name}, seed {seed}: {runs[-1]}", err=True)
        rows.append(row(subject.name, runs))
    headings = ["model", "float32", "PTQ", "QAT", "QAT over PTQ, points", "QAT over float32, points"]
    bits = 7 if reduce_range else 8
    text = (
        f"Means of {seeds} seeds with 500 test images each, {bits}-bit activations; differences with their "
        f"standard errors. QAT fine-tunes the float model for {sum(QAT_EPOCHS)} epochs.\n\n"
    )
    report("Quantization-aware training", text + table(headings, rows), write=write)


if __name__ == "__main__":
    main()
