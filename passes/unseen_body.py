"""A body that never ran in calibration: nothing is known of its tensors, so it stays float."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Node

from ..errors import UncalibratedBodyWarning
from ..ir.operators import is_float_operator
from ..ir.specs import CAST_DTYPES
from .base import PassContext

__all__ = ["leave_float", "never_ran"]


def never_ran(observers: Sequence[Any]) -> bool:
    """Whether ``observers``, those of a body, show that no calibration data came by.

    False where they have nothing to see: weights are known, and dynamic ranges are found at run time.
    """
    needed = [observer for observer in observers if _needs_data(observer)]
    return bool(needed) and not any(observer.has_data for observer in needed)


def _needs_data(observer: Any) -> bool:
    is_known = getattr(observer, "is_dynamic", False) or getattr(observer, "observe_once", False)
    return hasattr(observer, "has_data") and not is_known and observer.dtype not in CAST_DTYPES


def leave_float(body: GraphModule, calls: Sequence[Node], context: PassContext) -> None:
    """Take the observers that ``calls`` call out of ``body``, warn, and say why in the ledger.

    Warns with UncalibratedBodyWarning.
    """
    for call in calls:
        (source,) = call.all_input_nodes
        call.replace_all_uses_with(source)
        body.graph.erase_node(call)
    left = [n for n in body.graph.nodes if is_float_operator(n) and context.ledger.says_quantized(n)]
    for node in left:
        context.ledger.missed("body-not-calibrated", node, "no calibration batch ran the body it is in")
    names = ", ".join(context.ledger.name_of(node) for node in left)
    warnings.warn(
        UncalibratedBodyWarning(
            f"no calibration batch ran a body of cond or a loop, so {names} stay float: calibrate with data "
            "that takes every branch"
        ),
        stacklevel=2,
    )
