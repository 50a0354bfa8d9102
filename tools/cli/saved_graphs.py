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
from .file_kind import FileKind, kind_of
from .quantizing.named_object import import_user_module

__all__ = ["GRAPH_FILE", "import_option", "read_graph"]

F = TypeVar("F", bound=Callable[..., Any])

GRAPH_FILE: Final = click.Path(path_type=Path)

_WRITTEN_BY: Final = (
    "name a graph that lowbit quantize --save-graphs wrote: float.lowbit, prepared.lowbit, converted.lowbit "
    "or lowered.lowbit"
)


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
        raise GraphTextError(f"{path} is damaged: it is no text", hint=_WRITTEN_BY) from error
    except SafetensorError as error:
        raise GraphTextError(
            f"the tensors of {path} cannot be read: {error}",
            hint="copy the .lowbit file and the .safetensors file beside it together, or write both anew",
        ) from error
    if kind.name == "missing":
        raise OptionError(f"there is no file {path}", hint=_WRITTEN_BY)
    if kind.name == "folder":
        raise OptionError(f"{path} is a folder", hint=_of_folder(path))
    raise GraphTextError(f"{path} is {kind}, and no saved graph", hint=_instead(path, kind))


def _of_folder(path: Path) -> str:
    graphs = sorted(each for each in path.iterdir() if each.suffix == ".lowbit")
    return f"name a graph in it: {', '.join(map(str, graphs))}" if graphs else _WRITTEN_BY


def _instead(path: Path, kind: FileKind) -> str:
    """What to do with a file that is no graph."""
    if kind.name == "float-program":
        return f"lowbit quantize {path} --save-graphs graphs writes its graphs"
    if kind.name == "converted-program":
        return (
            "the program does not hold what was decided: quantize with --save-graphs graphs, and name "
            "graphs/converted.lowbit or graphs/lowered.lowbit"
        )
    if kind.name == "tensors":
        return f"name the file of the graph, {path.with_suffix('.lowbit')}"
    if kind.name == "reproducer":
        return f"lowbit replay {path} runs its pass again"
    return _WRITTEN_BY
