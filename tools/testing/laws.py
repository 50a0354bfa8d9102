"""``check(pass_)``: the laws, on generated graphs, and the smallest graph that breaks one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from hypothesis import HealthCheck, Phase, assume, given, settings
from torch.fx import GraphModule

from ...backends.base import Backend
from ...errors import LowbitError
from ...passes import Pass, PassContext, PassManager, Pipeline
from ...passes.instruments import Change
from .definitions import LAWS, Law, LawBroken, Run
from .strategies import subjects
from .subjects import BROKEN, Subject, bring, place_of

__all__ = ["LAWS", "Law", "LawBroken", "Run", "check", "check_on"]


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


def _run(pass_: Pass, gm: GraphModule, subject: Subject, backend: Backend | None) -> Run:
    recorded = _Recorded(pass_)
    after = PassManager((recorded,)).run(gm, Pipeline((recorded,)), subject.context(backend))  # pyright: ignore
    assert recorded.change is not None
    return Run(
        pass_,
        gm,
        after,
        recorded.said,
        recorded.change,
        subject.inputs,
        lambda other: _run(pass_, other, subject, backend),
    )


def check_on(
    subject: Subject, pass_: Pass, *, laws: Iterable[Law] = LAWS, backend: Backend | None = None
) -> bool:
    """Check the laws for ``pass_`` on one graph; False where a pass refuses the graph, for a reason it gives.

    Raises:
        LawBroken: one that does not hold; it shows the graph and the code that makes it again.
    """
    place = place_of(pass_, is_training=subject.program.is_training, backend=backend)
    try:
        gm = bring(subject, place, backend)
    except LowbitError:
        return False
    law: Law | None = None
    try:
        run = _run(pass_, gm, subject, backend)
        for law in laws:
            law(run)
    except LowbitError as error:
        if not isinstance(error, BROKEN):
            return False
        raise LawBroken(_report(pass_, "no-crash", str(error), subject, gm)) from error
    except LawBroken as error:
        name = "" if law is None else law.__name__.replace("_", "-")
        raise LawBroken(_report(pass_, name, str(error), subject, gm)) from error
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
    examples: int = 200,
    laws: Iterable[Law] = LAWS,
    is_training: bool = False,
    backend: Backend | None = None,
    max_steps: int = 6,
    new_ones: bool = False,
) -> None:
    """Check the laws for ``pass_`` on generated graphs.

    ::

        laws.check(MyPass())

    Graphs are brought to where the pass runs: right before it in the flow, for one of lowbit's own; for
    others to the first stage they run at, canonical.

    Args:
        pass_: the pass.
        examples: how many graphs.
        laws: which laws.
        is_training: graphs in training, quantized for quantization-aware training.
        backend: whose patterns a pass that lowers is given.
        max_steps: the most operators of a graph.
        new_ones: other graphs in every run; the same in every run if not.

    Raises:
        LawBroken: a law does not hold, with the smallest graph found that shows it.
    """
    chosen = tuple(laws)

    @settings(
        max_examples=examples,
        derandomize=not new_ones,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    @given(subjects(max_steps, is_training=is_training))
    def holds(subject: Subject) -> None:
        assume(check_on(subject, pass_, laws=chosen, backend=backend))

    holds()
