"""Snapshots of a graph: what changed between two moments, exactly and cheaply.

FX hooks do not see ``node.args = …``, metadata or attributes being replaced, so change is found by comparison.
A snapshot keeps references to the immutable argument tuples of the nodes; two snapshots compare by identity
first, so taking and comparing them costs about a microsecond a node.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
import torch
from torch.fx import GraphModule, Node

from .annotation import ANNOTATION_KEY, QuantizationAnnotation
from .text import format_annotation, format_arguments, format_target, format_value

__all__ = ["OWNED_META_KEYS", "NodeRecord", "Snapshot", "changed_attributes", "take_snapshot"]

OWNED_META_KEYS: Final = ("lowbit.groups", "lowbit.kernel")
"""The metadata keys besides the annotation whose change counts as a change of the graph."""


@attrs.frozen(eq=False)
class NodeRecord:
    """What one node was when the snapshot was taken."""

    name: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    annotation: tuple[Any, ...] | None
    owned_meta: tuple[Any, ...]
    value: Any  # meta["val"]: shown in text, not compared

    def same_as(self, other: NodeRecord) -> bool:
        """Whether nothing that counts differs. Tuples compare their elements by identity first."""
        return (
            self.args == other.args
            and self.kwargs == other.kwargs
            and self.target == other.target
            and self.annotation == other.annotation
            and self.owned_meta == other.owned_meta
            and self.name == other.name
            and self.op == other.op
        )

    def __str__(self) -> str:
        value = format_value(self.value)
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
        for key, value in zip(OWNED_META_KEYS, self.owned_meta, strict=True):
            if value is not None:
                line += f"  {{{key.removeprefix('lowbit.')}: {value}}}"
        return line


def _record(node: Node) -> NodeRecord:
    meta = node.meta
    annotation: QuantizationAnnotation | None = meta.get(ANNOTATION_KEY)
    return NodeRecord(
        name=node.name,
        op=node.op,
        target=node.target,
        args=node.args,
        kwargs=node.kwargs,
        annotation=None
        if annotation is None
        else (
            tuple(annotation.input_qspec_map.items()),
            annotation.output_qspec,
            annotation.allow_implicit_sharing,
            annotation._annotated,
        ),
        owned_meta=tuple(meta.get(key) for key in OWNED_META_KEYS),
        value=meta.get("val"),
    )


@attrs.frozen(eq=False)
class _Attribute:
    """A tensor or module that the graph refers to, as it was: which object, and how often written to."""

    value: object
    version: int | Snapshot

    def same_as(self, other: _Attribute) -> bool:
        if isinstance(self.version, Snapshot) and isinstance(other.version, Snapshot):
            return self.version.same_as(other.version)
        return self.value is other.value and self.version == other.version


def _attribute(gm: GraphModule, target: str) -> _Attribute | None:
    value: Any = gm
    for part in target.split("."):
        value = getattr(value, part, None)
        if value is None:
            return None
    if isinstance(value, GraphModule):
        return _Attribute(value, take_snapshot(value))
    # Tensors made under inference mode have no version counter, and cannot be written to outside of it.
    version = value._version if isinstance(value, torch.Tensor) and not value.is_inference() else 0
    return _Attribute(value, version)


@attrs.frozen(eq=False)
class Snapshot:
    """A graph at a moment: its nodes in order, what each was, and the attributes they refer to."""

    records: dict[Node, NodeRecord]
    attributes: dict[str, _Attribute | None]

    def same_as(self, other: Snapshot) -> bool:
        """Whether nothing changed between the two."""
        if len(self.records) != len(other.records) or self.attributes.keys() != other.attributes.keys():
            return False
        for (node, record), (other_node, other_record) in zip(
            self.records.items(), other.records.items(), strict=True
        ):
            if node is not other_node or not record.same_as(other_record):
                return False
        return not any(True for _ in changed_attributes(self, other))

    def lines(self) -> Iterator[str]:
        """The graph as text, a line a node."""
        return (str(record) for record in self.records.values())

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the text: equal graphs have equal digests in every process."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()


def take_snapshot(gm: GraphModule) -> Snapshot:
    """The snapshot of ``gm`` now. Subgraphs of ``cond`` and the like are part of it."""
    records = {node: _record(node) for node in gm.graph.nodes}
    targets = {r.target for r in records.values() if r.op in {"get_attr", "call_module"}}
    return Snapshot(records, {t: _attribute(gm, t) for t in sorted(targets)})


def changed_attributes(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Targets that both snapshots refer to and that hold something else now."""
    for target, old in before.attributes.items():
        if target not in after.attributes:
            continue
        new = after.attributes[target]
        if (old is None) != (new is None) or (old is not None and new is not None and not old.same_as(new)):
            yield target
