"""One operator for what ATen has several names of: ``aten.mul`` for ``aten.multiply``.

``torch.export`` keeps the name that a model was written with, so without this every table of operators would
list all names. Only what is exactly the same is renamed: values, gradients, and what memory results share.
``aten.clamp`` is therefore not ``aten.hardtanh``, whose gradient at the two ends is another.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch.fx import Node
from torch.fx.node import Argument

from .schema import OpOverload, operator_name

__all__ = ["ALIASES", "canonical_name", "use_canonical_operator"]

_aten = torch.ops.aten

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
    "moveaxis": "movedim",
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
    return _REWRITTEN_NAMES.get(name) or ALIASES.get(name, name)


def use_canonical_operator(node: Node) -> bool:
    """Let the call ``node``, of complete arguments, be one of the canonical operator; say whether it changed.

    Besides :data:`ALIASES` these are the transposes (``t``, ``mT``, ``numpy_T``, ``adjoint``, ``mH`` and
    ``matrix_H`` of real tensors, ``swapaxes``, ``swapdims``), which become ``transpose``, or ``permute`` of
    other than two dimensions; ``movedim``, which becomes ``permute``; ``relu6``, which becomes ``hardtanh``;
    ``broadcast_to``, which becomes ``expand``; and ``narrow`` from a known position, which becomes ``slice``.
    """
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    rewrite = _REWRITES.get(target)
    if rewrite is not None:
        return rewrite(node)
    alias = _alias(target)
    if alias is None:
        return False
    node.target = alias
    return True


@functools.cache
def _alias(op: OpOverload) -> OpOverload | None:
    namespace, name, overload = operator_name(op)
    kept = ALIASES.get(name.removesuffix("_"))
    if namespace != "aten" or kept is None:
        return None
    packet = getattr(_aten, kept + "_" * name.endswith("_"), None)
    found = getattr(packet, overload, None)
    return found if isinstance(found, OpOverload) else None


def _call(node: Node, target: OpOverload, *args: Argument, **kwargs: Argument) -> bool:
    node.target, node.args, node.kwargs = target, args, kwargs
    return True


def _swap(node: Node) -> bool:
    return _call(node, _aten.transpose.int, *node.args)


def _transpose_last_two(node: Node) -> bool:
    """Of real tensors: complex ones may be conjugated besides."""
    value = _value(node)
    if value is None or value.is_complex() or value.ndim < 2:
        return False
    return _call(node, _aten.transpose.int, node.args[0], -2, -1)


def _reverse(node: Node) -> bool:
    """``t`` and ``numpy_T``: the axes the other way round."""
    value = _value(node)
    if value is None or value.ndim < 2:
        return False
    if value.ndim == 2:
        return _call(node, _aten.transpose.int, node.args[0], 0, 1)
    return _call(node, _aten.permute.default, node.args[0], [*reversed(range(value.ndim))])


def _move(node: Node) -> bool:
    value = _value(node)
    if value is None or value.ndim == 0:
        return False
    sources, goals = (_axes(axes, value.ndim) for axes in node.args[1:])
    rest = iter(axis for axis in range(value.ndim) if axis not in sources)
    moved = dict(zip(goals, sources, strict=True))
    order: list[Argument] = [moved[axis] if axis in moved else next(rest) for axis in range(value.ndim)]
    return _call(node, _aten.permute.default, node.args[0], order)


def _axes(axes: Argument, ndim: int) -> list[int]:
    listed = axes if isinstance(axes, (list, tuple)) else (axes,)
    return [axis % ndim for axis in listed if isinstance(axis, int)]


def _clamp_to_six(node: Node) -> bool:
    in_place = node.target is _aten.relu6_.default
    return _call(node, _aten.hardtanh_.default if in_place else _aten.hardtanh.default, node.args[0], 0, 6)


def _expand(node: Node) -> bool:
    return _call(node, _aten.expand.default, *node.args, implicit=False)


def _slice(node: Node) -> bool:
    x, dim, start, length = node.args
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return False
    return _call(node, _aten.slice.Tensor, x, dim, start, start + length, 1)


def _value(node: Node) -> torch.Tensor | None:
    source = node.args[0]
    value = source.meta.get("val") if isinstance(source, Node) else None
    return value if isinstance(value, torch.Tensor) else None


_REWRITES: Final[Mapping[OpOverload, Callable[[Node], bool]]] = types.MappingProxyType({
    _aten.swapaxes.default: _swap,
    _aten.swapdims.default: _swap,
    _aten.mT.default: _transpose_last_two,
    _aten.mH.default: _transpose_last_two,
    _aten.matrix_H.default: _transpose_last_two,
    _aten.adjoint.default: _transpose_last_two,
    _aten.t.default: _reverse,
    _aten.numpy_T.default: _reverse,
    _aten.movedim.int: _move,
    _aten.movedim.intlist: _move,
    _aten.moveaxis.int: _move,
    _aten.moveaxis.intlist: _move,
    _aten.relu6.default: _clamp_to_six,
    _aten.relu6_.default: _clamp_to_six,
    _aten.broadcast_to.default: _expand,
    _aten.narrow.default: _slice,
})  # fmt: skip

_REWRITTEN_NAMES: Final[Mapping[str, str]] = types.MappingProxyType({
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "mT": "transpose",
    "mH": "transpose",
    "matrix_H": "transpose",
    "adjoint": "transpose",
    "t": "transpose",
    "movedim": "permute",
    "moveaxis": "permute",
    "relu6": "hardtanh",
    "broadcast_to": "expand",
    "narrow": "slice",
})  # fmt: skip
