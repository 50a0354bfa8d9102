"""The same text of groups, reasons and errors under any hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import sys
import torch
from lowbit.errors import SharingError
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.sharing import resolve_sharing
from lowbit.ir.specs import DerivedQuantizationSpec, QuantizationSpec, SharedQuantizationSpec
from torch.fx import Graph

sys.stdout.reconfigure(encoding="utf-8")
aten = torch.ops.aten
palette = [QuantizationSpec(torch.int8, torch.nn.Identity, low, 127) for low in (-128, -127, -126)]
derive = len

def make(broken):
    graph = Graph()
    nodes = [graph.placeholder(f"tensor{i}") for i in range(6)]
    for i in range(60):
        inputs = [nodes[-1], nodes[-(i % 5 + 2)], nodes[i % 4]]
        nodes.append(graph.call_function(aten.cat.default, (inputs,), name=f"op{i * i % 97}_{i}"))
    for i, node in enumerate(nodes):
        inputs = {n: palette[(i + j) % 3] for j, n in enumerate(reversed(node.all_input_nodes))}
        output = palette[i % 3] if i % 4 else SharedQuantizationSpec(nodes[(i * 7 + 1) % 66])
        if i % 11 == 5:
            output = DerivedQuantizationSpec([nodes[i - 1], nodes[i - 2]], derive, torch.int32)
        if not broken and isinstance(output, SharedQuantizationSpec):
            output = SharedQuantizationSpec(nodes[i - 1 if i else 3])
        if broken and i % 13 == 2:
            output = None
        if broken and i % 17 == 3:
            output = DerivedQuantizationSpec([nodes[(i + 17) % 66]], derive, torch.int32)
        set_annotation(node, QuantizationAnnotation(inputs, output))
        if broken and i % 5:
            dtype = (torch.float32, torch.float16, torch.int64)[i % 3]
            node.meta["val"] = torch.empty(2, dtype=dtype)
    return graph, nodes

graph, nodes = make(False)
result = resolve_sharing(graph)
print(result)
print([group.index for group in result.creation_order])
for group in result.groups:
    print(result.explain(group.points[0], group.points[-1]))
try:
    resolve_sharing(make(True)[0])
except SharingError as error:
    print(error)
"""


def test_texts_do_not_depend_on_the_hash_seed() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for seed in ("0", "1", "4242")
    ]
    texts: list[str] = []
    for run in runs:
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        texts.append(out)
    first, *others = texts
    for part in (
        "group 3:",
        "(implicit)",
        "(explicit)",
        "problems with the sharing",
        ": a cycle",
        "not annotated",
    ):
        assert part in first
    assert "one scale for what differs" in first
    assert all(other == first for other in others)
