"""Reproducers in files, as commands take them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from ...errors import GraphInputError, OptionError
from ..bisect.replay import Reproduction, read_reproducer
from .file_kind import kind_of
from .terminal import Output

__all__ = ["REPRODUCER", "open_reproducer"]

REPRODUCER: Final = click.Path(path_type=Path)

_WRITTEN_BY: Final = "reproducers are what lowbit quantize --reproducers and lowbit opt --reproducers write"


def open_reproducer(path: Path, output: Output) -> Reproduction:
    """What is in the reproducer at ``path``; what it lacks is noted on ``output``.

    Raises:
        OptionError: there is no such file, or a folder.
        GraphInputError: it is no reproducer, or needs what is not here.
    """
    try:
        kind = kind_of(path)
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    if kind.name == "missing":
        raise OptionError(f"there is no file {path}", hint=_WRITTEN_BY)
    if kind.name == "folder":
        found = ", ".join(str(each) for each in sorted(path.glob("*.zip")))
        raise OptionError(f"{path} is a folder", hint=f"name a file in it: {found}" if found else _WRITTEN_BY)
    if kind.name != "reproducer":
        raise GraphInputError(f"{path} is {kind}, and no reproducer", hint=_WRITTEN_BY)
    reproduction = read_reproducer(path)
    if reproduction.lacks:
        output.note(f"{path} lacks {'; '.join(reproduction.lacks)}")
    return reproduction
