"""One operator for what ATen has several names of: ``aten.mul`` for ``aten.multiply``.

``torch.export`` keeps the name that a model was written with, so without this every table of operators would
list all names. Only what is exactly the same is renamed: values, gradients, and what memory results share.
``aten.clamp`` is therefore not ``aten.hardtanh``, whose gradient at the two ends is another.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import torch
from torch.fx import Node
from torch.fx.node import Argument

from .schema import OpOverload, operator_name

__all__ = ["ALIASES", "Call", "canonical_call", "canonical_name", "written_name"]

_aten = torch.ops.aten

Call: TypeAlias = tuple[OpOverload, tuple[Argument, ...], Mapping[str, Argument]]
"""An operator, its arguments, and those that only have names."""

ALIASES: Final[Mapping[str, str]] = types.MappingProxyType({
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "fix": "trunc",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "linalg_matmul": "matmul",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "row_stack": "vstack",
    "special_erf": "erf",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "subtract": "sub",
    "true_divide": "div",
})  # fmt: skip
"""Names of ATen operators that have all overloads, arguments and results of another, and its name.

Each has an in-place form under the same two names, with an underscore, where the operator has one.
"""


def canonical_name(name: str) -> str:
    """The name, without underscore, that an operator of this ``name`` has in canonical graphs."""
    name = name.rstrip("_")
    rewrite = _REWRITES.get(name)
    return ALIASES.get(name, name) if rewrite is None else rewrite[1]


def written_name(node: Node) -> str | None:
    """The name, without underscore, of the function that the model calls for ``node``, as export recorded it.

    Of several names of one operator it is the canonical one; ``relu6`` is ``relu6``, though the canonical
    operator is ``hardtanh``. None where nothing is recorded, or the operator is only a part of the function.
    """
    recorded: tuple[str, str] | None = node.meta.get("torch_fn")
    if recorded is None or not isinstance(node.target, OpOverload):
        return None
    name = recorded[1].rpartition(".")[2].rstrip("_")
    if canonical_name(name) != operator_name(node.target)[1].rstrip("_"):
        return None
    return ALIASES.get(name, name)


def canonical_call(node: Node) -> Call | None:
    """What ``node``, whose arguments are complete, is as a call of the canonical operator; None if it is one.

    Besides :data:`ALIASES` these are the transposes (``t``, ``mT``, ``numpy_T``, ``adjoint``, ``mH`` and
    ``matrix_H`` of real tensors, ``swapaxes``, ``swapdims``), which become ``transpose``, or ``permute`` of
    other than two dimensions; ``movedim``, which becomes ``permute``; ``relu6``, which becomes ``hardtanh``;
    ``broadcast_to``, which becomes ``expand``; and ``narrow`` from a known position, which becomes ``slice``.
    """
    target = node.target
    if not isinstance(target, OpOverload):
        return None
    rewrite = _rewrite(target)
    if rewrite is not None:
        return rewrite(node)
    alias = _alias(target)
    return None if alias is None else (alias, node.args, node.kwargs)


@functools.cache
def _alias(op: OpOverload) -> OpOverload | None:
    namespace, name, overload = operator_name(op)
    kept = ALIASES.get(name.removesuffix("_"))
    if namespace != "aten" or kept is None:
        return None
    packet = getattr(_aten, kept + "_" * name.endswith("_"), None)
    found = getattr(packet, overload, None)
    return found if isinstance(found, OpOverload) else None


@functools.cache
def _rewrite(op: OpOverload) -> Callable[[Node], Call | None] | None:
    namespace, name, _ = operator_name(op)
    found = _REWRITES.get(name) if namespace == "aten" else None
    return None if found is None else found[0]


def _call(target: OpOverload, *args: Argument, **kwargs: Argument) -> Call:
    return target, args, kwargs


def _swap(node: Node) -> Call:
    return _call(_aten.transpose.int, *node.args)


def _transpose_last_two(node: Node) -> Call | None:
    """Of real tensors: complex ones may be conjugated besides."""
    value = _value(node)
    if value is None or value.is_complex() or value.ndim < 2:
        return None
    return _call(_aten.transpose.int, node.args[0], -2, -1)


def _reverse(node: Node) -> Call | None:
    """``t`` and ``numpy_T``: the axes the other way round."""
    value = _value(node)
    if value is None or value.ndim < 2:
        return None
    if value.ndim == 2:
        return _call(_aten.transpose.int, node.args[0], 0, 1)
    return _call(_aten.permute.default, node.args[0], [*reversed(range(value.ndim))])


def _move(node: Node) -> Call | None:
    value = _value(node)
    if value is None or value.ndim == 0:
        return None
    sources, goals = (_axes(axes, value.ndim) for axes in node.args[1:])
    rest = iter(axis for axis in range(value.ndim) if axis not in sources)
    moved = dict(zip(goals, sources, strict=True))
    order: list[Argument] = [moved[axis] if axis in moved else next(rest) for axis in range(value.ndim)]
    return _call(_aten.permute.default, node.args[0], order)


def _axes(axes: Argument, ndim: int) -> list[int]:
    listed = axes if isinstance(axes, (list, tuple)) else (axes,)
    return [axis % ndim for axis in listed if isinstance(axis, int)]


def _clamp_to_six(node: Node) -> Call:
    in_place = node.target is _aten.relu6_.default
    return _call(_aten.hardtanh_.default if in_place else _aten.hardtanh.default, node.args[0], 0, 6)


def _expand(node: Node) -> Call:
    return _call(_aten.expand.default, *node.args, implicit=False)


def _slice(node: Node) -> Call | None:
    x, dim, start, length = node.args
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return None
    return _call(_aten.slice.Tensor, x, dim, start, start + length, 1)


def _value(node: Node) -> torch.Tensor | None:
    source = node.args[0]
    value = source.meta.get("val") if isinstance(source, Node) else None
    return value if isinstance(value, torch.Tensor) else None


_REWRITES: Final[Mapping[str, tuple[Callable[[Node], Call | None], str]]] = types.MappingProxyType({
    "swapaxes": (_swap, "transpose"),
    "swapdims": (_swap, "transpose"),
    "mT": (_transpose_last_two, "transpose"),
    "mH": (_transpose_last_two, "transpose"),
    "matrix_H": (_transpose_last_two, "transpose"),
    "adjoint": (_transpose_last_two, "transpose"),
    "t": (_reverse, "transpose"),
    "numpy_T": (_reverse, "transpose"),
    "movedim": (_move, "permute"),
    "moveaxis": (_move, "permute"),
    "relu6": (_clamp_to_six, "hardtanh"),
    "relu6_": (_clamp_to_six, "hardtanh"),
    "broadcast_to": (_expand, "expand"),
    "narrow": (_slice, "slice"),
})  # fmt: skip
"""By name of the operator: the rewrite, and the name of what it gives (of matrices, where it depends)."""
