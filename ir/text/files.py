"""Graph modules in files: the text, and the tensors beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from safetensors.torch import load
from torch.fx import GraphModule

from ...errors import GraphInputError, GraphTextError
from .reader import parse
from .tensors import to_bytes
from .writer import to_tensors, to_text

__all__ = ["HEADER", "check_graph_path", "load_graph", "save_graph"]

HEADER: Final = b"lowbit-graph "
"""What the file of a graph begins with."""


def save_graph(gm: GraphModule, path: str | Path) -> Path:
    """Write ``gm`` to ``path``, and its tensors to a file beside it.

    That is ``model.safetensors`` for ``model.lowbit``, and ``model.v1.safetensors`` for ``model.v1``. Every
    stage can be saved, also half calibrated. Equal graph modules give equal bytes.

    Args:
        gm: a graph module; it is not changed.
        path: the file of the text, ``model.lowbit`` say.

    Returns:
        ``path``.

    Raises:
        GraphInputError: as of :func:`check_graph_path`, or ``gm`` is not a graph module.
        UnsupportedError: something that the files cannot hold; see :func:`~lowbit.ir.text.to_text`.
    """
    check_graph_path(path)
    path, beside = _files(path)
    text, tensors = to_text(gm), to_bytes(to_tensors(gm))
    beside.write_bytes(tensors)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def check_graph_path(path: str | Path) -> None:
    """See that a graph can be saved to ``path`` without touching the tensors of another.

    Raises:
        GraphInputError: ``path`` ends in ``.safetensors``; or it is ``model.lowbit`` and there is a graph
            ``model``, whose tensors have the same file, or the other way around.
    """
    path, beside = _files(path)
    if path.suffix == ".safetensors":
        raise GraphInputError(
            f"{path} is where the tensors would go",
            hint="name the file of the text, model.lowbit say; the tensors go beside it",
        )
    other = path.with_suffix("") if path.suffix == ".lowbit" else path.with_name(f"{path.name}.lowbit")
    if beside.exists() and other.is_file():
        with other.open("rb") as file:
            is_graph = file.read(len(HEADER)) == HEADER
        if is_graph:
            raise GraphInputError(
                f"the tensors of {path} would replace those of {other}, which are in {beside}",
                hint="choose another name",
            )


def load_graph(path: str | Path) -> GraphModule:
    """Read what :func:`save_graph` wrote to ``path``. No code is evaluated or imported for it.

    Raises:
        GraphTextError: the text does not parse, names what the process has not loaded, or does not fit the
            tensors beside it.
        FileNotFoundError: one of the two files is not there.
    """
    path, beside = _files(path)
    text = path.read_text(encoding="utf-8")
    try:
        return parse(text, load(beside.read_bytes()))
    except GraphTextError as error:
        error.where = (str(path), *error.where)
        raise


def _files(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    # Only this ending is left out: model.v1 and model.v2 have tensors of their own.
    stem = path.stem if path.suffix == ".lowbit" else path.name
    return path, path.with_name(f"{stem}.safetensors")
