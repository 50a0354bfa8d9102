"""What a text is parsed into: values, each with the place it was read from."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = [
    "Call",
    "Entry",
    "Items",
    "Leaf",
    "Literal",
    "Mapping",
    "Name",
    "NodeName",
    "Operation",
    "TensorType",
    "Tree",
]


@attrs.frozen
class Literal:
    """A number, text, True, False or None."""

    value: Any
    at: int


@attrs.frozen
class Name:
    """``f32``, ``torch.strided``, ``module:qualified.name``."""

    name: str
    at: int


@attrs.frozen
class NodeName:
    """``%x``"""

    name: str
    at: int


@attrs.frozen
class Entry:
    """``#3`` of the table of specs, ``@3`` of places, ``&3`` of frames."""

    table: str
    index: int
    at: int


@attrs.frozen
class Leaf:
    """``*``"""

    at: int


@attrs.frozen
class Items:
    """``[a, b]`` or ``(a, b)``; ``kind`` is the opening bracket."""

    kind: str
    items: tuple[Tree, ...]
    at: int


@attrs.frozen
class Mapping:
    """``{a: b}``"""

    items: tuple[tuple[Tree, Tree], ...]
    at: int


@attrs.frozen
class Call:
    """``name(a, b, key=c)``"""

    name: str
    args: tuple[Tree, ...]
    keywords: tuple[tuple[str, Tree], ...]
    at: int


@attrs.frozen
class TensorType:
    """``f32[2, s0]{device: "cpu"}``"""

    dtype: Name
    shape: tuple[Tree, ...]
    options: Mapping | None
    at: int


@attrs.frozen
class Operation:
    """``a + b`` and the like, in sizes."""

    operator: str
    left: Tree
    right: Tree
    at: int


Tree = Literal | Name | NodeName | Entry | Leaf | Items | Mapping | Call | TensorType | Operation
