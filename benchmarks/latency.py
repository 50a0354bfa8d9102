"""Latency of compiled ResNets, float32 and int8, all contestants taking turns in one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click
import torch
import torch._inductor.config
from flows import Flow, export, lowbit_flow, torchao_flow
from lowbit.quantize_pt2e import lower_pt2e
from lowbit.tools.demo.data import blended_colours
from lowbit.tools.demo.measure import agreement
from lowbit.tools.interleaved import time_interleaved
from lowbit.tools.models import resnet18, resnet50
from results import report, table, write_option
from torch import Tensor, nn
from torch.fx import GraphModule

MODELS: dict[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50}


def contestants(model: nn.Module, batches: list[Tensor], flows: list[Flow]) -> dict[str, GraphModule]:
    """The models to compare, by name; each a graph of its own, because compiled code is kept by graph."""
    found = {name: export(model, batches[0]) for name in ("float32", "float32, freezing")}
    for flow in flows:
        prepared = flow.prepare(flow.export(model, batches[0]))
        for batch in batches:
            prepared(batch)
        converted = flow.convert(prepared)
        if flow.name == "lowbit":
            found["int8, lowbit"] = lower_pt2e(converted)
        else:
            # torchao leaves lowering to Inductor, which does it under freezing only.
            found[f"int8, {flow.name}, freezing"] = converted
    return found


def compile_now(model: GraphModule, example: Tensor, *, freezing: bool) -> Callable[[Tensor], Tensor]:
    """``model`` compiled for inputs like ``example``.

    Under freezing, weights become constants that the compiler may lay out anew. The flag is set as the
    environment variable TORCHINDUCTOR_FREEZING sets it: as an option of ``torch.compile`` it does not reach
    all of the rewrites that torchao relies on.
    """
    compiled = torch.compile(model)
    with torch._inductor.config.patch(freezing=freezing):
        compiled(example)
    return compiled


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True, default=tuple(MODELS))
@click.option("--batch", default=16, show_default=True, help="Images a call.")
@click.option("--threads", default=1, show_default=True, help="Threads that torch computes with.")
@click.option("--rounds", default=10, show_default=True, help="Calls that are timed of each.")
@click.option("--peer", is_flag=True, help="Measure torchao's int8 model too.")
@write_option
def main(*, models: tuple[str, ...], batch: int, threads: int, rounds: int, peer: bool, write: bool) -> None:
    """Time compiled ResNets at 224 by 224, channels last: float32, and int8 of the default preset."""
    torch.set_num_threads(threads)
    flows = [lowbit_flow(), *([torchao_flow()] if peer else [])]
    rows = []
    for name in models:
        batches = blended_colours(3, batch=batch, seed=0)
        with torch.no_grad():
            model = MODELS[name]().to(memory_format=torch.channels_last)
            runs = {}
            for who, graph in contestants(model, batches, flows).items():
                click.echo(f"{name}: compiling {who}", err=True)
                runs[who] = compile_now(graph, batches[0], freezing="freezing" in who)
            timings = time_interleaved(
                {who: partial(run, batches[0]) for who, run in runs.items()}, rounds=rounds
            )
            for who, run in runs.items():
                quality = agreement(runs["float32"], run, batches[:1])
                rows.append(
                    [
                        name,
                        who,
                        f"{timings.median(who) * 1e3:.1f}",
                        f"{timings.ratio('float32', who):.2f}",
                        f"{timings.ratio('float32, freezing', who):.2f}",
                        f"{quality.sqnr_db:.1f}",
                    ]
                )
    headings = [
        "model",
        "compiled as",
        "median, ms",
        "float32 / this",
        "float32 with freezing / this",
        "SQNR, dB",
    ]
    text = f"Batch {batch}, threads: {threads}, {rounds} interleaved rounds, random weights.\n\n"
    report("Latency", text + table(headings, rows), write=write)


if __name__ == "__main__":
    main()
