"""Graph modules in files: the text, and the tensors beside it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load
from torch.fx import GraphModule

from ...errors import GraphInputError, GraphTextError
from .reader import parse
from .tensors import to_bytes
from .writer import to_tensors, to_text

__all__ = ["load_graph", "save_graph"]


def save_graph(gm: GraphModule, path: str | Path) -> Path:
    """Write ``gm`` to ``path``, and its tensors to a file of the same name that ends in ``.safetensors``.

    Every stage can be saved, also half calibrated. Equal graph modules give equal bytes.

    Args:
        gm: a graph module; it is not changed.
        path: the file of the text, ``model.lowbit`` say.

    Returns:
        ``path``.

    Raises:
        GraphInputError: ``path`` ends in ``.safetensors`` itself, or ``gm`` is not a graph module.
        UnsupportedError: something that the files cannot hold; see :func:`~lowbit.ir.text.to_text`.
    """
    path, beside = _files(path)
    text, tensors = to_text(gm), to_bytes(to_tensors(gm))
    beside.write_bytes(tensors)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


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
    beside = path.with_suffix(".safetensors")
    if beside == path:
        raise GraphInputError(
            f"{path} is where the tensors would go",
            hint="name the file of the text, model.lowbit say; the tensors go beside it",
        )
    return path, beside
