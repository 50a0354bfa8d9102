"""What is bisected: the steps that a model goes through, and the model after each."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import attrs
from torch.fx import GraphModule

from ...backends.base import Backend
from ...backends.pipelines import CONVERT, PREPARE
from ...backends.registry import get_backend
from ...calibration import calibrate
from ...errors import GraphInputError
from ...ir.attributes import nested_graph_modules
from ...ir.clone import clone_graph_module
from ...ir.ledger import Ledger
from ...ir.meta import BACKEND_KEY, LEDGER_KEY
from ...ir.quantizer import Quantizer
from ...ir.stages import Stage, get_stage
from ...ir.verifiers import is_observer
from ...matchers.operator_pattern import OperatorPattern
from ...passes import Pass, PassContext, PassManager, Pipeline
from ...passes.instruments import Applications, Instrument, Verify

__all__ = ["Calibration", "Passes", "State", "Step", "run_copy", "run_pass", "states", "verb_steps"]


@attrs.frozen
class Passes:
    """A step that runs passes.

    Args:
        pipeline: the passes.
        quantizer: who annotates.
        patterns: what the backend can run, for passes that lower; those of ``backend`` if left out.
        backend: its name.

    Raises:
        UnknownNameError: there are no patterns, and no backend of that name.
    """

    pipeline: Pipeline
    quantizer: Quantizer | None = None
    patterns: tuple[OperatorPattern, ...] = ()
    backend: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.backend is not None and not self.patterns:
            object.__setattr__(self, "patterns", get_backend(self.backend).patterns)


@attrs.frozen
class Calibration:
    """A step that shows data to the observers.

    Args:
        data: batches, as :func:`lowbit.calibrate` takes them. They are gone through once.
    """

    data: Iterable[Any]


Step: TypeAlias = Passes | Calibration


@attrs.frozen(eq=False)
class State:
    """A model between two passes.

    Args:
        gm: the graph; None where what should have led here raised. It is shared: run a :func:`run_copy`.
        error: what was raised.
        ledger: the decisions so far.
        pass_: the pass that led here; None for calibration, and for the model handed in.
        step: the step it was of.
        seen: the rule applications of the pass, up to where it raised.
    """

    gm: GraphModule | None
    error: Exception | None = None
    ledger: Ledger = attrs.Factory(Ledger)
    pass_: Pass | None = None
    step: Step | None = None
    seen: Applications = attrs.Factory(Applications)


def verb_steps(
    model: GraphModule,
    *,
    quantizer: Quantizer | None = None,
    data: Iterable[Any] | None = None,
    backend: str | Backend | None = None,
    pack_weights: bool = True,
) -> tuple[Step, ...]:
    """What the verbs would do with ``model`` from where it stands: prepare, calibrate, convert, lower.

    Args:
        model: float, prepared (and trained, then in evaluation mode) or converted.
        quantizer: who annotates a float model.
        data: what a float model is calibrated with.
        backend: what is lowered to; None means the quantizer's, or the one that prepared the model. Nothing
            is lowered where there is none, or where another program takes converted models.
        pack_weights: as of :func:`lowbit.lower_pt2e`; packed models cannot be saved for a script.

    Raises:
        GraphInputError: a float model without ``quantizer`` and ``data``, or a model that is lowered.
        UnknownNameError: there is no such backend.
    """
    stage = get_stage(model)
    name = backend or getattr(quantizer, "backend_name", None) or model.meta.get(BACKEND_KEY)
    chosen = get_backend(name) if isinstance(name, str) else name
    steps: list[Step] = []
    if stage is Stage.FLOAT:
        if quantizer is None or data is None:
            raise GraphInputError(
                "a float model was to be bisected without a quantizer and calibration data",
                hint="pass quantizer=… and data=…, or a prepared or converted model",
            )
        steps += [Passes(PREPARE if chosen is None else chosen.prepare, quantizer), Calibration(data)]
    if stage in (Stage.FLOAT, Stage.OBSERVED):
        steps.append(Passes(CONVERT if chosen is None else chosen.convert))
    elif stage is not Stage.QDQ:
        raise GraphInputError(
            f"the model is at stage {stage.name}, where no verb takes it on",
            hint="hand in the model as it was before: float, prepared or converted",
        )
    if chosen is not None and chosen.lower is not None:
        lower = chosen.lower
        if not pack_weights and "pack-weights" in lower.names:
            lower = lower.without("pack-weights")
        steps.append(Passes(lower, patterns=chosen.patterns, backend=chosen.name))
    return tuple(steps)


def states(model: GraphModule, steps: Iterable[Step]) -> Iterator[State]:
    """``model``, and what it is after each pass and calibration, up to the first that raises."""
    ledger: Ledger | None = model.meta.get(LEDGER_KEY)
    state = State(model, ledger=Ledger() if ledger is None else ledger)
    yield state
    for step in steps:
        for pass_ in step.pipeline if isinstance(step, Passes) else (None,):
            assert state.gm is not None
            seen = Applications()
            ledger = state.ledger
            try:
                if isinstance(step, Calibration):
                    gm = calibrate(run_copy(state.gm), step.data)
                else:
                    assert pass_ is not None
                    context = context_of(step, ledger, seen)
                    ledger = context.ledger
                    gm = run_pass(state.gm, pass_, context, (Verify(), seen))
            except Exception as error:  # noqa: BLE001  (kept, for whoever asks which pass it was)
                yield State(None, error, ledger, pass_, step, seen)
                return
            state = State(gm, None, ledger, pass_, step, seen)
            yield state


def context_of(step: Passes, ledger: Ledger, seen: Applications) -> PassContext:
    """The context of a pass of ``step``, which asks ``seen``; it writes into a copy of ``ledger``."""
    return PassContext(
        quantizer=step.quantizer,
        ledger=ledger.copy(),
        patterns=step.patterns,
        gate=seen.allows,
        backend=step.backend,
    )


def run_pass(
    gm: GraphModule, pass_: Pass, context: PassContext, instruments: tuple[Instrument, ...]
) -> GraphModule:
    """``gm`` after one pass; ``gm`` is not changed."""
    return PassManager(instruments).run(gm, Pipeline((pass_,)), context)


def run_copy(gm: GraphModule) -> GraphModule:
    """A copy of ``gm`` to be run: what observers see, and what the graph writes, stays with the copy."""
    new = clone_graph_module(gm)
    memo: dict[int, Any] = {}
    for module in (new, *nested_graph_modules(new)):
        for name, child in list(module.named_children()):
            if is_observer(child):
                module.add_module(name, copy.deepcopy(child, memo))
    new.recompile()
    return new
