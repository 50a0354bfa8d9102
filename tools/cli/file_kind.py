"""What a file is, for messages about one that a command cannot take."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final, Literal, TypeAlias

import attrs

from ...ir.text.files import HEADER

__all__ = ["FileKind", "kind_of"]

_LOOKED_AT: Final = 4096
"""Bytes that tell text from other files."""


Name: TypeAlias = Literal[
    "missing",
    "folder",
    "empty",
    "graph",
    "tensors",
    "float-program",
    "converted-program",
    "package",
    "reproducer",
    "arrays",
    "torch-save",
    "text",
    "other",
]

_IN_WORDS: Final[dict[Name, str]] = {
    "missing": "not there",
    "folder": "a folder",
    "empty": "an empty file",
    "graph": "a saved graph",
    "tensors": "the tensors of a graph, without the graph",
    "float-program": "a float program, as torch.export.save writes it",
    "converted-program": "a converted program, as lowbit quantize --output writes it",
    "package": "a package that AOTInductor compiled, as lowbit quantize --package writes it",
    "reproducer": "a reproducer of a pass that failed",
    "arrays": "a file of arrays, as numpy.savez writes it",
    "torch-save": "what torch.save writes",
    "text": "a text file of another kind",
    "other": "a binary file of another kind, or a damaged one",
}


@attrs.frozen
class FileKind:
    """What lies at a path.

    Args:
        name: one word for it.
    """

    name: Name

    def __str__(self) -> str:
        """What stands behind "is"."""
        return _IN_WORDS[self.name]


def kind_of(path: Path) -> FileKind:
    """What lies at ``path``, by its content.

    Raises:
        OSError: it cannot be read.
    """
    if not path.exists():
        return FileKind("missing")
    return FileKind("folder" if path.is_dir() else _of_file(path))


def _of_file(path: Path) -> Name:
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    if not start:
        return "empty"
    if start.startswith(HEADER):
        return "graph"
    if path.suffix == ".safetensors":
        return "tensors"
    if start.startswith(b"PK") and zipfile.is_zipfile(path):
        return _of_archive(path)
    return "text" if _is_text(start) else "other"


def _of_archive(path: Path) -> Name:
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        program = next((name for name in names if name.endswith("/models/model.json")), None)
        if program is not None:
            return "converted-program" if b"quantized_decomposed" in file.read(program) else "float-program"
    found: tuple[tuple[Name, bool], ...] = (
        ("package", any("/data/aotinductor/" in name for name in names)),
        ("reproducer", {"about.json", "graph.lowbit"} <= set(names)),
        ("arrays", all(name.endswith(".npy") for name in names)),
        ("torch-save", any(name.endswith("/data.pkl") for name in names)),
    )
    for name, is_it in found:
        if is_it:
            return name
    return "other"


def _is_text(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut off.
        return len(start) == _LOOKED_AT and error.start > _LOOKED_AT - 4
    return b"\0" not in start
