"""What the choice between int8 and float is made by: times of regions, and of the loops around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs
import torch
from torch.fx import Node

from ...ir import quantized_decomposed as qd
from .measured_costs import LoopTimes
from .placement import Link, Times
from .regions import Region, elements

__all__ = ["costs"]

_MARGIN: Final = 1.1
"""Float has to be faster by more than what a measurement may be off."""


def costs(regions: Sequence[Region], loops: LoopTimes) -> tuple[dict[str, Times], list[Link]]:
    """What the choice is made by: times of operators, with the loops that each has anyway, and links."""
    region_of = {node: region for region in regions for node in region.nodes}
    times = {r.name: attrs.evolve(r.times, float32=_MARGIN * r.times.float32) for r in regions}
    links: list[Link] = []

    def add(name: str, *, int8: float = 0.0, float32: float = 0.0) -> None:
        times[name] = Times(times[name].int8 + int8, times[name].float32 + float32)

    for region in regions:
        for quantize in _read(region):
            for maker in _makers(quantize):
                size = elements(maker)
                source = region_of.get(maker)
                if source is None:
                    # Some loop makes it, and rounds it as well.
                    add(region.name, int8=size * (loops.quantizing - loops.plain))
                    add(region.name, float32=size * (loops.rounding - loops.plain))
                elif source is not region:
                    links.append(
                        Link(
                            source.name,
                            region.name,
                            to_float=size * loops.dequantizing,
                            to_int8=size * loops.quantizing,
                            in_float=size * loops.rounding,
                        )
                    )
        for size in _read_by_loops(region, region_of):
            add(region.name, int8=size * (loops.dequantizing - loops.plain))
            add(region.name, float32=size * (loops.rounding - loops.plain))
    return times, links


def _read(region: Region) -> list[Node]:
    """What quantizes the activations that a region reads in low precision, each once."""
    weights = {weight for _, weight in region.weights}
    read = [source for node in region.nodes for source in node.all_input_nodes if qd.is_dequantize(source)]
    found = [source.args[0] for source in read if source not in weights]
    return list(dict.fromkeys(node for node in found if isinstance(node, Node)))


def _makers(quantize: Node) -> Iterator[Node]:
    """What computed the tensors that ``quantize`` reads, past what only moves values in low precision."""
    if qd.is_quantize(quantize) or qd.is_dequantize(quantize) or _moves(quantize):
        for source in quantize.all_input_nodes:
            if isinstance(source.meta.get("val"), torch.Tensor) and source.op != "get_attr":
                yield from _makers(source)
    else:
        yield quantize


def _moves(node: Node) -> bool:
    """Whether ``node`` reads tensors of one scale in low precision and returns their values as they are."""
    sources = node.all_input_nodes
    if not sources or not all(map(qd.is_dequantize, sources)) or not all(map(qd.is_quantize, node.users)):
        return False
    return len({n.args[1:] for n in (*sources, *node.users)}) == 1


def _read_by_loops(region: Region, region_of: Mapping[Node, Region]) -> Iterator[int]:
    """The sizes of what others than regions read of what the region writes in low precision."""
    for quantize in dict.fromkeys(user for node in region.nodes for user in node.users):
        for dequantize in quantize.users if qd.is_quantize(quantize) else ():
            for reader in dequantize.users:
                if reader not in region_of and not _moves(reader) and reader.op != "output":
                    yield elements(dequantize)
