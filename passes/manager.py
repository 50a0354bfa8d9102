"""The pass manager: runs a pipeline on a copy of a graph, or not at all."""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Generator, Iterator

import attrs
from torch.fx import GraphModule

from ..errors import GraphInputError, LowbitError, PassFailedError, StageError
from ..ir.attributes import nested_graph_modules
from ..ir.bodies import opened_bodies
from ..ir.clone import clone_graph_module
from ..ir.close_bodies import close_bodies
from ..ir.open_bodies import open_bodies
from ..ir.provenance import identify_new_nodes, identify_nodes
from ..ir.snapshot import Snapshot, take_snapshot, written_attributes
from ..ir.stages import get_stage, set_stage
from ..ir.wording import with_article
from .base import Pass, PassContext
from .instruments.base import Change, FailureInstrument, Instrument
from .instruments.trace_changes import TraceChanges
from .instruments.verify import Verify
from .pipeline import Pipeline, format_pass

__all__ = ["PassManager"]

_log = logging.getLogger("lowbit.passes")


def _default_instruments() -> tuple[Instrument, ...]:
    return (Verify(), TraceChanges())


@attrs.frozen
class PassManager:
    """Runs pipelines.

    Args:
        instruments: what looks on, in the order they are called. The default verifies the graph's stage after
            every pass, and writes its changes to torch's structured trace, if there is one.
    """

    instruments: tuple[Instrument, ...] = attrs.field(factory=_default_instruments, converter=tuple)

    def run(self, gm: GraphModule, pipeline: Pipeline, context: PassContext | None = None) -> GraphModule:
        """Run ``pipeline`` on a copy of ``gm`` and return the copy.

        The copy shares its tensors with ``gm``; ``gm`` itself is never changed, also when a pass fails. Code
        is generated once, at the end.

        A pass that says ``bodies = True`` is run on each body of ``cond``, ``while_loop``, ``scan`` and
        ``map`` as if that were a model, and then on the model (:mod:`lowbit.ir.bodies`).

        Raises:
            GraphInputError: ``gm`` is not a graph module.
            StageError: ``gm`` is not at a stage the first pass runs at, or a pass broke the stage's rules.
            PassFailedError: a pass raised an error of its own, changed the graph and said it did not, or
                wrote into a tensor of the caller's.
            LowbitError: what a pass raised. The name of the pass is filled in, here and above.
        """
        if not isinstance(gm, GraphModule):
            raise GraphInputError(
                f"a pipeline was run on {with_article(type(gm).__name__)}, not on a graph module",
                hint="export the model first: torch.export.export(model.eval(), example_inputs).module()",
            )
        context = context or PassContext()
        with _paused_garbage_collection():
            return self._run(gm, pipeline, context)

    def _run(self, gm: GraphModule, pipeline: Pipeline, context: PassContext) -> GraphModule:
        work = clone_graph_module(gm)
        snapshot = take_snapshot(work)
        identify_nodes(work, snapshot)
        run = _Run(self.instruments)
        for index, pass_ in enumerate(pipeline):
            try:
                snapshot = run.step(work, index, pass_, context, snapshot)
            except Exception as error:
                if isinstance(error, LowbitError):
                    error.pass_name = error.pass_name or pass_.name
                for instrument in self.instruments:
                    if isinstance(instrument, FailureInstrument):
                        instrument.failed(pass_, context, error, run.looking_on)
                raise
        close_bodies(work)
        _recompile(work)
        return work


@attrs.define
class _Run:
    """One run of a pipeline. It knows whose turn it is: ``looking_on`` is None while the pass runs."""

    instruments: tuple[Instrument, ...]
    looking_on: Instrument | None = None

    def each_instrument(self) -> Iterator[Instrument]:
        for instrument in self.instruments:
            self.looking_on = instrument
            yield instrument
        self.looking_on = None

    def step(
        self, work: GraphModule, index: int, pass_: Pass, context: PassContext, before: Snapshot
    ) -> Snapshot:
        _check_stage(work, pass_)
        for instrument in self.each_instrument():
            instrument.before(pass_, work)
        started = time.perf_counter()
        said_changed = _run_with_bodies(work, pass_, context)
        seconds = time.perf_counter() - started
        if pass_.ensures is not None:
            set_stage(work, pass_.ensures)
            for body in opened_bodies(work):
                set_stage(body.module, pass_.ensures)
        after = take_snapshot(work)
        identify_new_nodes(work, before, after, pass_.name)
        change = Change(index=index, before=before, after=after, seconds=seconds)
        _check_report(change, said_changed)
        _log.debug("%s: %.1f ms, changed: %s", format_pass(pass_), seconds * 1e3, change.changed)
        for instrument in self.each_instrument():
            instrument.after(pass_, work, change)
        return change.after


@contextlib.contextmanager
def _paused_garbage_collection() -> Generator[None]:
    """Graphs are many long-lived objects, which the collector would scan again and again as they are made.

    Measured at 800 linears: a fifth of the time of prepare and convert.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_stage(gm: GraphModule, pass_: Pass) -> None:
    stage = get_stage(gm)
    if stage not in pass_.requires:
        wanted = " or ".join(s.name for s in type(stage) if s in pass_.requires)
        raise StageError(
            f"the pass runs at stage {wanted}, and the graph is at {stage.name}",
            hint="prepare_pt2e takes a FLOAT graph to OBSERVED, convert_pt2e to QDQ, lower_pt2e to LOWERED; "
            "lowbit passes lists the stages of each pass",
        )


def _run_with_bodies(gm: GraphModule, pass_: Pass, context: PassContext) -> bool:
    changed = False
    if getattr(pass_, "bodies", False):
        changed = open_bodies(gm)
        for body in opened_bodies(gm):
            inside = attrs.evolve(context, ledger=context.ledger.inside(body.name, body.callers))
            changed |= _run_pass(body.module, pass_, inside)
    return _run_pass(gm, pass_, context) or changed


def _run_pass(gm: GraphModule, pass_: Pass, context: PassContext) -> bool:
    try:
        said_changed = pass_.run(gm, context)
    except (LowbitError, Warning):
        # A warning is raised where the user made errors of them, and is to arrive as what it is.
        raise
    except Exception as error:
        raise PassFailedError(
            f"the pass raised {type(error).__name__}: {error}",
            hint="the model handed in is unchanged; the traceback above shows where the pass failed",
        ) from error
    # bool is the whole report: None would read as "unchanged" and hide a forgotten return.
    if not isinstance(said_changed, bool):
        raise PassFailedError(
            f"the pass returned {said_changed!r} from run",
            hint="return True when anything changed and False when not",
        )
    return said_changed


def _check_report(change: Change, said_changed: bool) -> None:
    if change.changed and not said_changed:
        raise PassFailedError(
            f"the pass said that it changed nothing, but it did: {change.diff.stat}",
            where=tuple(change.diff.lines[:5]),
            hint="return True from run when the graph, an annotation or an attribute changed",
        )
    written = tuple(written_attributes(change.before, change.after))
    if written:
        raise PassFailedError(
            f"the pass wrote into {', '.join(written[:5])}: tensors that belong to the caller's model too",
            hint="put a new tensor in its place (lowbit.ir.attributes.set_tensor); the model handed in has "
            "the written values",
        )


def _recompile(gm: GraphModule) -> None:
    modules = (gm, *nested_graph_modules(gm))
    # GraphModule.recompile goes on to the graph modules that are children of its own.
    reached = {id(child) for module in modules for child in module.children()}
    for module in modules:
        if id(module) not in reached:
            module.recompile()
