"""The work of resolving grows as points and links do.

Executed lines of our own code are counted rather than seconds, so the result is exact.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lowbit.ir
import pytest
import torch
from lowbit.errors import SharingError
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.sharing import resolve_sharing
from lowbit.ir.specs import QuantizationSpec, SharedQuantizationSpec
from torch.fx import Graph

aten = torch.ops.aten
INT8 = QuantizationSpec(torch.int8, torch.nn.Identity)
HERE = str(Path(lowbit.ir.__path__[0]))


def fan_out(size: int) -> Graph:
    graph = Graph()
    x = graph.placeholder("x")
    set_annotation(x, QuantizationAnnotation(output_qspec=INT8))
    for _ in range(size):
        relu = graph.call_function(aten.relu.default, (x,))
        set_annotation(relu, QuantizationAnnotation({x: INT8}))
    return graph


def fan_in(size: int) -> Graph:
    graph = Graph()
    inputs = [graph.placeholder(f"x{i}") for i in range(size)]
    cat = graph.call_function(aten.cat.default, (inputs,))
    shared = SharedQuantizationSpec((inputs[-1], cat))
    specs = {**dict.fromkeys(inputs, shared), inputs[-1]: INT8}
    set_annotation(cat, QuantizationAnnotation(specs, shared))
    return graph


def chain(size: int, step: int, end: QuantizationSpec | None) -> Graph:
    """Outputs that each share with the next (step 1) or the one before (step -1)."""
    graph = Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(size)][::step]
    for node, anchor in itertools.pairwise(nodes):
        set_annotation(node, QuantizationAnnotation(output_qspec=SharedQuantizationSpec(anchor)))
    set_annotation(nodes[-1], QuantizationAnnotation(output_qspec=end))
    return graph


def comb(size: int) -> Graph:
    """A dangling chain with as many side chains as it has points."""
    graph = chain(size, 1, None)
    for node in list(graph.nodes):
        tooth = graph.call_function(aten.relu.default, (node,))
        set_annotation(tooth, QuantizationAnnotation(output_qspec=SharedQuantizationSpec(node)))
    return graph


def lines_executed(graph: Graph) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        nonlocal count
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        resolve_sharing(graph)
    except SharingError:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "make",
    [
        fan_out,
        fan_in,
        lambda size: chain(size, 1, INT8),
        lambda size: chain(size, -1, INT8),
        lambda size: chain(size, 1, None),
        lambda size: chain(size, -1, None),
        comb,
    ],
    ids=["fan-out", "fan-in", "chain", "chain-reversed", "dangling", "dangling-reversed", "dangling-comb"],
)
def test_twice_the_points_is_twice_the_work(make: Callable[[int], Graph]) -> None:
    small, large = lines_executed(make(300)), lines_executed(make(600))
    assert small > 300
    assert large <= 2.05 * small
