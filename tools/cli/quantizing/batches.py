"""Calibration data as batches for a model: cut, named and converted for its inputs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, TypeAlias

import attrs
import torch
from torch import Tensor

from ....errors import CalibrationDataError, OptionError
from .calibration_data import Data, Samples, no_samples
from .model_inputs import ModelInputs, dtype_text, missing_input

__all__ = ["ModelBatches", "batches_for", "told_in_the_data"]

_ANY_SIZE: Final = 32
"""Samples in a batch where the model takes any number."""

Place: TypeAlias = Callable[[int, str, tuple[int, ...]], str]
"""What to call a batch by its number, the input and the index in it that are at fault, if they are known."""


@attrs.frozen(eq=False)
class ModelBatches:
    """Batches in the form that ``calibrate`` takes.

    Args:
        batches: each is checked against the model when its turn comes.
        count: how many; None if that is not known.
        notes: on what was left out, renamed or converted.
        place: what to call a batch in messages.
    """

    batches: Iterator[Any]
    count: int | None
    notes: tuple[str, ...]
    place: Place


def batches_for(
    inputs: ModelInputs, data: Data, *, batch_size: int | None, steps: int | None
) -> ModelBatches:
    """The batches of ``data``.

    Raises:
        CalibrationDataError: names, shapes or dtypes do not fit, or there are no data.
        OptionError: a batch size that is not the model's, or one for data that are batches already.
    """
    if isinstance(data, Samples):
        cut, notes = _cut(inputs, data, batch_size)
        batches = cut.batches()[:steps]
        return ModelBatches(_checked(inputs, batches, cut.place), len(batches), notes, cut.place)
    if batch_size is not None:
        raise OptionError(
            f"a batch size was given, and {data.name} has batches already",
            hint="leave --batch-size out, or give single samples: a tensor or arrays",
        )
    try:
        known: int | None = len(data)
    except TypeError:  # also from a loader, which has a length only if its data set has one
        known = None
    count = steps if known is None else min(known, steps or known)

    def place(batch: int, input: str, index: tuple[int, ...]) -> str:
        return f"{data.name}, batch {batch}"

    first = data.peek()
    notes = _left_out(inputs, data.name, first) if isinstance(first, Mapping) and inputs.values else ()
    return ModelBatches(_checked(inputs, islice(data, steps), place), count, notes, place)


@contextmanager
def told_in_the_data(place: Place) -> Generator[None]:
    """Say of what ``calibrate`` finds wrong with a batch where in the user's data that is."""
    try:
        yield
    except CalibrationDataError as error:
        if error.batch is not None:
            error.where = (place(error.batch, error.input, error.index), *error.where[1:])
        raise


def _checked(inputs: ModelInputs, batches: Iterable[Any], place: Place) -> Iterator[Any]:
    return (inputs.check(batch, place(i, "", ())) for i, batch in enumerate(batches))


@attrs.frozen(eq=False)
class _Cut:
    """Samples for the inputs of a model.

    Args:
        name: of the data.
        tensors: by the name of the input, of one length.
        arrays: what each is called in the data.
        size: samples in a batch.
        count: samples that are taken.
    """

    name: str
    tensors: dict[str, Tensor]
    arrays: dict[str, str]
    size: int
    count: int

    def batches(self) -> list[dict[str, Tensor]]:
        starts = range(0, self.count, self.size)
        return [{name: t[start : start + self.size] for name, t in self.tensors.items()} for start in starts]

    def place(self, batch: int, input: str, index: tuple[int, ...]) -> str:
        first, end = batch * self.size, min((batch + 1) * self.size, self.count)
        which = f"samples {first} to {end - 1}"
        if index or end - first == 1:
            which = f"sample {first + (index[0] if index else 0)}"
        return f"{_array(self.name, self.arrays.get(input, ''))}, {which} (batch {batch})"


def _array(data: str, array: str) -> str:
    return f"{array!r} of {data}" if array else data


def _cut(inputs: ModelInputs, samples: Samples, batch_size: int | None) -> tuple[_Cut, tuple[str, ...]]:
    size, is_fixed = inputs.batch_size, inputs.batch_size is not None
    if is_fixed and batch_size not in (None, size):
        raise OptionError(
            f"the batch size is {batch_size}, and the model was exported for {size} samples at a time",
            hint="leave --batch-size out, or export the model with a dynamic first axis",
        )
    arrays, notes = _arrays(inputs, samples)
    _check_counts(samples, arrays)
    size = size or batch_size or _ANY_SIZE
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        tensors[name], converted = _converted(name, samples.tensors[array], inputs.tensors[name])
        notes += [f"{samples.name}: {converted}"] if converted else []
        inputs.check_samples(name, tensors[name], _array(samples.name, array))
    count = len(next(iter(tensors.values())))
    whole = count // size * size if is_fixed else count
    if not whole:
        raise CalibrationDataError(
            f"the data have {count} of the {size} samples that the model was exported for at a time",
            where=samples.name,
            hint=f"give at least {size}, or export the model with smaller or dynamic batches",
        )
    if whole < count:
        notes.append(
            f"{count - whole} of {count} samples were left out: the model was exported for {size} at a time"
        )
    return _Cut(samples.name, tensors, arrays, size, whole), tuple(notes)


def _arrays(inputs: ModelInputs, samples: Samples) -> tuple[dict[str, str], list[str]]:
    """The name in the data of what each input gets, and notes on others and on other names."""
    names, found = list(inputs.tensors), samples.tensors
    if not found:
        raise no_samples(samples.name)
    if len(names) == len(found) == 1 and names != list(found):
        (own,) = found
        note = f"{samples.name}: {own!r} was taken for {names[0]!r}, the model's one input"
        return {names[0]: own}, [] if samples.unnamed else [note]
    if set(names).isdisjoint(found) and samples.unnamed:
        taken = dict(zip(names, samples.unnamed, strict=False))
    else:
        taken = {name: name for name in names if name in found}
    missing = [name for name in names if name not in taken]
    others = [array for array in found if array not in taken.values()]
    if missing:
        raise missing_input(missing, found, others, samples.name)
    return taken, list(_left_out(inputs, samples.name, others))


def _check_counts(samples: Samples, arrays: Mapping[str, str]) -> None:
    """See that there are samples, and as many of each."""
    tensors = {array: samples.tensors[array] for array in arrays.values()}
    counts = {array: len(tensor) if tensor.ndim else 0 for array, tensor in tensors.items()}
    empty = [array for array, count in counts.items() if not count]
    if empty:
        raise no_samples(samples.name, empty)
    if len(set(counts.values())) > 1:
        raise CalibrationDataError(
            "there are arrays of different lengths: "
            + ", ".join(f"{array!r} has {count}" for array, count in counts.items()),
            where=samples.name,
            hint="give each as many samples, along its first axis",
        )


def _left_out(inputs: ModelInputs, where: str, names: Iterable[Any]) -> tuple[str, ...]:
    """A note on those of ``names`` that are no inputs."""
    others = [repr(name) for name in names if name not in inputs.values]
    if not others:
        return ()
    was, its = ("was", "that name") if len(others) == 1 else ("were", "those names")
    return (
        f"{where}: {', '.join(others)} {was} left out, as the model has no input of {its} "
        f"(it has {', '.join(inputs.values)})",
    )


def _converted(name: str, tensor: Tensor, wanted: Tensor) -> tuple[Tensor, str]:
    """In the dtype of the input where that loses nothing that matters, and a note where it loses digits."""
    if tensor.dtype == wanted.dtype:
        return tensor, ""
    if tensor.is_floating_point() and wanted.is_floating_point():
        note = f"{name!r} is {dtype_text(tensor)}, and was converted to {dtype_text(wanted)} for the model"
        widens = torch.promote_types(tensor.dtype, wanted.dtype) == wanted.dtype
        return tensor.to(wanted.dtype), "" if widens else note
    widens = _is_integer(tensor) and _is_integer(wanted) and tensor.element_size() < wanted.element_size()
    return tensor.to(wanted.dtype) if widens else tensor, ""


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
