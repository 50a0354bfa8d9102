"""Graphs in files, as commands take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from safetensors import SafetensorError
from torch.fx import GraphModule

from ...errors import GraphTextError, OptionError
from ...ir.text import load_graph
from .file_kind import FileKind, kind_of
from .quantizing.named_object import import_user_module

__all__ = ["GRAPH_FILE", "import_option", "read_graph"]

F = TypeVar("F", bound=Callable[..., Any])

GRAPH_FILE: Final = click.Path(path_type=Path)

_ALL: Final = ("float", "prepared", "converted", "lowered")


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


def read_graph(path: Path, takes: Sequence[str] = _ALL) -> GraphModule:
    """The graph that ``save_graph`` wrote to ``path``.

    Args:
        path: the file.
        takes: which of the graphs that ``lowbit quantize --save-graphs`` writes the command is for; hints
            name them. Whether it is one of them is not looked at.

    Raises:
        OptionError: there is no such file, or none with its tensors.
        GraphTextError: it is not what ``save_graph`` writes; the hint says what takes it.
    """
    try:
        kind = kind_of(path)
        if kind.name == "graph":
            return load_graph(path)
    except OSError as error:
        raise OptionError(
            f"{error.filename or path} cannot be read: {error.strerror}",
            hint="a graph is two files: name.lowbit, and name.safetensors beside it",
        ) from error
    except UnicodeDecodeError as error:
        raise GraphTextError(f"{path} is damaged: it is no text", hint=_written_by(takes)) from error
    except SafetensorError as error:
        raise GraphTextError(
            f"the tensors of {path} cannot be read: {error}",
            hint="copy the .lowbit file and the .safetensors file beside it together, or write both anew",
        ) from error
    if kind.name == "missing":
        raise OptionError(f"there is no file {path}", hint=_written_by(takes))
    if kind.name == "folder":
        raise OptionError(f"{path} is a folder", hint=_of_folder(path, takes))
    raise GraphTextError(f"{path} is {kind}, and no saved graph", hint=_instead(path, kind, takes))


def _written_by(takes: Sequence[str]) -> str:
    return f"name a graph that lowbit quantize --save-graphs wrote: {_files(takes)}"


def _files(names: Sequence[str], folder: str = "") -> str:
    """``a.lowbit, b.lowbit or c.lowbit``."""
    *others, last = [f"{folder}{name}.lowbit" for name in names]
    return f"{', '.join(others)} or {last}" if others else last


def _of_folder(path: Path, takes: Sequence[str]) -> str:
    graphs = sorted(path.glob("*.lowbit"))
    fit = [each for each in graphs if each.stem in takes] or graphs
    return f"name a graph in it: {', '.join(map(str, fit))}" if graphs else _written_by(takes)


def _instead(path: Path, kind: FileKind, takes: Sequence[str]) -> str:
    """What to do with a file that is no graph."""
    if kind.name == "float-program":
        return (
            f"lowbit quantize {path} --save-graphs graphs writes its graphs: name {_files(takes, 'graphs/')}"
        )
    if kind.name == "converted-program":
        return (
            "its graphs are written as it is made: quantize with --save-graphs graphs, and name "
            f"{_files(takes, 'graphs/')}"
        )
    if kind.name == "tensors":
        return f"name the file of the graph, {path.with_suffix('.lowbit')}"
    if kind.name == "reproducer":
        return f"lowbit replay {path} runs its pass again"
    return _written_by(takes)
