"""Settling the ledger of an annotated graph: one decision for every float operator, and none besides."""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import GraphModule, Node

from .annotation import get_annotation
from .bodies import explain_bodies, is_body
from .control_flow import bodies
from .ledger import Ledger
from .operators import is_float_operator
from .specs import QuantizationSpecBase

__all__ = ["settle"]

_FLOAT: Final = (torch.float32, torch.float64)
"""A spec of these says that a tensor stays as it is."""


def settle(gm: GraphModule, ledger: Ledger) -> None:
    """Complete ``ledger`` for the annotated graph of ``gm``, bodies included, and put it in graph order.

    A quantizer need not write to the ledger; what it annotated is ``annotated`` then, and the rest
    ``not-annotated``. What annotations say counts more than an earlier no, which another quantizer may have
    said. Decisions about what is no operator of the graph any more are forgotten, and so are those about
    operators on integers.
    """
    operators = [node for node in gm.graph.nodes if is_float_operator(node)]
    for node in operators:
        reads_low, writes_low = _annotated_low(node)
        if (reads_low or writes_low) and not ledger.says_quantized(node):
            ledger.quantized(node, "annotated", intended=reads_low)
        elif node not in ledger:
            ledger.missed("not-annotated", node, "the quantizer says nothing of it")
    ledger.keep([node.name for node in operators])
    if not is_body(gm):
        _forget_what_is_gone(gm, ledger)
        explain_bodies(gm, ledger)


def _forget_what_is_gone(gm: GraphModule, ledger: Ledger) -> None:
    """Bodies that no pass went into are not settled by themselves."""
    for body in bodies(gm):
        inside = ledger.inside(body.name, body.callers)
        inside.keep([n.name for n in body.module.graph.nodes if is_float_operator(n) and n in inside])


def _annotated_low(node: Node) -> tuple[bool, bool]:
    """Whether ``node`` is annotated to read low precision, and to write it."""
    annotation = get_annotation(node)
    if annotation is None:
        return False, False
    return any(map(_is_low, annotation.input_qspec_map.values())), _is_low(annotation.output_qspec)


def _is_low(spec: QuantizationSpecBase | None) -> bool:
    # A shared spec has the dtype of what it is shared with.
    return spec is not None and getattr(spec, "dtype", None) not in _FLOAT
