"""How far the quantized model is from the float one at each node, on given inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Node

from ...ir.oracle import Observers, run_exactly
from ...ir.quantized_decomposed import is_dequantize, is_quantize

__all__ = ["NodeError", "node_errors"]


@attrs.frozen
class NodeError:
    """The error of one value.

    The signal-to-noise ratio is 10 · log10(Σ float² / Σ (quantized − float)²), in decibels: 6 dB are one bit.
    It is infinite where the two are equal.

    Args:
        sqnr: of the value in the quantized model against the value in the float model, so that errors made
            before it are part of it; where ``is_own``, of what a dequantize returns against what had been
            quantized, so the part of that one quantization alone.
        largest: the largest absolute difference.
        is_own: see ``sqnr``.
    """

    sqnr: float
    largest: float
    is_own: bool


def node_errors(
    prepared: GraphModule, converted: GraphModule, inputs: Sequence[Any], key_of: Callable[[Node], int | None]
) -> dict[int, NodeError]:
    """The error of the float values that two graphs have in common. Both run in float64.

    Args:
        prepared: the graph with observers, which compute nothing: the float model, BatchNorm folded.
        converted: what ``convert_pt2e`` made of it.
        inputs: the arguments of both.
        key_of: the number of a node of either graph, None for one that has none.
    """
    reference: dict[int, torch.Tensor] = {}

    def keep(node: Node, value: Any) -> Any:
        key = key_of(node)
        if node.op == "call_function" and key is not None and _is_float(value):
            reference[key] = value
        return value

    run_exactly(prepared, *inputs, observers=Observers.IDENTITY, watch=keep)
    errors: dict[int, NodeError] = {}
    exact: dict[Node, torch.Tensor] = {}
    """What is quantized, by the node that reads it and by the one that quantizes it."""

    def compare(node: Node, value: Any) -> Any:
        key = key_of(node)
        source = node.args[0] if node.args else None
        if is_quantize(node) and isinstance(source, Node):
            exact[node] = exact[source]
        elif key is not None and is_dequantize(node) and source in exact:
            errors[key] = _error(exact[source], value, is_own=True)
        elif key in reference and _is_float(value) and reference[key].shape == value.shape:
            errors[key] = _error(reference[key], value, is_own=False)
        if any(map(is_quantize, node.users)):
            exact[node] = value
        return value

    run_exactly(converted, *inputs, watch=compare)
    return errors


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _error(wanted: torch.Tensor, found: torch.Tensor, *, is_own: bool) -> NodeError:
    wanted, found = wanted.double(), found.double()
    noise = found - wanted
    power, lost = float(wanted.square().sum()), float(noise.square().sum())
    sqnr = math.inf if lost == 0 else -math.inf if power == 0 else 10 * math.log10(power / lost)
    return NodeError(sqnr, float(noise.abs().max()) if noise.numel() else 0.0, is_own)
