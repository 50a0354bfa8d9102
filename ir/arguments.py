"""The arguments of a node, taken apart: the nodes it reads, and what stands around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch.fx import Node
from torch.fx.node import map_arg

from .snapshot import NodeRecord
from .text.short import format_arguments

__all__ = ["inputs", "literals", "shape"]


class _Mark:
    """Written in place of a node, so that no literal is taken for one."""

    def __repr__(self) -> str:
        return "%"


_MARK: Final[Any] = _Mark()


def inputs(record: NodeRecord) -> list[Node]:
    """The nodes among the arguments, in order, each as often as it stands there."""
    found: list[Node] = []
    map_arg((record.args, dict(record.kwargs)), found.append)  # pyright: ignore[reportArgumentType]
    return found


def shape(record: NodeRecord) -> str:
    """The arguments as text, with the same mark for every node."""
    args, kwargs = map_arg((record.args, dict(record.kwargs)), lambda _: _MARK)  # pyright: ignore[reportArgumentType]
    return format_arguments(args, kwargs)


def literals(record: NodeRecord) -> list[str]:
    """The arguments that are no nodes, as text: 1, 1.0 and True are three."""
    return [*_literals(record.args), *_literals(record.kwargs)]


def _literals(argument: Any) -> Iterator[str]:
    if isinstance(argument, Node):
        return
    if isinstance(argument, (list, tuple)):
        for item in argument:
            yield from _literals(item)
    elif isinstance(argument, slice):
        yield from _literals((argument.start, argument.stop, argument.step))
    elif isinstance(argument, Mapping):
        for key, item in argument.items():
            yield repr(key)
            yield from _literals(item)
    else:
        yield repr(argument)
