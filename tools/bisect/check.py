"""Checks: what says whether a model is good."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from torch.fx import GraphModule

from ...errors import GraphInputError, UnsupportedError
from ...ir.text import save_graph

__all__ = ["Check", "script_check"]

Check: TypeAlias = Callable[[GraphModule], bool]
"""Says whether a model is good. It is handed a copy that it may run. Raising means no."""

_CANNOT_RUN: Final = (125, 126, 127)
"""By convention of shells and of ``git bisect run``: "cannot say", "may not be run", "not found"."""


def script_check(command: Sequence[str]) -> Check:
    """A check that runs ``command`` with the file of the model behind its arguments: exit code 0 means good.

    The script reads the model with ``lowbit.ir.text.load_graph(sys.argv[-1])``.

    Args:
        command: the program and its arguments.

    Raises:
        GraphInputError: there is no such program. The check itself raises UnsupportedError when the model
            cannot be saved, or the exit code is 125, 126 or 127, which say that nothing was checked.
    """
    if not command or shutil.which(command[0]) is None:
        raise GraphInputError(
            f"there is no program {command[0] if command else ''!r} to check models with",
            hint="name a program that is there and may be run: python check.py",
        )

    def check(model: GraphModule) -> bool:
        with tempfile.TemporaryDirectory(prefix="lowbit-bisect-") as folder:
            path = save_graph(model, Path(folder) / "model.lowbit")
            code = subprocess.run([*command, str(path)], check=False).returncode
        if code in _CANNOT_RUN:
            raise UnsupportedError(
                f"{' '.join(command)} ended with exit code {code}: it did not check the model",
                hint="exit with 0 for a good model and with 1 for a bad one",
            )
        return code == 0

    return check
