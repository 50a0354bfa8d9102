"""What ``torch.export`` cannot trace, said of the line of the user's model that it cannot."""

from __future__ import annotations

from typing import Final

from sympy import Expr
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ....errors import GraphInputError
from ..tracebacks import innermost_line
from .named_object import first_line

__all__ = ["export_failure"]

_DETAILS: Final = "--traceback shows all of torch's message"
_CONDITION: Final = (
    "choose with torch.where(condition, a, b), or with torch.cond(condition, f, g, inputs) where one of two "
    f"ways is to be computed, or move the branch out of the model; {_DETAILS}"
)
_NUMBER: Final = (
    "keep it a tensor (x / x.max() rather than x / float(x.max())), take sizes from shapes, which are known, "
    f"or move the line out of the model; {_DETAILS}"
)
_OTHER: Final = f"export it yourself and return the ExportedProgram, or pass it as a .pt2 file; {_DETAILS}"


def export_failure(error: Exception, name: str) -> GraphInputError:
    """What to raise from ``error``, which ``torch.export`` raised at the model called ``name``."""
    line = innermost_line(error)
    where = (line,) if line else ()
    found = f"torch.export cannot export {name}"
    if not isinstance(error, GuardOnDataDependentSymNode):
        return GraphInputError(f"{found}: {first_line(error)}", where=where, hint=_OTHER)
    if isinstance(error.cond, Expr):
        why = "it cannot trace the number that this line makes out of the values of a tensor"
        return GraphInputError(f"{found}: {why}", where=where, hint=_NUMBER)
    why = "it cannot trace which way this line goes, as that depends on the values of a tensor"
    return GraphInputError(f"{found}: {why}", where=where, hint=_CONDITION)
