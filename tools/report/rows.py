"""One line of the report: what a node is at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ...ir.attributes import AttributeFinder
from ...ir.location import module_path, module_stack, source_line
from ...ir.meta import ID_KEY, ORIGIN_KEY
from ...ir.schema import OpOverload, signature
from ...ir.snapshot import NodeRecord, Snapshot
from ...ir.text.short import format_arguments, format_spec, format_target, format_value

__all__ = ["NODE", "OUTPUT", "REMARK", "Row", "RowMaker"]

NODE: Final = "\ue000"
"""Stands for a node in the text of an argument: a private character, which no literal of a graph has."""
OUTPUT: Final = -1
"""In place of a node among the specs of a row: the spec of its output."""
REMARK: Final = -2
"""In place of a node among the specs of a row: a word about the annotation."""


class Row(NamedTuple):
    """A node at one moment. Nodes are told by the numbers that the report gives them, never by name."""

    name: str
    op: str
    target: str
    arguments: tuple[str, ...]
    """Each as text, in which :data:`NODE` stands for an input."""
    inputs: tuple[int, ...]
    """The inputs, in the order in which they stand in the arguments."""
    type: str
    module: str
    source: str
    specs: tuple[tuple[int, str], ...]
    """The annotation: an input, :data:`OUTPUT` or :data:`REMARK`, and the spec as text."""
    groups: str
    kernel: str
    value: str
    """Of a constant: the range of its elements."""
    body: str
    """Of a node in a nested graph: the attribute that holds the graph."""
    made_by: str
    """The pass that made the node, "" for those that the pipeline was handed."""
    made_from: int
    """The node it was made from, or -1."""


class _Mark:
    """Written in place of a node."""

    def __repr__(self) -> str:
        return NODE


_MARK: Final[Any] = _Mark()


class RowMaker:
    """Makes rows, and keeps those of nodes that did not change since.

    Args:
        key_of_id: the number of the node that has this id.
        parameters: gets the names of the arguments of each operator met, in schema order.
        kinds: gets the class of each module met, by its path.
    """

    def __init__(
        self, key_of_id: Callable[[int], int], parameters: dict[str, tuple[str, ...]], kinds: dict[str, str]
    ) -> None:
        self._key_of_id = key_of_id
        self._parameters = parameters
        self._kinds = kinds
        self._made: dict[Node, tuple[tuple[object, ...], NodeRecord, Row]] = {}
        self._sources: dict[str, str] = {}
        self._ranges: dict[int, tuple[torch.Tensor, int, str]] = {}

    def rows_of(self, gm: GraphModule, snapshot: Snapshot, body: str = "") -> Iterator[tuple[int, Row]]:
        """The rows of ``gm``, nested graphs where they are referred to, each with the number of its node."""
        find = AttributeFinder(gm).find
        for node, record in snapshot.records.items():
            value = find(str(node.target)) if record.op == "get_attr" else None
            yield self._key_of(node), self._row(node, record, value, body)
            attribute = snapshot.attributes.get(record.target) if record.op == "get_attr" else None
            if isinstance(value, GraphModule) and attribute is not None and attribute.graph is not None:
                inside = f"{body}.{record.target}" if body else str(record.target)
                yield from self.rows_of(value, attribute.graph, inside)

    def _row(self, node: Node, record: NodeRecord, value: object, body: str) -> Row:
        meta = node.meta
        state = (meta.get("val"), meta.get("nn_module_stack"), meta.get("stack_trace"), self._range(value))
        known = self._made.get(node)
        if (
            known is not None
            and all(a is b for a, b in zip(known[0], state, strict=True))
            and known[1].args is record.args
            and known[1] == record
        ):
            return known[2]
        row = self._make(node, record, state[3], body)
        self._made[node] = (state, record, row)
        return row

    def _make(self, node: Node, record: NodeRecord, value: str, body: str) -> Row:
        inputs: list[int] = []

        def mark(source: Node) -> Any:
            inputs.append(self._key_of(source))
            return _MARK

        target = format_target(record.op, record.target)
        if isinstance(record.target, OpOverload) and target not in self._parameters:
            self._parameters[target] = tuple(signature(record.target).positional)
        for call in module_stack(node.meta):
            self._kinds.setdefault(call.path, call.kind)
        maker, source = node.meta.get(ORIGIN_KEY) or ("", None)
        return Row(
            name=record.name,
            op=record.op,
            target=target,
            arguments=tuple(_arguments(record.args, record.kwargs, mark)),
            inputs=tuple(inputs),
            type=format_value(node.meta.get("val")),
            module=module_path(node.meta),
            source=self._source(node),
            specs=tuple(self._specs(record)),
            groups=record.groups or "",
            kernel=record.kernel or "",
            value=value,
            body=body,
            made_by=maker,
            made_from=-1 if source is None else self._key_of_id(source),
        )

    def _key_of(self, node: Node) -> int:
        return self._key_of_id(node.meta[ID_KEY])

    def _specs(self, record: NodeRecord) -> Iterator[tuple[int, str]]:
        if record.annotation is None:
            return
        inputs, output, sharing, annotated = record.annotation
        for source, spec in inputs:
            if spec is not None and isinstance(source, Node):
                yield self._key_of(source), format_spec(spec)
        if output is not None:
            yield OUTPUT, format_spec(output)
        if not sharing:
            yield REMARK, "no implicit sharing"
        if annotated and output is None and not inputs:
            yield REMARK, "annotated"

    def _source(self, node: Node) -> str:
        trace = node.meta.get("stack_trace") or ""
        if trace not in self._sources:
            self._sources[trace] = source_line(node.meta)
        return self._sources[trace]

    def _range(self, value: object) -> str:
        """The smallest and largest element of a tensor as text; "" for what has none."""
        if not isinstance(value, torch.Tensor) or not _is_readable(value):
            return ""
        version = 0 if value.is_inference() else value._version
        known = self._ranges.get(id(value))
        if known is None or known[0] is not value or known[1] != version:
            low, high = (float(extreme) for extreme in torch.aminmax(value.detach()))
            text = f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}"
            known = self._ranges[id(value)] = (value, version, text)
        return known[2]


def _is_readable(value: torch.Tensor) -> bool:
    # Packed weights are opaque, and meta tensors empty.
    return (
        value.layout is torch.strided
        and value.device.type != "meta"
        and value.numel() > 0
        and not value.is_complex()
        and value.dtype is not torch.bool
    )


def _arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], mark: Callable[[Node], Any]
) -> Iterator[str]:
    for argument in args:
        yield format_arguments((map_arg(argument, mark),), {})
    for name, argument in kwargs.items():
        yield format_arguments((), {name: map_arg(argument, mark)})
