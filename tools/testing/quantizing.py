"""A quantizer whose annotations are drawn: any spec at any point, shared or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import torch
from torch.fx import GraphModule, Node

from ...ir.annotation import QuantizationAnnotation, set_annotation
from ...ir.observers import (
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from ...ir.quantizer import Quantizer
from ...ir.specs import (
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from .operators import ACTIVATIONS as CLAMPS
from .operators import QUANTIZABLE

__all__ = ["ACTIVATIONS", "WEIGHTS", "Choices", "DrawnQuantizer"]


def _activation(
    dtype: torch.dtype, low: int, high: int, qscheme: torch.qscheme = torch.per_tensor_affine
) -> QuantizationSpec:
    return QuantizationSpec(dtype, MinMaxObserver, low, high, qscheme)


def _weight(qscheme: torch.qscheme, low: int = -128) -> QuantizationSpec:
    if qscheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return QuantizationSpec(torch.int8, MinMaxObserver, low, 127, qscheme)
    return QuantizationSpec(torch.int8, PerChannelMinMaxObserver, low, 127, qscheme, 0)


ACTIVATIONS: Final[tuple[QuantizationSpec | FixedQParamsQuantizationSpec | None, ...]] = (
    None,
    _activation(torch.uint8, 0, 127),
    QuantizationSpec(torch.uint8, MovingAverageMinMaxObserver, 0, 127, torch.per_tensor_affine),
    _activation(torch.int8, -128, 127),
    _activation(torch.int8, -127, 127, torch.per_tensor_symmetric),
    QuantizationSpec(torch.uint8, PlaceholderObserver, 0, 255, torch.per_tensor_affine, is_dynamic=True),
    FixedQParamsQuantizationSpec(torch.uint8, scale=1 / 64, zero_point=128),
)
"""What an activation may be given; the first leaves it float."""
WEIGHTS: Final[tuple[QuantizationSpec | None, ...]] = (
    None,
    _weight(torch.per_channel_symmetric),
    _weight(torch.per_tensor_affine),
    _weight(torch.per_channel_affine, -127),
)
"""The same of a weight."""

_ACTIVATIONS: Final = frozenset(target for target, *_ in CLAMPS)
_BATCH_NORM: Final = torch.ops.aten.batch_norm.default
_TRAINED: Final = {
    MinMaxObserver: MovingAverageMinMaxObserver,
    MovingAverageMinMaxObserver: MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver: MovingAveragePerChannelMinMaxObserver,
}


@attrs.frozen
class Choices:
    """How one operator is annotated.

    Args:
        activation: index into :data:`ACTIVATIONS`, of what it reads.
        weight: index into :data:`WEIGHTS`.
        output: index into :data:`ACTIVATIONS`; -1 for what its first input has, shared.
        shares: whether its inputs may share with other points of their tensors.
        anchor: 0, or how many operators further on the one is, counted in a circle, whose first input its own
            first input shares the spec of; which may be illegal.
        fuses: leave out what is between it and the activation behind it, where that alone reads it.
    """

    activation: int = 0
    weight: int = 0
    output: int = 0
    shares: bool = True
    anchor: int = 0
    fuses: bool = attrs.field(default=False, converter=bool)


@attrs.frozen
class DrawnQuantizer(Quantizer):
    """Annotates the operators of a graph in turn with ``choices``, over and over.

    Only float tensors are annotated. With ``is_qat`` specs have fake quantizers in place of observers.
    """

    choices: tuple[Choices, ...] = attrs.field(default=(), converter=tuple)
    is_qat: bool = False

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate in place."""
        nodes = [n for n in model.graph.nodes if n.op == "call_function" and _is_float(n)]
        drawn = {node: self.choices[i % len(self.choices)] for i, node in enumerate(nodes) if self.choices}
        for index, (node, choices) in enumerate(drawn.items()):
            fused = [n for n in (node, *node.all_input_nodes) if n in drawn and drawn[n].fuses and _fuses(n)]
            self._annotate(node, choices, nodes[(index + choices.anchor) % len(nodes)], fused)
        return model

    def _annotate(self, node: Node, choices: Choices, anchor: Node, fused: Sequence[Node]) -> None:
        weight = node.args[1] if node.target in QUANTIZABLE else None
        bias = node.args[2] if node.target in QUANTIZABLE and len(node.args) > 2 else None
        activation = self._spec(ACTIVATIONS[choices.activation % len(ACTIVATIONS)])
        if _is_dynamic(activation) and any(map(_is_empty, node.all_input_nodes)):
            activation = None  # torch finds no range of nothing, and says so when the model runs
        of_weight = self._spec(WEIGHTS[choices.weight % len(WEIGHTS)])
        inputs: dict[Node, QuantizationSpecBase | None] = {
            source: of_weight if source is weight else activation
            for source in node.all_input_nodes
            if _is_float(source) and source is not bias and (source is weight or source.op != "get_attr")
            if source not in fused
        }
        output: QuantizationSpecBase | None = None
        first = node.args[0] if node.args else None
        if anchor is not node and anchor.args and isinstance(first, Node) and first in inputs:
            inputs[first] = SharedQuantizationSpec((anchor.args[0], anchor))  # pyright: ignore[reportArgumentType]
        if choices.output >= 0:
            output = self._spec(ACTIVATIONS[choices.output % len(ACTIVATIONS)])
        elif isinstance(first, Node) and inputs.get(first) is not None:
            output = SharedQuantizationSpec((first, node))
        # What is found at run time cannot be shared: it has no observer that could be.
        if node in fused or any(map(_is_dynamic, (*inputs.values(), output))):
            output = None
        if self.is_qat:
            # Nothing is quantized between a convolution and its BatchNorm: they become one.
            output = None if any(user.target is _BATCH_NORM for user in node.users) else output
            inputs = {} if node.target is _BATCH_NORM else inputs
        set_annotation(node, QuantizationAnnotation(inputs, output, choices.shares))

    def _spec(self, spec: QuantizationSpecBase | None) -> QuantizationSpecBase | None:
        if spec is None or not self.is_qat:
            return spec
        if not isinstance(spec, QuantizationSpec):
            return None
        observer = _TRAINED.get(spec.observer_or_fake_quant_ctr)  # pyright: ignore[reportArgumentType]
        if observer is None:
            return None
        return attrs.evolve(spec, observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=observer))


def _fuses(node: Node) -> bool:
    """Whether an activation alone reads ``node``, an operator with a weight or on two tensors."""
    readers = [user.target for user in node.users]
    return len(readers) == 1 and readers[0] in _ACTIVATIONS and len(node.all_input_nodes) > 1


def _is_dynamic(spec: QuantizationSpecBase | None) -> bool:
    return isinstance(spec, QuantizationSpec) and spec.is_dynamic


def _is_empty(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.numel()


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
