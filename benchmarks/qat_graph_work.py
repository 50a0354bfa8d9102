"""What preparing for quantization-aware training and converting cost, next to torchao's.

As in graph_work.py, flows take turns and the best round's processor time counts. torchao needs about a minute
a round, so it runs at one size of the chain only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import click
import torch
from flows import Flow, export
from graph_work import Seconds, timed
from lowbit import move_exported_model_to_eval
from lowbit.backends.x86_inductor import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    has_vnni,
)
from lowbit.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from lowbit.tools.models import conv_bn_relu_chain, resnet18
from results import report, table, write_option
from torch import Tensor, nn
from torch.fx import GraphModule

SMALL, COMPARED, LARGE = 100, 200, 800


@attrs.frozen
class Subject:
    """A model, and whether torchao is measured on it too."""

    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    with_peer: bool


def chain(n: int, *, with_peer: bool) -> Subject:
    return Subject(f"{n} conv-bn-relu", partial(conv_bn_relu_chain, n), (2, 4, 8, 8), with_peer)


SUBJECTS = (
    chain(SMALL, with_peer=False),
    chain(COMPARED, with_peer=True),
    chain(LARGE, with_peer=False),
    Subject("ResNet-18", resnet18, (2, 3, 32, 32), with_peer=True),
)


@attrs.frozen
class QatFlow:
    """A flow, and how it switches a prepared model to evaluation, which is before converting it."""

    flow: Flow
    to_eval: Callable[[GraphModule], object]


def lowbit_flow() -> QatFlow:
    config = get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=not has_vnni())
    prepare = partial(_prepare, prepare_qat_pt2e, X86InductorQuantizer, config)
    return QatFlow(Flow("lowbit", export, prepare, convert_pt2e), move_exported_model_to_eval)


def torchao_flow() -> QatFlow:
    try:
        from torchao.quantization.pt2e import move_exported_model_to_eval as to_eval
        from torchao.quantization.pt2e import quantize_pt2e as peer
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as peer_x86
    except ImportError as error:
        raise click.ClickException("torchao is not installed here: see benchmarks/flows.py") from error
    config = peer_x86.get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=not has_vnni())
    prepare = partial(_prepare, peer.prepare_qat_pt2e, peer_x86.X86InductorQuantizer, config)
    # Strict, because its X86 quantizer stops at modules that are called twice.
    return QatFlow(Flow("torchao", partial(export, strict=True), prepare, peer.convert_pt2e), to_eval)


def _prepare(verb: Any, quantizer: Any, config: Any, exported: GraphModule) -> GraphModule:
    return verb(exported, quantizer().set_global(config))


def run_once(qat: QatFlow, exported: GraphModule, example: Tensor) -> Seconds:
    prepared, prepare = timed(qat.flow.prepare, copy.deepcopy(exported))
    prepared(example)
    qat.to_eval(prepared)
    _converted, convert = timed(qat.flow.convert, prepared)
    return Seconds(prepare, convert)


def measure(flows: list[QatFlow], rounds: int) -> dict[tuple[str, str], Seconds]:
    """The best round of every flow on every subject that it is measured on."""
    runs: dict[tuple[str, str], list[Seconds]] = {}
    for index in range(rounds):
        for subject in SUBJECTS:
            example = torch.randn(subject.input_shape, generator=torch.Generator().manual_seed(0))
            for qat in flows:
                if qat.flow.name != "lowbit" and not subject.with_peer:
                    continue
                click.echo(f"round {index + 1} of {rounds}: {subject.name}, {qat.flow.name}", err=True)
                exported = qat.flow.export(subject.make().train(), example)
                runs.setdefault((subject.name, qat.flow.name), []).append(run_once(qat, exported, example))
    return {
        key: Seconds(min(s.prepare for s in each), min(s.convert for s in each)) for key, each in runs.items()
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rounds", default=3, show_default=True, help="How often everything is measured; the best counts."
)
@click.option("--peer/--no-peer", default=True, show_default=True, help="Measure torchao too.")
@write_option
def main(*, rounds: int, peer: bool, write: bool) -> None:
    """Time prepare_qat_pt2e and convert_pt2e on chains and on ResNet-18."""
    torch.set_num_threads(1)
    best = measure([lowbit_flow(), *([torchao_flow()] if peer else [])], rounds)
    rows = []
    for (name, who), seconds in best.items():
        ours = best[name, "lowbit"]
        cells = [f"{each:.3f}" for each in (seconds.prepare, seconds.convert, seconds.total)]
        rows.append([name, who, *cells, f"{seconds.total / ours.total:.1f}"])
    growth = best[SUBJECTS[2].name, "lowbit"].total / best[SUBJECTS[0].name, "lowbit"].total
    text = (
        f"Processor time of one thread, X86 presets with is_qat, best of {rounds} interleaved rounds. "
        f"lowbit, {LARGE} / {SMALL} blocks: {growth:.1f} (linear: {LARGE // SMALL}).\n\n"
    )
    headings = ["graph", "flow", "prepare, s", "convert, s", "both, s", "lowbit = 1"]
    report("Graph work of quantization-aware training", text + table(headings, rows), write=write)


if __name__ == "__main__":
    main()
