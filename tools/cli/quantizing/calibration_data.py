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
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import torch
from torch import Tensor

from ....errors import CalibrationDataError, MissingDependencyError, OptionError
from ....ir.wording import with_article
from ..file_kind import kind_of
from .named_object import call_user, code_of, find_object, first_line, is_object_name

__all__ = ["Batches", "Data", "FirstBatch", "Samples", "find_data", "first_batch", "no_samples"]

_NPZ: Final = "write it with numpy.savez(path, x=…), arrays of numbers"
_PT: Final = "write it with torch.save: a tensor, a dict of tensors, or a list of batches"


@attrs.frozen(eq=False)
class Samples:
    """Tensors, one sample after the other along their first axis.

    Args:
        name: what they are called in messages.
        tensors: by name; one that is alone may have none, "".
    """

    name: str
    tensors: dict[str, Tensor]

    @property
    def unnamed(self) -> tuple[str, ...]:
        """The names in order, if they are those that NumPy gives, or none; else nothing."""
        numbers = [re.fullmatch(r"(?:arr_(\d+))?", name) for name in self.tensors]
        if None in numbers:
            return ()
        return tuple(sorted(self.tensors, key=lambda name: int(name.removeprefix("arr_") or 0)))


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
        """The first batch.

        Raises:
            CalibrationDataError: there is none.
        """
        if self._rest is None:
            self._rest = self._noted()
            self.first.extend(islice(self._rest, 1))
        if not self.first:
            raise CalibrationDataError(
                "there is no batch in the calibration data",
                where=self.name,
                hint="give at least one; a generator is empty once it was used",
            )
        return self.first[0]

    def __iter__(self) -> Iterator[Any]:
        self.peek()
        assert self._rest is not None
        yield from self.first
        yield from self._rest

    def _noted(self) -> Iterator[Any]:
        with code_of(self.name):
            yield from self.batches


Data: TypeAlias = Samples | Batches


@attrs.frozen(eq=False)
class FirstBatch:
    """One batch of the data, and what to call it in messages."""

    batch: Any
    name: str


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


def first_batch(data: Data, batch_size: int | None) -> FirstBatch:
    """One batch of ``data``, to export a model with that came without inputs.

    Raises:
        CalibrationDataError: there is none.
    """
    if isinstance(data, Batches):
        return FirstBatch(data.peek(), f"{data.name}, batch 0")
    size, dtype = batch_size or 1, torch.get_default_dtype()
    tensors = {
        name: tensor[:size].to(dtype) if tensor.is_floating_point() else tensor[:size]
        for name, tensor in data.tensors.items()
        if tensor.ndim and len(tensor)
    }
    if not tensors:
        raise no_samples(data.name)
    names = Samples(data.name, tensors).unnamed
    return FirstBatch(tuple(tensors[name] for name in names) if names else tensors, f"{data.name}, batch 0")


def no_samples(name: str, empty: Sequence[str] = ()) -> CalibrationDataError:
    """The error for data called ``name``, of which the arrays ``empty`` have none, or that have no arrays."""
    return CalibrationDataError(
        f"there are no samples in {', '.join(map(repr, filter(None, empty))) or 'the calibration data'}",
        where=name,
        hint="stack samples along the first axis of each array",
    )


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
        return Samples(path, {"": loaded})
    if isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values()):
        return Samples(path, {str(name): value for name, value in loaded.items()})
    if isinstance(loaded, list):
        return Batches(path, loaded)
    raise CalibrationDataError(
        f"{path} holds {with_article(type(loaded).__name__)}",
        hint="save a tensor or a dict of tensors (samples along the first axis), or a list of batches",
    )


def _of_object(found: Any, name: str) -> Batches:
    batches = call_user(found, name) if callable(found) and not isinstance(found, Iterable) else found
    if not isinstance(batches, Iterable) or isinstance(batches, (str, Tensor)):
        raise CalibrationDataError(
            f"{name} gives {with_article(type(batches).__name__)}, not batches",
            hint="return a data loader, a list of batches or a generator of them",
        )
    return Batches(name, batches)
