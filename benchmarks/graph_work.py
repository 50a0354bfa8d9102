"""How the time of prepare and convert grows with the graph, next to torchao's.

Every round runs every flow at every size, and the best round counts: graph work is deterministic and runs on
one thread, so whatever takes longer was disturbed. Processor time is what is taken, so that waiting for other
processes is not part of it.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable

import attrs
import click
import torch
from flows import Flow, export, lowbit_flow, torchao_flow
from lowbit.tools.models import conv_bn_relu_chain, linear_relu_chain, one_input_many_linears
from results import report, table, write_option
from torch import nn
from torch.fx import GraphModule

SIZES = (100, 800)


@attrs.frozen
class Family:
    name: str
    make: Callable[[int], nn.Module]
    input_shape: tuple[int, ...]


FAMILIES = (
    Family("conv-bn-relu chain", conv_bn_relu_chain, (1, 4, 8, 8)),
    Family("linear-relu chain", linear_relu_chain, (2, 8)),
    Family("one input to N linears", one_input_many_linears, (2, 8)),
)


@attrs.frozen
class Seconds:
    prepare: float
    convert: float

    @property
    def total(self) -> float:
        return self.prepare + self.convert


def timed(verb: Callable[[GraphModule], GraphModule], model: GraphModule) -> tuple[GraphModule, float]:
    """What ``verb`` makes of ``model``, and its processor seconds, without the garbage of what ran before."""
    gc.collect()
    gc.freeze()
    start = time.process_time()
    made = verb(model)
    seconds = time.process_time() - start
    gc.unfreeze()
    return made, seconds


def run_once(flow: Flow, exported: GraphModule, example: torch.Tensor) -> Seconds:
    # A copy, because torchao changes the model it is given.
    prepared, prepare = timed(flow.prepare, copy.deepcopy(exported))
    with torch.no_grad():
        prepared(example)
    _converted, convert = timed(flow.convert, prepared)
    return Seconds(prepare, convert)


def measure(family: Family, flows: list[Flow], rounds: int) -> dict[tuple[str, int], Seconds]:
    """The best round of every flow at every size."""
    example = torch.randn(family.input_shape, generator=torch.Generator().manual_seed(0))
    exported = {n: export(family.make(n), example) for n in SIZES}
    runs: dict[tuple[str, int], list[Seconds]] = {}
    for index in range(rounds):
        for n in SIZES:
            for flow in flows:
                click.echo(f"{family.name}: round {index + 1} of {rounds}, N = {n}, {flow.name}", err=True)
                runs.setdefault((flow.name, n), []).append(run_once(flow, exported[n], example))
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
    """Time prepare and convert on chains of 100 and 800 blocks."""
    torch.set_num_threads(1)
    flows = [lowbit_flow(min_max=True), *([torchao_flow(min_max=True)] if peer else [])]
    rows = []
    small, large = SIZES
    for family in FAMILIES:
        best = measure(family, flows, rounds)
        ours = best["lowbit", large]
        for flow in flows:
            at_small, at_large = best[flow.name, small], best[flow.name, large]
            rows.append(
                [
                    family.name,
                    flow.name,
                    *(
                        f"{s:.3f}"
                        for s in (at_small.prepare, at_small.convert, at_large.prepare, at_large.convert)
                    ),
                    f"{at_large.total / at_small.total:.1f}",
                    f"{at_large.total / ours.total:.1f}",
                ]
            )
    headings = ["graph", "flow"]
    headings += [f"{verb} {n}, s" for n in SIZES for verb in ("prepare", "convert")]
    headings += [f"{large} / {small} (linear: {large // small})", f"time at {large}, lowbit = 1"]
    text = f"Processor time of one thread, min-max observers, best of {rounds} interleaved rounds.\n\n"
    report("Graph work", text + table(headings, rows), write=write)


if __name__ == "__main__":
    main()
