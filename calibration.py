"""``calibrate``: show representative data to the observers of a prepared model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from .errors import CalibrationDataError, GraphInputError, StageError
from .ir.attributes import nested_graph_modules
from .ir.location import locate
from .ir.observers import observing
from .ir.stages import Stage, get_stage
from .ir.verifiers import is_observer

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
    inputs = _inputs(model)
    seen = 0
    try:
        with torch.no_grad(), observing(model), _bar(progress) as bar:
            task = _start(bar, data, steps)
            for batch in islice(data, steps):
                _observe(model, seen, *_arguments(batch, inputs, seen))
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


def _arguments(batch: Any, inputs: int, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
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
        node = _refusing_node(model, args, kwargs)
        error.where = (f"batch {index}", *error.where, *(locate(node) if node is not None else ()))
        raise
    # What the input checks of torch.export and the operators raise at tensors that do not fit.
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise CalibrationDataError(
            f"the model does not run on batch {index}: {type(error).__name__}: {error}",
            hint=_how_to_fit(model, error, args, kwargs),
        ) from error


def _how_to_fit(model: GraphModule, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What to do about a batch that the model does not run on: what is usual first."""
    inputs = {str(node.target): node.meta.get("val") for node in model.graph.find_nodes(op="placeholder")}
    given = {**dict(zip(inputs, args, strict=False)), **kwargs}
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    for name, value in tensors.items():
        wanted = inputs.get(name)
        if isinstance(wanted, torch.Tensor) and value.ndim == wanted.ndim - 1:
            return (
                f"{name} has {value.ndim} axes and the model takes {wanted.ndim}: if it is one sample, give "
                f"it an axis of samples, {name}.unsqueeze(0)"
            )
    indices = {n: t for n, t in tensors.items() if t.dtype in (torch.int32, torch.int64) and t.numel()}
    if isinstance(error, IndexError) and indices:
        have = ", ".join(f"{name} has {t.min().item()} to {t.max().item()}" for name, t in indices.items())
        rows = {call.args[0].meta["val"].shape[0] for call in _embeddings(model)}
        takes = f"; embeddings of the model have {', '.join(map(str, sorted(rows)))} rows" if rows else ""
        return f"look for values that are out of range, token ids say: {have}{takes}"
    return "yield what the model was exported with: the same arguments, of shapes and dtypes it allows"


def _embeddings(model: GraphModule) -> list[Any]:
    """The look-ups whose table has a known size."""
    found: Any = model.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default)
    tables = ((call, call.args[0].meta.get("val")) for call in found)
    return [call for call, table in tables if isinstance(table, torch.Tensor)]


def _refusing_node(model: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node | None:
    """The operator whose result an observer of ``model`` refuses. Runs the batch once more."""
    called: list[torch.nn.Module] = []

    def note(observer: torch.nn.Module, _: Any) -> None:
        called.append(observer)

    hooks = [observer.register_forward_pre_hook(note) for observer in _observers(model)]
    try:
        model(*args, **kwargs)
    except CalibrationDataError:
        refusing = called[-1]
        for owner in (model, *nested_graph_modules(model)):
            calls = owner.graph.find_nodes(op="call_module")
            at = [node for node in calls if owner.get_submodule(node.target) is refusing]
            if at:
                # An observer that several points share is called at each, in graph order; in a loop, again.
                return at[(called.count(refusing) - 1) % len(at)].all_input_nodes[0]
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _observers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The observers and fake quantizers; the observer inside a fake quantizer is part of that."""
    observers = [module for module in model.modules() if is_observer(module)]
    inner = {id(module) for observer in observers for module in observer.modules() if module is not observer}
    return [observer for observer in observers if id(observer) not in inner]


def _statistics(model: GraphModule) -> list[tuple[torch.nn.Module, dict[str, Any]]]:
    """The observers with a copy of all they know."""
    return [
        (module, {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)})
        for module in _observers(model)
    ]


def _restore(statistics: list[tuple[torch.nn.Module, dict[str, Any]]]) -> None:
    for module, state in statistics:
        module.load_state_dict(state, strict=False)
