"""What ``verify="numeric"`` costs: prepare and convert with it, next to the same without.

Rounds alternate, so that both meet the same machine; the ratio is the median over the rounds, of processor
time. Both run the whole flow but calibration.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch
from flows import export
from lowbit import calibrate
from lowbit.backends.x86_inductor import X86InductorQuantizer, get_default_x86_inductor_quantization_config
from lowbit.quantize_pt2e import convert_pt2e, prepare_pt2e
from lowbit.tools.models import conv_bn_relu_chain, resnet18
from results import report, table, write_option
from torch import nn

ALLOWED = 2.0
SUBJECTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "50 conv-bn-relu": (partial(conv_bn_relu_chain, 50), (1, 4, 8, 8)),
    "200 conv-bn-relu": (partial(conv_bn_relu_chain, 200), (1, 4, 8, 8)),
    "ResNet-18": (resnet18, (1, 3, 32, 32)),
}


def quantizer() -> X86InductorQuantizer:
    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(reduce_range=True))


def seconds(exported: Any, x: torch.Tensor, options: dict[str, Any]) -> float:
    start = time.process_time()
    prepared = prepare_pt2e(exported, quantizer(), **options)
    spent = time.process_time() - start
    calibrate(prepared, [(x,)], progress=False)
    start = time.process_time()
    convert_pt2e(prepared, **options)
    return spent + time.process_time() - start


@click.command()
@click.option("--rounds", default=9, show_default=True)
@write_option
def main(rounds: int, write: bool) -> None:
    """Measure, print, and fail where it costs more than it may."""
    torch.set_num_threads(1)
    rows, ratios = [], []
    for name, (make, shape) in SUBJECTS.items():
        x = torch.randn(shape)
        exported = export(make().eval(), x)
        numeric = {"verify": "numeric", "example_inputs": (x,)}
        both = [(seconds(exported, x, {}), seconds(exported, x, numeric)) for _ in range(rounds)]
        plain, checked = (statistics.median(column) for column in zip(*both, strict=True))
        ratios.append(statistics.median(with_it / without for without, with_it in both))
        rows.append([name, f"{plain:.2f} s", f"{checked:.2f} s", f"{ratios[-1]:.2f} times"])
    text = table(["prepare + convert", "stages", "numeric", "ratio"], rows)
    report("Numeric verification", text, write=write)
    if max(ratios) > ALLOWED:
        raise click.ClickException(f"it costs more than {ALLOWED} times prepare and convert")


if __name__ == "__main__":
    main()
