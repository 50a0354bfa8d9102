"""A graph as text in which nothing is called by name: equal texts are equal graphs, whatever their names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ...ir.annotation import get_annotation
from ...ir.attributes import find_attribute
from ...ir.specs import DerivedQuantizationSpec, QuantizationSpecBase, SharedQuantizationSpec

__all__ = ["canonical"]


def canonical(gm: GraphModule, *, annotations: bool = True) -> str:
    """``gm`` with nodes by their position and attributes by what they hold."""
    return "\n".join(_lines(gm, annotations))


def _lines(gm: GraphModule, annotations: bool) -> Iterator[str]:
    position: dict[Node, str] = {}
    modules: dict[int, int] = {}
    for index, node in enumerate(gm.graph.nodes):
        position[node] = f"%{index}"
        target: Any = node.target
        if node.op == "get_attr":
            target = _content(find_attribute(gm, str(target)))
        elif node.op == "call_module":
            module = find_attribute(gm, str(target))
            target = f"{type(module).__name__} {modules.setdefault(id(module), len(modules))}"
        elif node.op == "placeholder":
            target = ""
        arguments = map_arg((node.args, node.kwargs), lambda n: _Word(position.get(n, "?")))
        annotation = _annotation(node, position) if annotations else ""
        yield f"%{index} {node.op} {target} {arguments}{annotation}"


class _Word(str):
    """Text that is shown as it is."""

    __slots__ = ()
    __repr__ = str.__str__


def _content(value: object) -> str:
    if isinstance(value, GraphModule):
        return canonical(value)
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    plain = value.detach().contiguous()
    try:
        raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError):
        return f"{value.dtype} {tuple(value.shape)}"  # packed for a kernel: its bytes are not to be seen
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw).hexdigest()[:16]}"


def _annotation(node: Node, position: dict[Node, str]) -> str:
    annotation = get_annotation(node)
    if annotation is None:
        return ""

    def name(at: object) -> str:
        return position.get(at, "?") if isinstance(at, Node) else "?"

    def named(spec: QuantizationSpecBase | None) -> str:
        if isinstance(spec, SharedQuantizationSpec):
            point = spec.edge_or_node
            return f"as {' → '.join(map(name, point if isinstance(point, tuple) else (point,)))}"
        if isinstance(spec, DerivedQuantizationSpec):
            return f"derived, {spec.dtype}"
        return repr(spec)

    inputs = ", ".join(f"{name(n)}: {named(s)}" for n, s in annotation.input_qspec_map.items())
    return f"  [{inputs}] -> {named(annotation.output_qspec)}, {annotation.allow_implicit_sharing}"
