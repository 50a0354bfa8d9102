"""Files that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ....errors import OptionError

__all__ = ["check_is_folder", "check_is_writable", "written_whole"]


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """A place to write a file to, under its own name; when that went well, what is there goes to ``path``.

    Whatever goes wrong, ``path`` is what it was. More files that were written beside it go along. A symbolic
    link stays one: the file that it leads to is written.

    Raises:
        OptionError: there is something that is no file: a folder, a device, a pipe.
    """
    _check_is_file(path, "the output")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        yield draft
        # The file itself last: with it, what belongs to it is there.
        drafts = sorted(Path(folder).iterdir(), key=lambda each: (each == draft, each.name))
        for each in drafts:
            _check_is_file(path.parent / each.name, "the output")
        for each in drafts:
            _put(each, path.parent / each.name)


def check_is_writable(path: Path, option: str, ending: str = "") -> None:
    """See, before the work is done, that its result can be written to the file ``path``.

    Raises:
        OptionError: a folder, another ending, or a place where nothing can be written.
    """
    _check_is_file(path, f"--{option}")
    if not path.name.endswith(ending):
        raise OptionError(f"--{option} is {path}", hint=f"give it the ending {ending}")
    _check_place(_end_of_links(path).parent, option)


def check_is_folder(path: Path, option: str) -> None:
    """The same of files in the folder ``path``.

    Raises:
        OptionError: a file, or a place where nothing can be written.
    """
    if path.exists() and not path.is_dir():
        raise OptionError(f"--{option} is the file {str(path)!r}", hint="name a folder")
    _check_place(path, option)


def _check_is_file(path: Path, what: str) -> None:
    if path.is_dir():
        raise OptionError(f"{what} is the folder {str(path)!r}", hint="name a file")
    # What is put in the place of a device or a pipe would take it away from all who use it.
    if path.exists() and not path.is_file():
        raise OptionError(f"{what} is {path}, a device, a pipe or a socket", hint="name a file")


def _end_of_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _put(draft: Path, path: Path) -> None:
    """Move ``draft`` to ``path`` in one step."""
    if not path.is_symlink():
        os.replace(draft, path)
        return
    # Where the link leads to may be another disk, and only moves within one are one step.
    end = _end_of_links(path)
    end.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{end.name}.", dir=end.parent) as folder:
        os.replace(shutil.move(draft, Path(folder) / end.name), end)


def _check_place(folder: Path, option: str) -> None:
    existing = next(each for each in (folder, *folder.resolve().parents) if each.exists())
    try:
        # Rights do not tell all: root has them everywhere, in /proc too.
        with tempfile.TemporaryDirectory(prefix=".lowbit-", dir=existing):
            pass
    except OSError as error:
        raise OptionError(
            f"--{option}: nothing can be written to {existing} ({error.strerror})", hint="name another place"
        ) from error
