"""Graphs in files, as commands take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from safetensors import SafetensorError
from torch.fx import GraphModule

from ...errors import GraphTextError, OptionError
from ...ir.text import load_graph
from .quantizing.named_object import import_user_module

__all__ = ["GRAPH_FILE", "import_option", "read_graph"]

F = TypeVar("F", bound=Callable[..., Any])

GRAPH_FILE: Final = click.Path(path_type=Path)


def import_option(command: F) -> F:
    """Give a command ``--import``, of modules that register passes, operators or observers."""

    def import_all(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> None:
        for name in names:
            import_user_module(name)

    return click.option(
        "--import",
        multiple=True,
        metavar="MODULE",
        expose_value=False,
        is_eager=True,
        callback=import_all,
        help="Import a module first: one that registers passes of yours, or has what the graph names. May be "
        "repeated.",
    )(command)


def read_graph(path: Path) -> GraphModule:
    """The graph that ``save_graph`` wrote to ``path``.

    Raises:
        OptionError: there is no such file, or none with its tensors.
        GraphTextError: it is not what ``save_graph`` writes.
    """
    try:
        return load_graph(path)
    except OSError as error:
        raise OptionError(
            f"{error.filename or path} cannot be read: {error.strerror}",
            hint="graphs are what save_graph and lowbit quantize --save-graphs write, with the .safetensors "
            "file beside each",
        ) from error
    except (UnicodeDecodeError, SafetensorError) as error:
        raise GraphTextError(
            f"{path} is no saved graph: {error}",
            hint="write it with lowbit.ir.text.save_graph or lowbit quantize --save-graphs",
        ) from error
