"""Arguments of ATen calls by their schema: completing them, and reading one by its name.

``torch.export`` leaves trailing default arguments out, so one operator is called in many ways. Code that
compares calls completes them first; code that reads one argument asks for it by name and need not care.

What torch has no public names for — the class of ATen operators, their schemas, how they are dispatched — is
taken from it here and nowhere else; ``tests/ir/test_schema.py`` says when it moves.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping

import attrs
import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Node
from torch.fx.node import Argument

from ..errors import GraphInputError, UnknownNameError
from .location import locate

__all__ = [
    "HigherOrderOperator",
    "OpOverload",
    "Signature",
    "argument",
    "complete_arguments",
    "has_complete_arguments",
    "is_composite",
    "operator_name",
    "schema_of",
    "signature",
]

# Schemas write the default of an enumeration as its number (c10/core/MemoryFormat.h, ScalarType.h).
_ENUMERATIONS: Mapping[str, Mapping[object, Argument]] = {
    "MemoryFormat": {
        0: torch.contiguous_format,
        1: torch.preserve_format,
        2: torch.channels_last,
        3: torch.channels_last_3d,
    },
    "ScalarType": {3: torch.int32, 4: torch.int64, 6: torch.float32, 7: torch.float64, 11: torch.bool},
}


@attrs.frozen(slots=True)
class Signature:
    """The arguments of an operator, in schema order.

    Args:
        positional: position of each argument that may be given by position.
        keyword_only: names of the others.
        defaults: the default of each argument that has one.
    """

    positional: Mapping[str, int]
    keyword_only: tuple[str, ...]
    defaults: Mapping[str, Argument]


def schema_of(op: OpOverload) -> torch.FunctionSchema:
    """The schema of ``op``: its arguments and returns, with types and alias annotations."""
    return op._schema


def operator_name(op: OpOverload) -> tuple[str, str, str]:
    """Namespace, name and overload: ``("aten", "add_", "Tensor")``; the overload may be ``"default"``."""
    namespace, _, rest = op.name().partition("::")
    name, _, overload = rest.partition(".")
    return namespace, name, overload or "default"


def is_composite(op: OpOverload) -> bool:
    """Whether ``op`` is made of other operators in every dispatch (CompositeImplicitAutograd)."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")


@functools.cache
def signature(op: OpOverload) -> Signature:
    """The signature of ``op``; read from its schema once per process."""
    positional: dict[str, int] = {}
    keyword_only: list[str] = []
    defaults: dict[str, Argument] = {}
    for arg in schema_of(op).arguments:
        if arg.kwarg_only:
            keyword_only.append(arg.name)
        else:
            positional[arg.name] = len(positional)
        if arg.has_default_value():
            kind = str(arg.real_type).removeprefix("Optional[").removesuffix("]")
            named = _ENUMERATIONS.get(kind)
            default = arg.default_value
            defaults[arg.name] = default if named is None or default is None else named[default]
    return Signature(
        types.MappingProxyType(positional), tuple(keyword_only), types.MappingProxyType(defaults)
    )


def argument(node: Node, name: str) -> Argument:
    """What the call ``node`` gives to the schema argument ``name``; its default where it gives nothing.

    Raises:
        GraphInputError: ``node`` does not call an operator with a schema, or lacks a required argument.
        UnknownNameError: the operator has no argument of that name.
    """
    target = node.target
    if not isinstance(target, OpOverload):
        raise GraphInputError(
            f"argument {name!r} was asked of a node that calls no ATen operator",
            where=locate(node),
            hint="check that node.target is an OpOverload first",
        )
    sig = signature(target)
    index = sig.positional.get(name)
    if index is not None:
        args = node.args
        if index < len(args):
            return args[index]
    kwargs = node.kwargs
    if name in kwargs:
        return kwargs[name]
    if name in sig.defaults:
        return sig.defaults[name]
    if index is None and name not in sig.keyword_only:
        raise UnknownNameError(
            f"{target} has no argument {name!r}",
            where=locate(node),
            hint=f"its arguments are {', '.join((*sig.positional, *sig.keyword_only))}",
        )
    raise _missing(node, name)


def has_complete_arguments(node: Node) -> bool:
    """Whether the arguments of ``node`` are as :func:`complete_arguments` leaves them."""
    target = node.target
    if not isinstance(target, OpOverload):
        return True
    sig = signature(target)
    return len(node.args) == len(sig.positional) and tuple(node.kwargs) == sig.keyword_only


def complete_arguments(node: Node) -> bool:
    """Make the arguments of an ATen call complete; say whether anything changed.

    Afterwards every argument that may be positional is positional, in schema order, and the keyword arguments
    are the keyword-only ones, in schema order; defaults are filled in. A node that is complete already, or
    that calls something without a schema, is not touched.

    Raises:
        GraphInputError: a required argument is missing.
    """
    target = node.target
    if has_complete_arguments(node) or not isinstance(target, OpOverload):
        return False
    sig = signature(target)
    given = {**dict(zip(sig.positional, node.args, strict=False)), **node.kwargs}
    complete: dict[str, Argument] = {}
    for name in (*sig.positional, *sig.keyword_only):
        if name in given:
            complete[name] = given[name]
        elif name in sig.defaults:
            complete[name] = sig.defaults[name]
        else:
            raise _missing(node, name)
    node.args = tuple(complete[name] for name in sig.positional)
    node.kwargs = {name: complete[name] for name in sig.keyword_only}
    return True


def _missing(node: Node, name: str) -> GraphInputError:
    return GraphInputError(
        f"a call of {node.target} lacks its required argument {name!r}",
        where=locate(node),
        hint="export the model again; calls made by hand give every argument that has no default",
    )
