"""Names of things that are not part of a graph: operators, functions, classes.

What a graph calls and what an observer is made by are written by name, and found again by it. Nothing is
imported for that: a name is looked up among the modules that the process has loaded, so that reading a text
cannot run code that was not there before.
"""

from __future__ import annotations

import enum
import functools
import sys
from typing import Any, Final

import torch

from ..schema import HigherOrderOperator, OpOverload, operator_name

__all__ = ["find_operator", "find_reference", "name_operator", "name_reference"]

# Where builtins are found that say nothing, or something private, of their module.
_HOMES: Final = ("operator", "math", "builtins", "torch", "torch.nn.functional")


def name_operator(target: object) -> str | None:
    """``aten.add.Tensor`` or ``higher_order.cond``; None for what is no registered operator."""
    if isinstance(target, OpOverload):
        return ".".join(operator_name(target))
    if isinstance(target, HigherOrderOperator):
        name = f"{target.namespace}.{target.name()}"
        return name if find_operator(name) is target else None
    return None


def find_operator(name: str) -> Any | None:
    """The operator of that name, or None."""
    value: Any = torch.ops
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except (AttributeError, RuntimeError):
            return None
    return value if isinstance(value, (OpOverload, HigherOrderOperator)) else None


def name_reference(value: Any) -> str | None:
    """``module:qualified.name`` by which :func:`find_reference` finds ``value`` again, or None."""
    if isinstance(value, enum.Enum):
        qualified = f"{type(value).__qualname__}.{value.name}"
        module: Any = type(value).__module__
    else:
        qualified = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        module = getattr(value, "__module__", None)
    if not isinstance(qualified, str):
        return None
    candidates = [(home, qualified.rpartition(".")[2]) for home in _HOMES]
    if isinstance(module, str):
        # Builtins may say a private module (_operator), which is where to look last.
        is_private = module.startswith("_") and module != "__main__"
        candidates.insert(len(candidates) if is_private else 0, (module, qualified))
    for home, name in candidates:
        reference = f"{home}:{name}"
        if _same(find_reference(reference), value):
            return reference
    return None


def _same(found: Any, value: Any) -> bool:
    if found is value:
        return True
    # A bound method (of a class, say) is made anew at every look.
    owner = getattr(value, "__self__", None)
    return isinstance(owner, type) and found == value


def find_reference(reference: str) -> Any | None:
    """What ``module:qualified.name`` names in a module that is loaded, or None."""
    module, _, qualified = reference.partition(":")
    missing = object()
    value: Any = sys.modules.get(module, missing)
    if value is missing or not qualified:
        return None
    found = functools.reduce(lambda v, part: getattr(v, part, missing), qualified.split("."), value)
    return None if found is missing else found
