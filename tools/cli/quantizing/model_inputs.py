"""The inputs of an exported model, and whether data fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from ....errors import CalibrationDataError, UnsupportedError
from ....passes.registry import unknown_name

__all__ = ["ModelInputs", "dtype_text", "inputs_of"]


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
            shapes = ", ".join(f"{name} {_shape(value)}" for name, value in self.tensors.items())
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
        for name, tensor in self.tensors.items():
            _check_tensor(name, found[name], tensor, where)
        return found if self.keywords else tuple(found.values())

    def _by_name(self, batch: Any, where: str) -> dict[str, Any]:
        if isinstance(batch, Mapping):
            for name in self.values:
                if name not in batch:
                    known = tuple(map(str, batch))
                    raise CalibrationDataError(
                        f"the model's input {name!r} is not in the data, which have {', '.join(known)}",
                        where=where,
                        hint=f"name what is for it {name!r}; {unknown_name('input', name, known).hint}",
                    )
            return {name: batch[name] for name in self.values}
        values = (batch,) if isinstance(batch, Tensor) else batch
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise CalibrationDataError(
                f"the batch is a {type(batch).__name__}",
                where=where,
                hint="give tensors, tuples whose first entries are the model's inputs, or dicts by name",
            )
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


def _check_tensor(name: str, found: Any, wanted: Tensor, where: str) -> None:
    if not isinstance(found, Tensor):
        raise CalibrationDataError(
            f"the input {name!r} is a {type(found).__name__}, and the model takes a tensor of "
            f"{dtype_text(wanted)} {_shape(wanted)}",
            where=where,
            hint="give what the model was exported with",
        )
    fits = found.ndim == wanted.ndim and all(
        have == size for have, size in zip(found.shape, wanted.shape, strict=True) if isinstance(size, int)
    )
    if not fits or found.dtype != wanted.dtype:
        raise CalibrationDataError(
            f"the input {name!r} is {dtype_text(found)} {_shape(found)}, and the model takes "
            f"{dtype_text(wanted)} {_shape(wanted)}",
            where=where,
            hint=_how_to_fit(found, wanted),
        )


def _how_to_fit(found: Tensor, wanted: Tensor) -> str:
    if found.ndim == wanted.ndim - 1:
        return "the axis of samples is missing: stack samples along a first axis"
    if found.dtype != wanted.dtype and found.ndim == wanted.ndim:
        return f"convert the data, as what runs the model later does: to {dtype_text(wanted)}"
    if found.shape[1:] == wanted.shape[1:]:
        return f"the model was exported for {wanted.shape[0]} samples at a time: give batches of as many"
    return "give what the model was exported with"


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(str(size) if isinstance(size, int) else 'any' for size in tensor.shape)}]"


def dtype_text(tensor: Tensor) -> str:
    """``float32``."""
    return str(tensor.dtype).removeprefix("torch.")
