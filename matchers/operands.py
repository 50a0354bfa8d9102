"""The arguments of a call for matching: complete, and told apart into tensors and literals."""

from __future__ import annotations

import functools
from typing import Final

import attrs
import torch
from torch._ops import OpOverload  # the class of every ATen operator has no public name
from torch.fx import Node
from torch.fx.node import Argument

from ..ir.schema import argument

__all__ = ["COMMUTATIVE", "Operand", "operands"]

COMMUTATIVE: Final = frozenset({torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor})
"""The operators whose tensors match in either order."""


@attrs.frozen
class Operand:
    """What an operator expects of one argument.

    Args:
        name: its name; for a Python function (``operator.getitem``) its position.
        takes_tensor: it is a tensor or a list of tensors, not a literal.
        takes_none: the tensor, or a tensor of the list, may be absent.
        is_fixed: a literal that says what the call is, rather than adjusts it: the index of ``getitem``.
    """

    name: str
    takes_tensor: bool
    takes_none: bool = False
    is_fixed: bool = False


@functools.cache
def _of_operator(target: OpOverload) -> tuple[Operand, ...]:
    types = [(a.name, str(a.type)) for a in target._schema.arguments]
    return tuple(Operand(name, "Tensor" in type_, "Optional[Tensor]" in type_) for name, type_ in types)


def operands(node: Node) -> list[tuple[Operand, Argument]]:
    """The arguments of the call ``node`` with their values, in schema order and with defaults filled in."""
    if isinstance(node.target, OpOverload):
        return [(operand, argument(node, operand.name)) for operand in _of_operator(node.target)]
    values: list[tuple[str, Argument]] = [(str(i), value) for i, value in enumerate(node.args)]
    values += sorted(node.kwargs.items(), key=lambda item: item[0])
    return [(Operand(name, takes_tensor=True, is_fixed=True), value) for name, value in values]
