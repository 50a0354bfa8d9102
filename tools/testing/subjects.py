"""What a pass is tried on: a generated graph, brought to where the pass runs in a flow."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import torch
from torch.fx import GraphModule

from ...backends.base import Backend
from ...backends.pipelines import CONVERT, PREPARE, PREPARE_QAT
from ...errors import PassFailedError, StageError
from ...ir.ledger import Ledger
from ...ir.quantizer import Quantizer
from ...ir.stages import Stage, get_stage
from ...passes import (
    Pass,
    PassContext,
    PassManager,
    Pipeline,
    PropagateMetadata,
    ReferenceRepresentation,
)
from .programs import Program, build, example_inputs
from .quantizing import Choices, DrawnQuantizer

__all__ = ["BROKEN", "Subject", "bring", "forget", "place_of"]

BROKEN = (PassFailedError, StageError)
"""Errors that a pass does not raise of its own accord: it broke, or left a broken graph."""


@attrs.frozen
class Subject:
    """A generated graph and how it is quantized.

    Args:
        program: the float graph.
        choices: the annotations of its operators, in turn.
    """

    program: Program = attrs.field(factory=Program)
    choices: tuple[Choices, ...] = attrs.field(default=(), converter=tuple)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Inputs of the graph."""
        return example_inputs(self.program)

    def context(self, backend: Backend | None = None, quantizer: Quantizer | None = None) -> PassContext:
        """What passes need besides the graph."""
        quantizer = quantizer or DrawnQuantizer(self.choices, is_qat=self.program.is_training)
        return PassContext(quantizer=quantizer, patterns=() if backend is None else backend.patterns)


def _flow(is_training: bool, backend: Backend | None) -> tuple[Pass, ...]:
    prepare = PREPARE_QAT if is_training else PREPARE
    lower = () if backend is None or backend.lower is None else backend.lower.passes
    return (*prepare, *CONVERT, *(lower or (ReferenceRepresentation(),)))


def place_of(
    pass_: Pass, *, is_training: bool, backend: Backend | None, stage: Stage | None = None, turn: int = 0
) -> tuple[Pass, ...]:
    """The passes that run before ``pass_``.

    Those before it in the flow of post-training quantization (or of training); for a pass that is in neither,
    those that first bring a normalized graph to a stage it runs at. With ``stage``, all that run until then,
    or in other turns all but one of those that a graph of that stage can do without.
    """
    passes = _flow(is_training, backend)
    names = [p.name for p in passes]
    if pass_.name in names and stage is None:
        return passes[: names.index(pass_.name)]
    reached = [Stage.FLOAT]
    for each in passes:
        reached.append(each.ensures or reached[-1])
    for index, now in enumerate(reached[1:], 1):
        if now in pass_.requires and stage is None:
            return passes[:index]
        if now is stage and stage in pass_.requires and now not in reached[index + 1 :]:
            return _without_one(passes[:index], turn)
    wanted = ", ".join(sorted(s.name for s in pass_.requires)) if stage is None else stage.name
    raise StageError(
        f"no graph can be generated for the pass {pass_.name}: it is to run at {wanted}",
        hint="lowered graphs need a backend: check(pass_, backend=get_backend(…))",
    )


def _without_one(passes: tuple[Pass, ...], turn: int) -> tuple[Pass, ...]:
    """``passes``, in most turns without one of those that run after the last change of the stage."""
    start = max(index for index, each in enumerate(passes) if each.ensures is not None)
    # Every pass may read what tensors are.
    optional = [None, *(each for each in passes[start + 1 :] if each.name != PropagateMetadata.name)]
    left_out = optional[turn % len(optional)]
    return tuple(each for each in passes if each is not left_out)


def bring(
    subject: Subject,
    passes: tuple[Pass, ...],
    backend: Backend | None = None,
    quantizer: Quantizer | None = None,
) -> tuple[GraphModule, Ledger]:
    """The graph of ``subject`` behind ``passes``, calibrated when it is prepared, and what they said of it.

    Neither is to be changed.

    Raises:
        LowbitError: what a pass raised.
    """
    gm, context = _brought(subject, passes, backend, quantizer)
    return gm, context.ledger


@functools.lru_cache(maxsize=4096)
def _brought(
    subject: Subject, passes: tuple[Pass, ...], backend: Backend | None, quantizer: Quantizer | None
) -> tuple[GraphModule, PassContext]:
    """One pass on top of those before, which are known where the pass before was tried on the same graph."""
    if not passes:
        return build(subject.program), subject.context(backend, quantizer)
    gm, before = _brought(subject, passes[:-1], backend, quantizer)
    context = attrs.evolve(before, ledger=before.ledger.copy())
    gm = PassManager(()).run(gm, Pipeline(passes[-1:]), context)
    if passes[-1].ensures is Stage.OBSERVED:
        calibrate(gm, subject)
    return gm, context


def forget() -> None:
    """Forget all graphs: the passes are others now."""
    _brought.cache_clear()


def calibrate(gm: GraphModule, subject: Subject) -> None:
    """Show a prepared graph two batches."""
    assert get_stage(gm) is Stage.OBSERVED
    # With gradients torch refuses writes into one of several views of a tensor.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.program.seed)  # for dropouts
        for index in range(2):
            gm(*example_inputs(subject.program, index))
