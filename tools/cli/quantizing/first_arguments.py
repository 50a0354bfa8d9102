"""What a model is exported with if no inputs came with it: the first batch of calibration data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .calibration_data import FirstBatch
from .model_inputs import described, dtype_text, missing_input, no_batch
from .named_object import code_of

__all__ = ["Arguments", "arguments_of", "run_on_data"]

Arguments: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"
"""Positional and keyword arguments of a model."""


def arguments_of(model: nn.Module, first: FirstBatch, name: str) -> tuple[Arguments, str]:
    """Arguments out of a batch, and a note on those that were left out, or "".

    Args:
        model: the model.
        first: the batch.
        name: what the model is called in messages.

    Raises:
        CalibrationDataError: the batch has none for ``forward``.
    """
    forward, batch = inspect.signature(model.forward), first.batch
    if isinstance(batch, Mapping):
        return _by_name(forward, dict(batch), first.name), ""
    values = (batch,) if isinstance(batch, Tensor) else batch
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise no_batch(batch, first.name)
    parameters = forward.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = max(sum(p.default is p.empty for p in positional), 1)
    # What follows the inputs in a batch is labels.
    left_out = [p.name for p in positional[needed : len(values)]]
    note = _note(left_out, len(values) - needed, name) if left_out else ""
    return (tuple(values[:needed]), {}), note


def run_on_data(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], first: FirstBatch, name: str
) -> None:
    """Run the model on its arguments out of ``first``, to see that it does: what it raises is told as it is.

    Raises:
        Exception: what the model raised, which may be the fault of the model or of the data; the note on it
            has both.
    """
    forward = inspect.signature(model.forward)
    given = {**dict(zip(forward.parameters, args, strict=False)), **kwargs}
    tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    theirs = code_of(
        f"the model of {name} at the first batch of the calibration data",
        where=(first.name, *(f"{key}, which is {described(value)}" for key, value in tensors.items())),
        hint=f"{_how_to_fit(model, tensors)}; if the data are right, the mistake is in the model",
    )
    with torch.no_grad(), theirs:
        model(*args, **kwargs)


def _how_to_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    for name, tensor in tensors.items():
        if weight is not None and tensor.is_floating_point() and tensor.dtype != weight.dtype:
            wanted = dtype_text(weight)
            return f"convert {name}, as what runs the model later does, to {wanted}, the dtype of the weights"
    return f"give data of the shapes and dtypes that forward{inspect.signature(model.forward)} works on"


def _by_name(forward: inspect.Signature, batch: dict[str, Any], where: str) -> Arguments:
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = {name: p for name, p in forward.parameters.items() if p.kind not in several}
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if len(batch) == 1 >= len(needed) and batch.keys().isdisjoint(parameters):
        return tuple(batch.values()), {}  # one array for the one input needs no name
    missing = [name for name in needed if name not in batch]
    if missing:
        raise missing_input(missing, batch, [key for key in batch if key not in parameters], where)
    taken = {name: value for name, value in batch.items() if name in parameters}
    first = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_ONLY and name in taken]
    args = [taken.pop(name) for name in first]
    bound = forward.bind(*args, **taken)
    return bound.args, bound.kwargs


def _note(left_out: Sequence[str], entries: int, name: str) -> str:
    what = "the last entry" if entries == 1 else f"the last {entries} entries"
    return (
        f"{what} of a batch was taken for labels, so {name} was exported without {', '.join(left_out)}, for "
        "which forward has a default. To pass them: name them in a dict of arrays, or return (module, inputs)"
    )
