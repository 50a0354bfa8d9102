"""``check(pass_)``: the laws, on generated graphs, and the smallest graph that breaks one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import attrs
from torch.fx import GraphModule

from ...backends.base import Backend
from ...errors import LowbitError
from ...ir.ledger import Ledger
from ...ir.quantizer import Quantizer
from ...ir.stages import Stage
from ...passes import Pass, PassContext, PassManager, Pipeline
from ...passes.instruments import Change
from .definitions import COSTLY, LAWS, Law, LawBroken, Run
from .generate import draw_subject
from .shrink import smallest
from .subjects import BROKEN, Subject, bring, place_of

__all__ = ["COSTLY", "LAWS", "Law", "LawBroken", "Run", "check", "check_on"]


@attrs.define(eq=False)
class _Recorded:
    """A pass, and what it said and changed when it ran: an instrument and a pass in one."""

    pass_: Pass
    said: bool = False
    change: Change | None = None

    @property
    def name(self) -> str:
        return self.pass_.name

    @property
    def requires(self) -> Any:
        return self.pass_.requires

    @property
    def ensures(self) -> Any:
        return self.pass_.ensures

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        self.said = self.pass_.run(gm, context)
        return self.said

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        pass

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        # Its text is asked for later, when ``gm`` has gone further.
        _ = change.before.digest, change.after.digest
        self.change = change


def _run(
    pass_: Pass,
    gm: GraphModule,
    told: Ledger,
    subject: Subject,
    *,
    backend: Backend | None,
    quantizer: Quantizer | None,
) -> Run:
    recorded = _Recorded(pass_)
    context = subject.context(backend, quantizer)
    after = PassManager((recorded,)).run(gm, Pipeline((recorded,)), context)  # pyright: ignore
    assert recorded.change is not None
    return Run(
        pass_,
        gm,
        after,
        recorded.said,
        recorded.change,
        subject.inputs,
        context,
        told,
        lambda other: _run(pass_, other, told, subject, backend=backend, quantizer=quantizer),
    )


def check_on(
    subject: Subject,
    pass_: Pass,
    *,
    laws: Iterable[Law] = LAWS,
    backend: Backend | None = None,
    quantizer: Quantizer | None = None,
    stage: Stage | None = None,
) -> bool:
    """Check the laws for ``pass_`` on one graph; False where a pass refuses the graph, for a reason it gives.

    Raises:
        LawBroken: one that does not hold; it shows the graph and the code that makes it again.
    """
    program = subject.program
    place = place_of(pass_, is_training=program.is_training, backend=backend, stage=stage, turn=program.seed)
    try:
        gm, told = bring(subject, place, backend, quantizer)
    except LowbitError:
        return False
    name = "no-crash"
    try:
        run = _run(pass_, gm, told, subject, backend=backend, quantizer=quantizer)
        for law in laws:
            name = law.__name__.replace("_", "-")
            law(run)
    except Exception as error:
        if isinstance(error, LowbitError) and not isinstance(error, BROKEN):
            return False
        text = str(error) if isinstance(error, LawBroken) else f"{type(error).__name__}: {error}"
        raise LawBroken(_report(pass_, name, text, subject, gm), law=name) from error
    return True


def _report(pass_: Pass, law: str, text: str, subject: Subject, gm: GraphModule) -> str:
    graph = "\n".join(f"    {line}" for line in str(gm.graph).strip().splitlines())
    return (
        f"{pass_.name} breaks the law {law}: {text}\n\n"
        f"on the graph\n{graph}\n\n"
        f"which is\n    check_on({subject!r}, {pass_!r})"
    )


def check(
    pass_: Pass,
    *,
    examples: int = 500,
    laws: Iterable[Law] = LAWS,
    is_training: bool = False,
    backend: Backend | None = None,
    quantizer: Quantizer | None = None,
    stage: Stage | None = None,
    max_steps: int = 5,
    seed: int = 0,
    shrinks: bool = True,
) -> None:
    """Check the laws for ``pass_`` on generated graphs.

    ::

        laws.check(MyPass())

    Graphs are brought to where the pass runs: right before it in the flow, for one of lowbit's own; for
    others to the first stage they run at, canonical, or to ``stage``. Those that a pass refuses count for
    nothing.

    Args:
        pass_: the pass.
        examples: how many graphs. A float graph takes about 10 ms, one that is quantized up to 60.
        laws: which laws.
        is_training: graphs in training, quantized for quantization-aware training.
        backend: whose patterns a pass that lowers is given.
        quantizer: who annotates; annotations are drawn at random if it is None.
        stage: of the graphs, for a pass that runs at several; not every pass has run on them that might have.
        max_steps: the most operators of a graph.
        seed: other graphs for another number, the same for the same one.
        shrinks: look for the smallest graph; the first that is found if not.

    Raises:
        LawBroken: a law does not hold, with the smallest graph found that shows it.
    """
    checks = functools.partial(
        check_on, pass_=pass_, laws=tuple(laws), backend=backend, quantizer=quantizer, stage=stage
    )
    tried = accepted = 0
    while accepted < examples and tried < 3 * examples:
        subject = draw_subject(Random(f"{seed} {tried}"), max_steps=max_steps, is_training=is_training)
        tried += 1
        try:
            accepted += checks(subject)
        except LawBroken as broken:
            if not shrinks:
                raise
            checks(smallest(subject, lambda simpler, law=broken.law: _breaks(law, simpler, checks)))
            raise


def _breaks(law: str, subject: Subject, checks: Callable[[Subject], bool]) -> bool:
    """Whether ``law`` does not hold on ``subject``."""
    try:
        checks(subject)
    except LawBroken as broken:
        return broken.law == law
    return False
