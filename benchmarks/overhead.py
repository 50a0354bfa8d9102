"""What looking on costs: the verifier, the ledger and the search for changes, of prepare and convert.

Each is left out in turn, in runs that alternate with the whole; processor time counts, so that other
programs of the machine disturb little. Diffs are made when somebody reads them, so what is off costs nothing
beyond the snapshots, which are there to catch passes that say they changed nothing.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from unittest import mock

import click
import torch
from flows import export
from lowbit import calibrate
from lowbit.backends.registry import get_backend
from lowbit.backends.x86_inductor import X86InductorQuantizer, get_default_x86_inductor_quantization_config
from lowbit.ir.ledger import Ledger
from lowbit.ir.snapshot import Snapshot
from lowbit.passes import PassContext, PassManager, Pipeline, manager
from lowbit.passes.instruments import TraceChanges, Verify
from lowbit.passes.instruments.base import Instrument
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
DEFAULT: tuple[Instrument, ...] = (Verify(), TraceChanges())
WITHOUT_VERIFIER: tuple[Instrument, ...] = (TraceChanges(),)


class Silent(Ledger):
    """A ledger that writes nothing down."""

    def _write(self, *_: object) -> None:
        pass

    def keep(self, names: object) -> None:
        pass


@contextlib.contextmanager
def without_snapshots() -> Iterator[None]:
    nothing = Snapshot({}, {})
    with (
        mock.patch.object(manager, "take_snapshot", return_value=nothing),
        mock.patch.object(manager, "identify_nodes"),
        mock.patch.object(manager, "identify_new_nodes"),
    ):
        yield


def seconds(
    exported: GraphModule,
    x: Tensor,
    ledger: Callable[[], Ledger] = Ledger,
    instruments: Sequence[Instrument] = DEFAULT,
    around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> float:
    """Processor time of prepare and convert."""
    backend = get_backend("x86_inductor")
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config(reduce_range=True))
    spent = 0.0

    def run(gm: GraphModule, pipeline: Pipeline) -> GraphModule:
        nonlocal spent
        context = PassContext(quantizer=quantizer, ledger=ledger())
        start = time.process_time()
        with around():
            result = PassManager(tuple(instruments)).run(gm, pipeline, context)
        spent += time.process_time() - start
        return result

    prepared = run(exported, backend.prepare)
    calibrate(prepared, [(x,)], progress=False)
    run(prepared, backend.convert)
    return spent


WITHOUT: dict[str, Callable[[GraphModule, Tensor], float]] = {
    "verifier": partial(seconds, instruments=WITHOUT_VERIFIER),
    "ledger": partial(seconds, ledger=Silent),
    "verifier and ledger": partial(seconds, ledger=Silent, instruments=WITHOUT_VERIFIER),
    "change detection": partial(seconds, around=without_snapshots),
    "all": partial(seconds, ledger=Silent, instruments=(), around=without_snapshots),
}


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
        seconds(exported, x)
        # What disturbs a run only ever makes it longer: of each the shortest counts.
        whole, bare = math.inf, dict.fromkeys(WITHOUT, math.inf)
        for _ in range(rounds):
            whole = min(whole, seconds(exported, x))
            for part, without in WITHOUT.items():
                bare[part] = min(bare[part], without(exported, x))
        costs = {part: whole / least - 1 for part, least in bare.items()}
        worst = max(worst, costs["verifier and ledger"])
        rows.append([name, f"{whole:.2f} s", *(f"{100 * cost:.1f} %" for cost in costs.values())])
    report("Overhead", table(["prepare + convert", "time", *WITHOUT], rows), write=write)
    if worst > ALLOWED:
        raise click.ClickException(f"verifier and ledger cost more than {100 * ALLOWED:.0f} %")


if __name__ == "__main__":
    main()
