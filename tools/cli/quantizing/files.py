"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ....errors import OptionError

__all__ = ["check_is_folder", "check_is_writable", "written_whole"]


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """A place to write a file to, under its own name; when that went well, what is there goes to ``path``.

    Whatever goes wrong, ``path`` is what it was. More files that were written beside it go along.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        yield draft
        # The file itself last: with it, what belongs to it is there.
        for each in sorted(Path(folder).iterdir(), key=lambda each: (each == draft, each.name)):
            os.replace(each, path.parent / each.name)


def check_is_writable(path: Path, option: str, ending: str = "") -> None:
    """See, before the work is done, that its result can be written to the file ``path``.

    Raises:
        OptionError: a folder, another ending, or a place where nothing can be written.
    """
    if path.is_dir():
        raise OptionError(f"--{option} is the folder {path}", hint="name a file")
    if not path.name.endswith(ending):
        raise OptionError(f"--{option} is {path}", hint=f"give it the ending {ending}")
    _check_place(path.parent, option)


def check_is_folder(path: Path, option: str) -> None:
    """The same of files in the folder ``path``.

    Raises:
        OptionError: a file, or a place where nothing can be written.
    """
    if path.exists() and not path.is_dir():
        raise OptionError(f"--{option} is the file {path}", hint="name a folder")
    _check_place(path, option)


def _check_place(folder: Path, option: str) -> None:
    existing = next(each for each in (folder, *folder.resolve().parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OptionError(f"--{option}: nothing can be written to {existing}", hint="name another place")
