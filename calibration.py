"""``calibrate``: show representative data to the observers of a prepared model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from .calibration_faults import observers_of, run_observed
from .errors import CalibrationDataError, GraphInputError, StageError
from .ir.observers import observing
from .ir.stages import Stage, get_stage
from .ir.wording import with_article

__all__ = ["calibrate"]


def calibrate(
    model: GraphModule, data: Iterable[Any], *, steps: int | None = None, progress: bool = True
) -> GraphModule:
    """Run a prepared model on data, without gradients, so that its observers see the ranges of tensors.

    Either all of the data is observed or, on an error, none of it. Fake quantizers observe too, be they in
    training or eval mode, and quantize with what they saw so far; those with a disabled observer or disabled
    fake quantization stay so.

    Args:
        model: a prepared model; its observers are updated.
        data: batches, a data loader for example. A batch is a tensor, a tuple or list whose first entries are
            the model's inputs (labels may follow), or a mapping of the keyword arguments that the model was
            exported with.
        steps: how many batches to take; None takes all.
        progress: show a progress bar on the terminal.

    Returns:
        ``model``.

    Raises:
        StageError: ``model`` is not prepared.
        CalibrationDataError: no batch at all, a batch that does not fit the model, NaN or infinity. It says
            which batch, and which value of it.
    """
    if not isinstance(model, GraphModule):
        raise GraphInputError(
            f"calibrate was handed {with_article(type(model).__name__)}, not a prepared model",
            hint="calibrate what prepare_pt2e returned",
        )
    if get_stage(model) is not Stage.OBSERVED:
        raise StageError(
            f"the model is at stage {get_stage(model).name}: it has no observers to calibrate",
            hint="calibrate what prepare_pt2e returned, before convert_pt2e",
        )
    before = _statistics(model)
    inputs = _inputs(model)
    seen = 0
    try:
        with torch.no_grad(), observing(model), _bar(progress) as bar:
            task = _start(bar, data, steps)
            for batch in islice(data, steps):
                _observe(model, seen, batch, inputs)
                seen += 1
                if bar is not None and task is not None:
                    bar.advance(task)
        if not seen:
            raise CalibrationDataError(
                "there was no batch in the calibration data",
                hint="pass a loader or list with at least one batch; a generator is empty once it was used",
            )
    except BaseException:
        _restore(before)
        raise
    return model


def _bar(progress: bool) -> AbstractContextManager[Progress | None]:
    if not progress:
        return nullcontext()
    # stdout is the user's; and to what is no terminal, a bar that goes away would still write an empty line.
    console = Console(stderr=True)
    return Progress(transient=True, console=console, disable=not (console.is_terminal or console.is_jupyter))


def _start(bar: Progress | None, data: Iterable[Any], steps: int | None) -> TaskID | None:
    if bar is None:
        return None
    try:
        known = len(data)  # pyright: ignore[reportArgumentType]
    except TypeError:  # also from a loader, which has a length only if its data set has one
        known = None
    total = known if steps is None else steps if known is None else min(steps, known)
    return bar.add_task("calibrating", total=total)


def _inputs(model: GraphModule) -> int:
    """The number of arguments of the model: nested ones, of several placeholders, are one each."""
    placeholders = len(model.graph.find_nodes(op="placeholder"))
    # As exported programs have it: what takes nested arguments apart when the model is called.
    spec: Any = getattr(model, "_in_spec", None)
    if spec is None or spec.num_leaves != placeholders:
        return placeholders
    args, kwargs = pytree.tree_unflatten(range(placeholders), spec)
    return len(args) + len(kwargs)


def _arguments(batch: Any, inputs: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model out of a batch."""
    if isinstance(batch, torch.Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        # Without the structure of its inputs, a model has one that is a tuple or list as several.
        alone = len(batch) == 1 and not isinstance(batch[0], torch.Tensor)
        if len(batch) >= inputs or alone:
            return tuple(batch[:inputs]), {}
        raise CalibrationDataError(
            f"the batch has {len(batch)} entries, and the model takes {inputs} inputs",
            hint="yield the inputs first, in the order of forward, then whatever else (labels)",
        )
    raise CalibrationDataError(
        f"the batch is {with_article(type(batch).__name__)}",
        hint="yield tensors, tuples whose first entries are the model's inputs, or dicts of its arguments",
    )


def _observe(model: GraphModule, index: int, batch: Any, inputs: int) -> None:
    try:
        args, kwargs = _arguments(batch, inputs)
        run_observed(model, args, kwargs)
    except CalibrationDataError as error:
        error.batch = index
        error.where = (f"batch {index}", *error.where)
        raise


def _statistics(model: GraphModule) -> list[tuple[torch.nn.Module, dict[str, Any]]]:
    """The observers with a copy of all they know."""
    return [
        (module, {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)})
        for module in observers_of(model)
    ]


def _restore(statistics: list[tuple[torch.nn.Module, dict[str, Any]]]) -> None:
    for module, state in statistics:
        module.load_state_dict(state, strict=False)
