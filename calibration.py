"""``calibrate``: show representative data to the observers of a prepared model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from .errors import CalibrationDataError, GraphInputError, StageError
from .ir.location import locate
from .ir.stages import Stage, get_stage
from .ir.verifiers import is_observer

__all__ = ["calibrate"]


def calibrate(
    model: GraphModule, data: Iterable[Any], *, steps: int | None = None, progress: bool = True
) -> GraphModule:
    """Run a prepared model on data, without gradients, so that its observers see the ranges of tensors.

    Either all of the data is observed or, on an error, none of it.

    Args:
        model: a prepared model; its observers are updated.
        data: batches, a data loader for example. A batch is a tensor, a tuple or list whose first entries are
            the model's inputs (labels may follow), or a mapping of keyword arguments.
        steps: how many batches to take; None takes all.
        progress: show a progress bar on the terminal.

    Returns:
        ``model``.

    Raises:
        StageError: ``model`` is not prepared.
        CalibrationDataError: no batch at all, a batch that does not fit the model, NaN or infinity.
    """
    if not isinstance(model, GraphModule):
        raise GraphInputError(
            f"calibrate was handed a {type(model).__name__}, not a prepared model",
            hint="calibrate what prepare_pt2e returned",
        )
    if get_stage(model) is not Stage.OBSERVED:
        raise StageError(
            f"the model is at stage {get_stage(model).name}: it has no observers to calibrate",
            hint="calibrate what prepare_pt2e returned, before convert_pt2e",
        )
    before = _statistics(model)
    inputs = len(model.graph.find_nodes(op="placeholder"))
    seen = 0
    try:
        with torch.no_grad(), _bar(progress) as bar:
            task = _start(bar, data, steps)
            for index, batch in enumerate(data):
                if steps is not None and index >= steps:
                    break
                _observe(model, index, *_arguments(batch, inputs, index))
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
    return Progress(transient=True) if progress else nullcontext()


def _start(bar: Progress | None, data: Iterable[Any], steps: int | None) -> TaskID | None:
    if bar is None:
        return None
    known = len(data) if hasattr(data, "__len__") else None  # pyright: ignore[reportArgumentType]
    total = known if steps is None else steps if known is None else min(steps, known)
    return bar.add_task("calibrating", total=total)


def _arguments(batch: Any, inputs: int, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model out of a batch."""
    if isinstance(batch, torch.Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        # An input that is itself a tuple or list has several placeholders, and then stands alone in the
        # batch.
        if len(batch) >= inputs or len(batch) == 1:
            return tuple(batch[:inputs]), {}
        raise CalibrationDataError(
            f"batch {index} has {len(batch)} entries, and the model takes {inputs} inputs",
            hint="yield the inputs first, in the order of forward, then whatever else (labels)",
        )
    raise CalibrationDataError(
        f"batch {index} is a {type(batch).__name__}",
        hint="yield tensors, tuples whose first entries are the model's inputs, or dicts of its arguments",
    )


def _observe(model: GraphModule, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        model(*args, **kwargs)
    except CalibrationDataError as error:
        node = _failing_node(model, args, kwargs)
        error.where = (f"batch {index}", *error.where, *(locate(node) if node is not None else ()))
        raise


class _Locator(Interpreter):
    """Runs the graph node by node and remembers where it is."""

    at: Node | None = None

    def run_node(self, n: Node) -> Any:
        self.at = n
        return super().run_node(n)


def _failing_node(model: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node | None:
    """The operator whose result the failing observer refused. Runs the batch once more, node by node."""
    locator = _Locator(model)
    flat = pytree.tree_leaves((args, kwargs))
    try:
        locator.run(*flat, enable_io_processing=False)
    except CalibrationDataError:
        if locator.at is not None and locator.at.op == "call_module":
            source = locator.at.args[0]
            return source if isinstance(source, Node) else locator.at
    return None


def _statistics(model: GraphModule) -> list[tuple[torch.nn.Module, dict[str, Any]]]:
    """The observers with a copy of all they know."""
    return [
        (module, {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)})
        for module in model.modules()
        if is_observer(module)
    ]


def _restore(statistics: list[tuple[torch.nn.Module, dict[str, Any]]]) -> None:
    for module, state in statistics:
        module.load_state_dict(state, strict=False)
