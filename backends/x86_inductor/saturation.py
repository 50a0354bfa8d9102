"""Sums that overflow: what oneDNN's int8 kernels do on CPUs without VNNI.

There they multiply with ``vpmaddubsw``, which adds two products of uint8 and int8 in int16 and saturates.
Ranges that cannot get so far are exact on every CPU.
"""

from __future__ import annotations

import warnings
from typing import Final

import torch
from torch.fx import Graph, Node

from ...errors import SaturationWarning
from ...ir.annotation import get_annotation
from ...ir.specs import QuantizationSpec, dtype_range
from ...matchers.operator_pattern import KernelCall, Refusal
from .cpu import has_vnni

__all__ = ["refuses_saturation", "saturates", "warn_of_saturation"]

_INT16_MAX: Final = 2**15 - 1

Range = tuple[int, int]
"""Smallest and largest quantized value."""


def saturates(activation: Range, weight: Range) -> bool:
    """Whether two products of ``activation`` (uint8) and ``weight`` (int8) may exceed int16 together.

    That is 2 · max activation · max |weight| > 2¹⁵ − 1.
    """
    return 2 * activation[1] * max(-weight[0], weight[1]) > _INT16_MAX


def refuses_saturation(call: KernelCall) -> Refusal | None:
    """None, or that the kernel would saturate with these ranges on this CPU."""
    x, weight = call.quantized("x"), call.quantized("weight")
    if not saturates((x.quant_min, x.quant_max), (weight.quant_min, weight.quant_max)) or has_vnni():
        return None
    return Refusal(
        "saturates-without-vnni",
        f"activations up to {x.quant_max} overflow on this CPU, which has no VNNI",
    )


def warn_of_saturation(graph: Graph) -> None:
    """Warn, once for the graph, of annotations that no kernel takes on this CPU."""
    if has_vnni():
        return
    count = sum(_is_annotated_to_saturate(node) for node in graph.nodes)
    if count:
        warnings.warn(
            SaturationWarning(
                f"{count} {'operator is' if count == 1 else 'operators are'} annotated with ranges that "
                "overflow in int8 kernels on this CPU, which has no VNNI; lowering will leave "
                f"{'it' if count == 1 else 'them'} float here. Use the preset static-7-bit, in Python "
                "get_default_x86_inductor_quantization_config(reduce_range=True): activations have 7 bits."
            ),
            stacklevel=2,
        )


def _is_annotated_to_saturate(node: Node) -> bool:
    annotation = get_annotation(node)
    specs = annotation.input_qspec_map.values() if annotation is not None else ()
    ranges = {spec.dtype: _range(spec) for spec in specs if isinstance(spec, QuantizationSpec)}
    activation, weight = ranges.get(torch.uint8), ranges.get(torch.int8)
    return activation is not None and weight is not None and saturates(activation, weight)


def _range(spec: QuantizationSpec) -> Range | None:
    if spec.quant_min is not None and spec.quant_max is not None:
        return spec.quant_min, spec.quant_max
    return dtype_range(spec.dtype)
