"""Annotating one place of a graph."""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch.fx import Node

from ...ir.annotation import QuantizationAnnotation, set_annotation
from ...ir.specs import (
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from .dtypes import Grid, Refused, Specs
from .pattern_config import ObservationType
from .rules import Place

__all__ = ["Written", "annotate_place", "is_float"]

_aten = torch.ops.aten
_TRANSPOSED: Final = (
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
)


@attrs.frozen(eq=False)
class Written:
    """How the output of an operator is quantized: its spec, and what its parameters lie within."""

    spec: QuantizationSpecBase
    grid: Grid | None

    def serves(self, wanted: Grid | None) -> bool:
        """Whether it is what another operator asks for too."""
        return wanted is not None and self.grid is not None and self.grid.serves(wanted)


def is_float(node: Node) -> bool:
    """Whether ``node`` is a floating-point tensor, or a list that has one."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(each, torch.Tensor) and each.is_floating_point() for each in values)


def annotate_place(place: Place, specs: Specs, written: dict[Node, Written]) -> Refused | None:
    """Annotate the operators of ``place``, or return why they stay float.

    Args:
        place: where.
        specs: how.
        written: the outputs that are quantized so far, with their specs; kept up to date.
    """
    inside = dict.fromkeys(node for unit in place.units for node in unit.nodes)
    edges = [edge for unit in place.units for edge in unit.activations if edge[0] not in inside]
    read = _read(place, specs, [edge for edge in edges if is_float(edge[0])], written)
    if isinstance(read, Refused):
        return read
    inputs: dict[Node, dict[Node, QuantizationSpecBase | None]] = {node: {} for node in inside}
    for (producer, reader), spec in read.items():
        inputs[reader][producer] = spec
    for unit in place.units:
        for producer, reader in unit.weights if specs.weight is not None else ():
            inputs[reader][producer] = _along_outputs(specs.weight, reader)
        for producer, reader in unit.biases if specs.bias is not None else ():
            inputs[reader][producer] = specs.bias
    result = place.units[-1].outputs
    output = _output(place, specs, read)
    if output is None and not any(inputs.values()):
        return Refused("not-configured", "its QConfig quantizes nothing of it")
    for node in inside:
        set_annotation(node, QuantizationAnnotation(inputs[node], _annotated=True))
    # A result of several tensors (that of an LSTM) stays float.
    if output is not None and len(result) == 1 and isinstance(result[0].meta.get("val"), torch.Tensor):
        set_annotation(result[0], QuantizationAnnotation(inputs[result[0]], output, _annotated=True))
        written[result[0]] = _result(specs, output, read, written)
    return None


def _read(
    place: Place, specs: Specs, edges: list[tuple[Node, Node]], written: dict[Node, Written]
) -> dict[tuple[Node, Node], QuantizationSpecBase] | Refused:
    """The specs of what ``place`` reads."""
    edges = list(dict.fromkeys(edges))
    fixed = isinstance(specs.input, FixedQParamsQuantizationSpec)
    wanted: list[QuantizationSpecBase] = []
    if specs.reuses_input or fixed:
        # Fixed parameters are those of what an operator returns, and say nothing of what it reads.
        wanted = [written[producer].spec for producer, _ in edges if producer in written]
        if len(wanted) < max(len(edges), 1):
            known = "of its result only" if fixed else "of its input"
            return Refused(
                "float-input", f"it reads a float tensor, and its QConfig has the parameters {known}"
            )
    elif specs.input is not None:
        # Two operators that agree in all but how they observe need one observer between them, the first's.
        before = [written.get(producer) for producer, _ in edges]
        wanted = [
            each.spec if each is not None and each.serves(specs.grid) else specs.input for each in before
        ]
    if wanted and _shares(place):
        wanted[1:] = [SharedQuantizationSpec(edges[0])] * (len(wanted) - 1)
    return dict(zip(edges, wanted, strict=False))


def _shares(place: Place) -> bool:
    config = place.rule.config
    return config is not None and config.observation_type is ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT


def _output(
    place: Place, specs: Specs, read: dict[tuple[Node, Node], QuantizationSpecBase]
) -> QuantizationSpecBase | None:
    """The spec of what ``place`` returns."""
    if specs.output is None and not specs.reuses_input:
        return None
    if read and (_shares(place) or specs.reuses_input):
        return SharedQuantizationSpec(next(iter(read)))
    return specs.output


def _result(
    specs: Specs,
    output: QuantizationSpecBase,
    read: dict[tuple[Node, Node], QuantizationSpecBase],
    written: dict[Node, Written],
) -> Written:
    """What ``output`` comes to for those who read it: of shared parameters, what they are shared with."""
    if not isinstance(output, SharedQuantizationSpec):
        return Written(output, specs.grid)
    ((producer, _), spec), *_ = read.items()
    before = written.get(producer)
    return before if before is not None and before.spec is spec else Written(spec, specs.grid)


def _along_outputs(spec: QuantizationSpec | None, reader: Node) -> QuantizationSpec | None:
    """``spec`` with the channels where the weight of ``reader`` has its output channels."""
    # A QConfig serves all operators, so it says axis 0 where it means output channels.
    if spec is not None and spec.ch_axis == 0 and reader.target in _TRANSPOSED:
        return attrs.evolve(spec, ch_axis=1)
    return spec
