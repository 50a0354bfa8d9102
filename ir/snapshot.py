"""Snapshots of a graph: what changed between two moments, exactly and cheaply.

FX hooks do not see ``node.args = …``, metadata or attributes being replaced, so change is found by
comparison. A snapshot keeps references to the immutable argument tuples of the nodes; two snapshots compare
by identity first, so taking and comparing them costs about a microsecond a node.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import attrs
import torch
from torch.fx import GraphModule, Node

from .annotation import QuantizationAnnotation
from .attributes import AttributeFinder
from .meta import ANNOTATION_KEY, GROUPS_KEY, ID_KEY, KERNEL_KEY
from .text import format_annotation, format_arguments, format_target, format_value

__all__ = [
    "GROUPS_KEY",
    "KERNEL_KEY",
    "NodeRecord",
    "Snapshot",
    "changed_attributes",
    "take_snapshot",
    "written_attributes",
]


_REFERRING: Final = ("get_attr", "call_module")


class NodeRecord(NamedTuple):
    """What one node was when the snapshot was taken.

    A plain tuple: there are as many as nodes times passes, and tuples compare their elements by identity
    first.
    """

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    annotation: tuple[Any, ...] | None
    groups: str | None
    kernel: str | None
    id: int | None
    """Who the node is (see :mod:`.provenance`), None before the first pass."""

    def same_as(self, other: NodeRecord) -> bool:
        """Whether nothing that counts differs."""
        if self != other:
            return False
        if self.args is other.args and self.kwargs is other.kwargs:
            return True
        # 1 == 1.0 == True, but they are different arguments.
        return format_arguments(self.args, self.kwargs) == format_arguments(other.args, other.kwargs)

    def identified(self, identity: int) -> NodeRecord:
        """The record of a node whose id is ``identity``."""
        return tuple.__new__(NodeRecord, (*self[:-1], identity))

    def text(self, node: Node) -> str:
        """The record as a line; the type shown is the one ``node`` has now, which passes do not change."""
        value = format_value(node.meta.get("val"))
        line = f"%{self.name}{': ' + value if value else ''} = "
        arguments = format_arguments(self.args, self.kwargs)
        if self.op in {"placeholder", "get_attr"}:
            line += f"{self.op} {self.target}"
        elif self.op == "output":
            line = f"return {arguments}"
        else:
            line += f"{format_target(self.op, self.target)}({arguments})"
        if self.annotation is not None:
            line += "  " + format_annotation(*self.annotation)
        if self.groups is not None:
            line += f"  {{groups: {self.groups}}}"
        if self.kernel is not None:
            line += f"  {{kernel: {self.kernel}}}"
        return line


def _annotation(annotation: object) -> tuple[Any, ...] | None:
    # What is no annotation of lowbit is for others to report; here it is nothing.
    if not isinstance(annotation, QuantizationAnnotation):
        return None
    return (
        tuple(annotation.input_qspec_map.items()),
        annotation.output_qspec,
        annotation.allow_implicit_sharing,
        annotation._annotated,
    )


def _record(node: Node) -> NodeRecord:
    meta = node.meta
    annotation = meta.get(ANNOTATION_KEY)
    # As NodeRecord(…) does, without a function call: there are as many as nodes times passes.
    return tuple.__new__(
        NodeRecord,
        (
            node.name,
            node.op,
            node.target,
            node.args,
            node.kwargs,
            None if annotation is None else _annotation(annotation),
            meta.get(GROUPS_KEY),
            meta.get(KERNEL_KEY),
            meta.get(ID_KEY),
        ),
    )


class _Attribute(NamedTuple):
    """What the graph refers to, as it was: which object, its tensors, how often each was written to.

    A plain tuple like :class:`NodeRecord`, but not to be compared: tensors have no ``==``.
    """

    value: object
    tensors: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]
    graph: Snapshot | None

    def same_as(self, other: _Attribute) -> bool:
        if self.graph is not None and other.graph is not None:
            return self.graph.same_as(other.graph)
        return self.value is other.value and self.versions == other.versions and self._same_tensors(other)

    def equals(self, other: _Attribute) -> bool:
        """Whether the two, of different modules, hold the same values."""
        return (
            type(self.value) is type(other.value)
            and len(self.tensors) == len(other.tensors)
            and all(map(_equal, self.tensors, other.tensors))
        )

    def written_since(self, other: _Attribute) -> bool:
        """Whether a tensor that both hold was written into between ``other`` and now."""
        if self.graph is not None and other.graph is not None:
            return any(True for _ in written_attributes(other.graph, self.graph))
        return self._same_tensors(other) and self.versions != other.versions

    def _same_tensors(self, other: _Attribute) -> bool:
        return len(self.tensors) == len(other.tensors) and all(map(operator.is_, self.tensors, other.tensors))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))


def _attribute(value: object | None) -> _Attribute | None:
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return _Attribute(value, (value,), (_version(value),), None)
    if isinstance(value, GraphModule):
        return _Attribute(value, (), (), take_snapshot(value))
    tensors: list[torch.Tensor] = []
    if isinstance(value, torch.nn.Module):
        # By hand, since parameters() and buffers() take ten times as long.
        modules = [value]
        for module in modules:
            for table in (module._parameters, module._buffers):
                tensors += [tensor for tensor in table.values() if tensor is not None]
            modules += [child for child in module._modules.values() if child is not None]
    return _Attribute(value, tuple(tensors), tuple([_version(tensor) for tensor in tensors]), None)


def _version(tensor: torch.Tensor) -> int:
    # Tensors made under inference mode have no version counter, and cannot be written to outside of it.
    return 0 if tensor.is_inference() else tensor._version


@attrs.frozen(eq=False)
class Snapshot:
    """A graph at a moment: its nodes in order, what each was, and the attributes they refer to."""

    records: dict[Node, NodeRecord]
    attributes: dict[str, _Attribute | None]

    def same_as(self, other: Snapshot) -> bool:
        """Whether nothing changed between the two."""
        if len(self.records) != len(other.records) or self.attributes.keys() != other.attributes.keys():
            return False
        if list(self.records) != list(other.records):
            return False
        if not all(map(NodeRecord.same_as, self.records.values(), other.records.values())):
            return False
        return not any(True for _ in changed_attributes(self, other))

    def lines(self) -> Iterator[str]:
        """The graph as text, a line a node."""
        return (record.text(node) for node, record in self.records.items())

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the text: equal graphs have equal digests in every process."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()


def take_snapshot(gm: GraphModule) -> Snapshot:
    """The snapshot of ``gm`` now. Subgraphs of ``cond`` and the like are part of it."""
    records = {node: _record(node) for node in gm.graph.nodes}
    targets = {r.target for r in records.values() if r.op in _REFERRING}
    find = AttributeFinder(gm).find
    return Snapshot(records, {t: _attribute(find(t)) for t in sorted(targets)})


def changed_attributes(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Targets that both snapshots refer to and that hold something else now."""
    for target, old in before.attributes.items():
        if target in after.attributes:
            new = after.attributes[target]
            same = old is new if old is None or new is None else new.same_as(old)
            if not same:
                yield target


def written_attributes(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Targets whose tensors were not replaced but written into."""
    for target, old in before.attributes.items():
        new = after.attributes.get(target)
        if old is not None and new is not None and new.written_since(old):
            yield target
