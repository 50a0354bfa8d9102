"""Pickling: ``torch.save`` and ``pickle`` write the graph modules of lowbit as text and tensors.

FX pickles the code of a graph module and traces it again, which loses observers, metadata and decisions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from ..graph_module import ExportedGraphModule
from .reader import parse_around
from .writer import take_apart

__all__ = ["load_pickled", "reduce_graph_module"]


def reduce_graph_module(gm: GraphModule) -> tuple[Callable[..., GraphModule], tuple[Any, ...]]:
    """What :meth:`object.__reduce__` returns for ``gm``.

    Tensors are left to the pickler, so that an optimizer pickled with the model still holds its parameters.

    Raises:
        UnsupportedError: something that text cannot hold: a lambda, a hook, the packed weight of a kernel.
    """
    parts = take_apart(gm)
    return load_pickled, (parts.text, dict(parts.tensors), parts.imports)


def load_pickled(text: str, tensors: dict[str, Tensor], imports: tuple[str, ...]) -> GraphModule:
    """The graph module that :func:`reduce_graph_module` took apart."""
    for name in imports:
        importlib.import_module(name)
    return parse_around(text, tensors)


# Text is made of these modules and makes them, so it is text that knows them, and not the other way round.
ExportedGraphModule.reduce = staticmethod(reduce_graph_module)
