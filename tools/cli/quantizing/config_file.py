"""Options in TOML: a file of their own, or the table ``tool.lowbit.quantize`` of ``pyproject.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ....errors import LowbitError, OptionError
from .options import make_options

__all__ = ["read_config"]

_TABLE = ("tool", "lowbit", "quantize")


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in the file at ``path``, by their names: ``left-float = ["head"]``.

    Paths in it are relative to the current folder, as on the command line.

    Raises:
        OptionError: no such file, no TOML, no such table in a ``pyproject.toml``, or a value of the wrong
            kind.
        UnknownNameError: a key that is no option; the hint has the nearest.
    """
    path = Path(path)
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"the configuration file {path} cannot be read: {error.strerror}", hint="check its path"
        ) from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is no text", hint='write options as name = "value"') from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{path} is no TOML: {error}", hint='write options as name = "value"') from error
    if path.name == "pyproject.toml":
        values = _table(values, path)
    try:
        # Checked here, so that what is wrong is known to be in the file; the model may come from elsewhere.
        make_options({"model": "any:model", **values})
    except LowbitError as error:
        error.where = (str(path), *error.where)
        raise
    return values


def _table(values: dict[str, Any], path: Path) -> dict[str, Any]:
    for name in _TABLE:
        inner = values.get(name)
        if not isinstance(inner, dict):
            raise OptionError(
                f"{path} has no table [{'.'.join(_TABLE)}]", hint="add it, or write a file of its own"
            )
        values = inner
    return values
