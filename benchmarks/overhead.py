"""What looking on costs: verifier, ledger and change detection, beside prepare and convert without them.

Each is timed where it is called, inside runs of the whole. So a share is of one run: on a machine that is
slow for a while the difference of two runs says little. Processor time counts, and the clock's own time for
the part it times. Diffs are made when somebody reads them, so what is off costs nothing beyond the
snapshots, which are there to catch passes that say they changed nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import attrs
import click
import torch
from flows import export
from lowbit import calibrate
from lowbit.backends import annotation
from lowbit.backends.registry import get_backend
from lowbit.backends.x86_inductor import X86InductorQuantizer, get_default_x86_inductor_quantization_config
from lowbit.ir.ledger import Ledger
from lowbit.passes import PassContext, PassManager, Pipeline, annotate, manager
from lowbit.passes.instruments import TraceChanges, Verify
from lowbit.tools.models import conv_bn_relu_chain, linear_relu_chain, resnet18
from results import report, table, write_option
from torch import Tensor, nn
from torch.fx import GraphModule

ALLOWED = 0.10
SUBJECTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "200 conv-bn-relu": (partial(conv_bn_relu_chain, 200), (1, 4, 8, 8)),
    "800 linear-relu": (partial(linear_relu_chain, 800), (4, 8)),
    "ResNet-18": (resnet18, (1, 3, 64, 64)),
}
# What only the ledger needs: what writes to it, and who goes over the graph for it.
LEDGER = [(Ledger, name) for name, value in vars(Ledger).items() if callable(value) and name[0] != "_"]
PARTS: dict[str, list[tuple[Any, str]]] = {
    "verifier": [(Verify, "before"), (Verify, "after")],
    "ledger": [*LEDGER, (annotate, "settle"), (annotation, "_explain_rest")],
    "change detection": [
        (manager, "take_snapshot"),
        (manager, "identify_nodes"),
        (manager, "identify_new_nodes"),
        (TraceChanges, "after"),
    ],
}


@attrs.define
class Clock:
    """Processor time spent in one part, in seconds; calls from inside it are not counted again."""

    spent: float = 0.0
    is_inside: bool = False

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_inside:
                return function(*args, **kwargs)
            self.is_inside, start = True, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.is_inside = False
                self.spent += time.process_time() - start

        return call


def prepare_and_convert(exported: GraphModule, x: Tensor) -> float:
    """Processor time in seconds; calibration does not count."""
    backend = get_backend("x86_inductor")
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config(reduce_range=True))
    whole = Clock()

    @whole.timed
    def run(gm: GraphModule, pipeline: Pipeline) -> GraphModule:
        return PassManager().run(gm, pipeline, PassContext(quantizer=quantizer))

    prepared = run(exported, backend.prepare)
    calibrate(prepared, [(x,)], progress=False)
    run(prepared, backend.convert)
    return whole.spent


def costs(exported: GraphModule, x: Tensor) -> tuple[float, dict[str, float]]:
    """Seconds of a run, and what each part adds to the run without it, as a share of that."""
    clocks = {part: Clock() for part in PARTS}
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                timed = clocks[part].timed(getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
        whole = prepare_and_convert(exported, x)
    spent = {part: clock.spent for part, clock in clocks.items()}
    spent["verifier and ledger"] = spent["verifier"] + spent["ledger"]
    return whole, {part: seconds / (whole - seconds) for part, seconds in spent.items()}


@click.command()
@click.option("--rounds", default=9, show_default=True)
@write_option
def main(rounds: int, write: bool) -> None:
    """Measure, print, and fail where verifier and ledger cost more than they may."""
    torch.set_num_threads(1)
    rows, worst = [], 0.0
    for name, (make, shape) in SUBJECTS.items():
        x = torch.randn(shape)
        exported = export(make().eval(), x)
        prepare_and_convert(exported, x)
        runs = [costs(exported, x) for _ in range(rounds)]
        whole = statistics.median(seconds for seconds, _ in runs)
        shares = {part: statistics.median(share[part] for _, share in runs) for part in runs[0][1]}
        worst = max(worst, shares["verifier and ledger"])
        rows.append([name, f"{whole:.2f} s", *(f"{100 * share:.1f} %" for share in shares.values())])
    report("Overhead", table(["prepare + convert", "time", *shares], rows), write=write)
    if worst > ALLOWED:
        raise click.ClickException(f"verifier and ledger cost more than {100 * ALLOWED:.0f} %")


if __name__ == "__main__":
    main()
