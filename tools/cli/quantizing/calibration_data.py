"""Calibration data, as they are named on the command line.

- ``data.npz``: an array for each input, by the name of the argument of ``forward``, samples along the first
  axis. They are cut into batches. Names do not matter where there is one array and one input, and
  ``arr_0``, ``arr_1``, … (what ``numpy.savez`` calls arrays without names) are the inputs in order.
- ``data.pt``, written by ``torch.save``: a tensor or a dict of tensors, samples likewise; or a list of
  batches.
- ``package.module:name``: batches (a data loader, a list), or a function that returns them.

A batch is a tensor, a tuple whose first entries are the inputs (labels may follow), or a dict by name.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import torch
from torch import Tensor

from ....errors import CalibrationDataError, MissingDependencyError, OptionError
from ..file_kind import kind_of
from .model_inputs import ModelInputs, dtype_text
from .named_object import call_user, code_of, find_object, first_line, is_object_name

__all__ = ["Batches", "Data", "Samples", "batches_for", "find_data", "first_batch"]

_NPZ: Final = "write it with numpy.savez(path, x=…), arrays of numbers"
_PT: Final = "write it with torch.save: a tensor, a dict of tensors, or a list of batches"

_ANY_SIZE = 32
"""Samples in a batch where the model takes any number."""


@attrs.frozen(eq=False)
class Samples:
    """Tensors by name, one sample after the other along their first axis, and what to call them."""

    name: str
    tensors: dict[str, Tensor]


@attrs.define(eq=False)
class Batches:
    """Batches, as ``calibrate`` takes them; they may be looked through once.

    Args:
        name: what they are called in messages.
        batches: the batches.
        first: those that were taken already, to look at.
    """

    name: str
    batches: Iterable[Any]
    first: list[Any] = attrs.field(factory=list, init=False, repr=False)
    _rest: Iterator[Any] | None = attrs.field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.batches)  # pyright: ignore[reportArgumentType]  # raises TypeError where it has none

    def peek(self) -> Any:
        """The first batch, None if there is none."""
        if self._rest is None:
            self._rest = self._noted()
            self.first.extend(islice(self._rest, 1))
        return self.first[0] if self.first else None

    def __iter__(self) -> Iterator[Any]:
        self.peek()
        assert self._rest is not None
        yield from self.first
        yield from self._rest

    def _noted(self) -> Iterator[Any]:
        with code_of(self.name):
            yield from self.batches


Data: TypeAlias = Samples | Batches


def find_data(name: str) -> Callable[[], Data]:
    """What loads the data; modules are imported and files looked for at once.

    Raises:
        OptionError: ``name`` is of none of the three forms, or there is no such file or module.
        CalibrationDataError: the file is of another kind.
        UnknownNameError: the module has no such name.
        Exception: what importing the module raised.
    """
    if name.endswith((".npz", ".pt")):
        _check_kind(Path(name))
        return lambda: _load_npz(name) if name.endswith(".npz") else _load_pt(name)
    if not is_object_name(name):
        raise OptionError(
            f"the calibration data {name!r} are neither a .npz or .pt file nor package.module:name",
            hint="save arrays with numpy.savez(path, x=…), or name a function that returns batches",
        )
    found = find_object(name, _may_be_data)
    return lambda: _of_object(found, name)


def first_batch(data: Data, batch_size: int | None) -> Any:
    """One batch of ``data``, to export a model with that came without inputs; None if there is none."""
    if isinstance(data, Batches):
        return data.peek()
    size, dtype = batch_size or 1, torch.get_default_dtype()
    tensors = {
        name: tensor[:size].to(dtype) if tensor.is_floating_point() else tensor[:size]
        for name, tensor in data.tensors.items()
        if tensor.ndim and len(tensor)
    }
    return tuple(tensors[name] for name in _in_order(tensors)) if _is_unnamed(tensors) else tensors


def batches_for(
    inputs: ModelInputs, data: Data, *, batch_size: int | None, steps: int | None
) -> tuple[Iterable[Any], int | None, tuple[str, ...]]:
    """The batches of ``data``, each checked against ``inputs`` when its turn comes.

    Returns:
        The batches, how many (None: not known), and notes on what was left out, renamed or converted.

    Raises:
        CalibrationDataError: names, shapes or dtypes do not fit.
        OptionError: a batch size that is not the model's, or one for data that are batches already.
    """
    if isinstance(data, Samples):
        found, notes = _cut(inputs, data, batch_size)
        found = found[:steps]
        return (inputs.check(b, f"{data.name}, batch {i}") for i, b in enumerate(found)), len(found), notes
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
    checked = (inputs.check(b, f"{data.name}, batch {i}") for i, b in enumerate(islice(data, steps)))
    first = data.peek()
    notes = _left_out(inputs, data.name, first) if isinstance(first, Mapping) and inputs.values else ()
    return checked, count, notes


def _check_kind(path: Path) -> None:
    """See that a ``.npz`` or ``.pt`` file is one."""
    try:
        kind = kind_of(path)
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    if kind.name in ("missing", "folder"):
        found = f"there is no file {path}" if kind.name == "missing" else f"{path} is a folder"
        raise OptionError(found, hint="check its path")
    # What torch.save once wrote is no archive, so only torch.load can tell what it is.
    if kind.name not in (("arrays",) if path.suffix == ".npz" else ("torch-save", "other")):
        raise CalibrationDataError(
            f"{path} is {kind}, and no {'file of arrays' if path.suffix == '.npz' else 'file of tensors'}",
            hint=_NPZ if path.suffix == ".npz" else _PT,
        )


def _may_be_data(found: Any) -> bool:
    return callable(found) or (isinstance(found, Iterable) and not isinstance(found, str))


def _load_npz(path: str) -> Samples:
    try:
        import numpy  # torch works without, and nothing else of lowbit needs it
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is a file of NumPy, which is not installed", hint="pip install numpy, or give a .pt file"
        ) from error
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    # What numpy raises for broken files: ValueError, OSError, BadZipFile, and TypeError from torch for text.
    except Exception as error:
        raise CalibrationDataError(
            f"{path} cannot be read: {first_line(error)}",
            hint=_NPZ,
        ) from error
    return Samples(path, tensors)


def _load_pt(path: str) -> Data:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message is about its own arguments
        raise CalibrationDataError(
            f"{path} is damaged, or holds other things than tensors, numbers, text, lists, tuples and dicts",
            hint=_PT,
        ) from error
    # What torch raises for broken files is not documented, and of many kinds.
    except Exception as error:
        raise CalibrationDataError(f"{path} cannot be read: {first_line(error)}", hint=_PT) from error
    if isinstance(loaded, Tensor):
        return Samples(path, {"arr_0": loaded})
    if isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values()):
        return Samples(path, {str(name): value for name, value in loaded.items()})
    if isinstance(loaded, list):
        return Batches(path, loaded)
    raise CalibrationDataError(
        f"{path} holds a {type(loaded).__name__}",
        hint="save a tensor or a dict of tensors (samples along the first axis), or a list of batches",
    )


def _of_object(found: Any, name: str) -> Batches:
    batches = call_user(found, name) if callable(found) and not isinstance(found, Iterable) else found
    if not isinstance(batches, Iterable) or isinstance(batches, (str, Tensor)):
        raise CalibrationDataError(
            f"{name} gives a {type(batches).__name__}, not batches",
            hint="return a data loader, a list of batches or a generator of them",
        )
    return Batches(name, batches)


def _check_counts(path: str, tensors: Mapping[str, Tensor]) -> None:
    """See that there are samples, and as many of each."""
    counts = {name: len(tensor) if tensor.ndim else 0 for name, tensor in tensors.items()}
    if not counts or 0 in counts.values():
        empty = [name for name, count in counts.items() if not count]
        raise CalibrationDataError(
            f"{path} has no samples{' in ' + ', '.join(empty) if empty else ''}",
            hint="stack samples along the first axis of each array",
        )
    if len(set(counts.values())) > 1:
        raise CalibrationDataError(
            f"{path} has arrays of different lengths: "
            + ", ".join(f"{name} {count}" for name, count in counts.items()),
            hint="give each as many samples, along its first axis",
        )


def _cut(
    inputs: ModelInputs, samples: Samples, batch_size: int | None
) -> tuple[list[dict[str, Tensor]], tuple[str, ...]]:
    size, is_fixed = inputs.batch_size, inputs.batch_size is not None
    if is_fixed and batch_size not in (None, size):
        raise OptionError(
            f"the batch size is {batch_size}, and the model was exported for {size} samples at a time",
            hint="leave --batch-size out, or export the model with a dynamic first axis",
        )
    named, notes = _named(inputs, samples)
    _check_counts(samples.name, named)
    for name, wanted in inputs.tensors.items():
        if name in named and named[name].ndim < wanted.ndim:
            inputs.check(named, samples.name)  # what cuts of it would be called is no help
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        tensors[name], converted = _converted(name, tensor, inputs.tensors.get(name))
        notes += [f"{samples.name}: {converted}"] if converted else []
    count, size = len(next(iter(tensors.values()))), size or batch_size or _ANY_SIZE
    whole = count // size * size if is_fixed else count
    if not whole:
        raise CalibrationDataError(
            f"{samples.name} has {count} of the {size} samples that the model was exported for at a time",
            hint=f"give at least {size}, or export the model with smaller or dynamic batches",
        )
    cuts = ({name: t[start : start + size] for name, t in tensors.items()} for start in range(0, whole, size))
    if whole < count:
        notes.append(
            f"{count - whole} of {count} samples were left out: the model was exported for {size} at a time"
        )
    return list(cuts), tuple(notes)


def _named(inputs: ModelInputs, samples: Samples) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the names of the inputs that they are for, and notes on others and on other names."""
    names, found = list(inputs.tensors), samples.tensors
    if len(names) == len(found) == 1 and names != list(found):
        ((own, tensor),) = found.items()
        note = f"{samples.name}: {own!r} was taken for {names[0]!r}, the model's one input"
        return {names[0]: tensor}, [] if _is_unnamed(found) else [note]
    if set(names).isdisjoint(found) and _is_unnamed(found):
        arrays = _in_order(found)
        unnamed = dict(zip(names, arrays, strict=False))
        taken = {name: found[array] for name, array in unnamed.items()}
        return taken, list(_left_out(inputs, samples.name, arrays[len(unnamed) :]))
    if set(names) <= set(found):
        return {name: found[name] for name in names}, list(_left_out(inputs, samples.name, found))
    return found, []


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


def _is_unnamed(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those that NumPy gives."""
    return all(re.fullmatch(r"arr_\d+", name) for name in tensors)


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: int(name.removeprefix("arr_")))


def _converted(name: str, tensor: Tensor, wanted: Tensor | None) -> tuple[Tensor, str]:
    """In the dtype of the input where that loses nothing that matters, and a note where it loses digits."""
    if wanted is None or tensor.dtype == wanted.dtype:
        return tensor, ""
    if tensor.is_floating_point() and wanted.is_floating_point():
        note = f"{name!r} is {dtype_text(tensor)}, and was converted to {dtype_text(wanted)} for the model"
        widens = torch.promote_types(tensor.dtype, wanted.dtype) == wanted.dtype
        return tensor.to(wanted.dtype), "" if widens else note
    widens = _is_integer(tensor) and _is_integer(wanted) and tensor.element_size() < wanted.element_size()
    return tensor.to(wanted.dtype) if widens else tensor, ""


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
