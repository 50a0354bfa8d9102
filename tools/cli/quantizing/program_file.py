"""Programs of torch.export in files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch.export import ExportedProgram

from ....errors import GraphInputError, OptionError
from ..file_kind import FileKind, kind_of
from .named_object import first_line
from .torch_messages import torch_kept_quiet

__all__ = ["check_is_program", "load_program"]

_WRITE: Final = "write it with torch.export.save(torch.export.export(model.eval(), inputs), path)"


def check_is_program(path: Path) -> None:
    """See that there is a program to load, before anything else is done.

    Raises:
        OptionError: there is no such file, or a folder.
        GraphInputError: the file is of another kind.
    """
    try:
        kind = kind_of(path)
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    if kind.name == "missing":
        raise OptionError(f"there is no file {path}", hint="check its path")
    if kind.name == "folder":
        raise OptionError(f"{path} is a folder", hint="name a .pt2 file, or package.module:build")
    if not kind.name.endswith("-program"):
        raise GraphInputError(f"{path} is {kind}, and no program", hint=_instead(path, kind))


def load_program(path: Path) -> ExportedProgram:
    """What ``torch.export.save`` wrote to ``path``.

    Raises:
        GraphInputError: it cannot be read.
    """
    with torch_kept_quiet() as kept:
        try:
            program = torch.export.load(path)
        # What a broken file raises is not documented: errors of zip, of JSON, of tensors.
        except Exception as error:
            causes = [record.exc_info[1] for record in kept.records if record.exc_info]
            cause = next((cause for cause in causes if cause is not None), error)
            raise GraphInputError(
                f"torch.export.load cannot read {path}: {first_line(cause)}", hint=_WRITE
            ) from error
    kept.tell()
    return program


def _instead(path: Path, kind: FileKind) -> str:
    """What to do with a file that is no program."""
    if path.suffix == ".py":
        return f"name a function in it: {path.stem}:build, which returns a module and example inputs"
    if kind.name in ("graph", "tensors"):
        return (
            "name what it was made of, package.module:build or a .pt2 file; lowbit opt runs passes on graphs"
        )
    if kind.name == "package":
        return "torch._inductor.aoti_load_package runs it; to quantize anew, name the float model"
    if kind.name == "torch-save":
        return f"a module or a state_dict has no graph: {_WRITE}"
    return _WRITE
