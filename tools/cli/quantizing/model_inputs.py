"""The inputs of an exported model, and whether data fit them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from ....errors import CalibrationDataError, UnsupportedError
from ....ir.wording import with_article

__all__ = ["ModelInputs", "described", "dtype_text", "inputs_of", "missing_input", "no_batch"]

Sizes: TypeAlias = tuple[int | None, ...]
"""A shape; None along an axis of any size."""


@attrs.frozen(eq=False)
class ModelInputs:
    """The inputs of a model.

    Args:
        values: by name, in order, what the model was exported with: fake tensors, numbers or None. Empty
            where an input is a structure of several.
        keywords: the names of those that are keyword arguments.
    """

    values: dict[str, Any]
    keywords: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The inputs that are tensors."""
        return {name: value for name, value in self.values.items() if isinstance(value, Tensor)}

    @property
    def batch_size(self) -> int | None:
        """How many samples all tensors take, along their first axis; None for any number.

        Raises:
            CalibrationDataError: the tensors have no first axis, or not the same number.
        """
        sizes = {name: value.shape[0] if value.ndim else None for name, value in self.tensors.items()}
        fixed = {name: size for name, size in sizes.items() if isinstance(size, int)}
        if None in sizes.values() or len(set(fixed.values())) > 1 or not sizes:
            shapes = ", ".join(f"{name} {_text(_sizes(value))}" for name, value in self.tensors.items())
            raise CalibrationDataError(
                f"the inputs of the model have no axis of samples in common: {shapes or 'none is a tensor'}",
                hint="give batches instead of samples: a .pt file of a list, or package.module:function",
            )
        return next(iter(fixed.values()), None)

    def check(self, batch: Any, where: str) -> Any:
        """``batch`` in the form that ``calibrate`` takes: a tuple, or a dict of keyword arguments.

        Args:
            batch: a tensor, a sequence whose first entries are the inputs, or a mapping by name.
            where: what to call it in errors.

        Raises:
            CalibrationDataError: names, shapes or dtypes do not fit.
            UnsupportedError: the model has positional and keyword inputs.
        """
        if not self.values:
            return batch  # of structures, calibrate itself says whether they fit
        if self.keywords and len(self.keywords) < len(self.values):
            raise UnsupportedError(
                f"the model has positional inputs and, by keyword, {', '.join(self.keywords)}",
                hint="export it with all inputs positional, or all by keyword",
            )
        found = self._by_name(batch, where)
        for name, wanted in self.tensors.items():
            _check_tensor(name, found[name], wanted, _sizes(wanted), where)
        return found if self.keywords else tuple(found.values())

    def check_samples(self, name: str, samples: Tensor, where: str) -> None:
        """See that ``samples``, any number of them along the first axis, fit the input ``name``, a tensor.

        Raises:
            CalibrationDataError: shape or dtype do not fit.
        """
        wanted = self.tensors[name]
        _check_tensor(name, samples, wanted, (None, *_sizes(wanted)[1:]), where)

    def _by_name(self, batch: Any, where: str) -> dict[str, Any]:
        if isinstance(batch, Mapping):
            missing = [name for name in self.values if name not in batch]
            if missing:
                raise missing_input(missing, batch, [k for k in batch if k not in self.values], where)
            return {name: batch[name] for name in self.values}
        values = (batch,) if isinstance(batch, Tensor) else batch
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise no_batch(batch, where)
        if len(values) < len(self.values):
            raise CalibrationDataError(
                f"the batch has {len(values)} of the {len(self.values)} inputs that the model takes: "
                f"{', '.join(self.values)}",
                where=where,
                hint="give the inputs first, in the order of forward, then whatever else (labels)",
            )
        return dict(zip(self.values, values, strict=False))


def inputs_of(model: GraphModule) -> ModelInputs:
    """The inputs of an exported model."""
    placeholders = model.graph.find_nodes(op="placeholder")
    spec: pytree.TreeSpec = model._in_spec  # pyright: ignore[reportAssignmentType]
    args, kwargs = pytree.tree_unflatten(list(range(len(placeholders))), spec)
    if not all(isinstance(place, int) for place in (*args, *kwargs.values())):
        return ModelInputs({}, ())
    # The target is the argument's own name; that of the node may be another, where Python has it too.
    return ModelInputs({str(node.target): node.meta.get("val") for node in placeholders}, tuple(kwargs))


def no_batch(batch: object, where: str) -> CalibrationDataError:
    """The error for what is in place of a batch."""
    return CalibrationDataError(
        f"the batch is {with_article(type(batch).__name__)}",
        where=where,
        hint="give tensors, tuples whose first entries are the model's inputs, or dicts by name",
    )


def missing_input(
    missing: Sequence[str], known: Iterable[Any], others: Iterable[Any], where: str
) -> CalibrationDataError:
    """The error for data without some of the inputs of the model.

    Args:
        missing: the names of those inputs.
        known: the names in the data.
        others: those of them that are for no input.
        where: what to call the data.
    """
    name, free = missing[0], [str(other) for other in others]
    have = ", ".join(repr(str(each)) for each in known if each != "")
    folded = {other.casefold(): other for other in free}
    near = [folded[each] for each in difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)]
    # What is left for what is left.
    near = near or (free if len(free) == len(missing) == 1 else [])
    hint = f"add it to the data, under the name {name!r}"
    if near:
        hint = f"rename {near[0]!r} in the data to {name!r}, which is the name in the model"
    elif free:
        hint = f"see which of {', '.join(map(repr, free))} is for it, and rename that in the data to {name!r}"
    return CalibrationDataError(
        f"the model takes an input {name!r}, and the data have none of that name, but {have or 'one tensor'}",
        where=where,
        hint=hint,
    )


def _check_tensor(name: str, found: Any, wanted: Tensor, sizes: Sizes, where: str) -> None:
    takes = f"{dtype_text(wanted)} {_text(sizes)}"
    if not isinstance(found, Tensor):
        raise CalibrationDataError(
            f"the input {name!r} is {with_article(type(found).__name__)}, and the model takes a tensor of "
            f"{takes}",
            where=where,
            hint="give what the model was exported with",
        )
    have = tuple(found.shape)
    if found.dtype != wanted.dtype or len(have) != len(sizes) or _unlike(have, sizes):
        raise CalibrationDataError(
            f"the input {name!r} is {described(found)}, and the model takes {takes}",
            where=where,
            hint=_how_to_fit(found, wanted, sizes),
        )


def _unlike(have: Sequence[int], sizes: Sizes) -> list[int]:
    """The axes along which the sizes are others."""
    pairs = zip(have, sizes, strict=True)
    return [axis for axis, (size, wanted) in enumerate(pairs) if wanted not in (None, size)]


def _how_to_fit(found: Tensor, wanted: Tensor, sizes: Sizes) -> str:
    if found.ndim == len(sizes) - 1:
        return "the axis of samples is missing: stack samples along a first axis"
    if found.ndim != len(sizes):
        return f"give tensors of {len(sizes)} axes, as the model was exported with"
    if found.dtype != wanted.dtype:
        return f"convert the data, as what runs the model later does: to {dtype_text(wanted)}"
    axes = _unlike(found.shape, sizes)
    if axes == [0]:
        return f"the model was exported for {sizes[0]} samples at a time: give batches of as many"
    differ = ", ".join(f"{sizes[axis]} along axis {axis}, not {found.shape[axis]}" for axis in axes)
    return f"prepare the data as for the model itself ({differ}), or export it with these axes dynamic"


def _sizes(tensor: Tensor) -> Sizes:
    return tuple(size if isinstance(size, int) else None for size in tensor.shape)


def _text(sizes: Sizes) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"


def described(tensor: Tensor) -> str:
    """``float32 [2, 3]``."""
    return f"{dtype_text(tensor)} {_text(_sizes(tensor))}"


def dtype_text(tensor: Tensor) -> str:
    """``float32``."""
    return str(tensor.dtype).removeprefix("torch.")
