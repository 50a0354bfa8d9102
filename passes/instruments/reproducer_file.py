"""The file that a reproducer is, and what of a failing pass can be put into it."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

import attrs
import torch
from torch.fx import GraphModule

from ...errors import LowbitError
from ...ir.text import to_tensors
from ...ir.text.tensors import to_bytes
from ...ir.text.writer import take_apart
from ..base import Pass, PassContext
from ..pipeline import Pipeline, format_pass

__all__ = ["write_reproducer"]

# A zip file with this in it is a program to Python.
_MAIN: Final = """\
\"\"\"python THIS_FILE: runs the pass on the graph once more, and raises what it raises.\"\"\"

import sys

from lowbit.tools.bisect import replay

replay(sys.argv[0])
sys.stderr.write("the pass did not fail\\n")
"""
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)


def write_reproducer(
    path: Path, gm: GraphModule, pass_: Pass, context: PassContext, error: Exception
) -> tuple[str, ...]:
    """Write a reproducer of ``pass_`` failing on ``gm``, whole or not at all; a file at ``path`` gives way.

    Equal graphs and errors give equal bytes.

    Returns:
        What the file lacks, and why: things that another process would not find.

    Raises:
        UnsupportedError: something in the graph that the file cannot hold (:func:`lowbit.ir.text.to_text`).
        OSError: the file cannot be written.
    """
    entries, lacks = _entries(gm, pass_, context, error)
    with tempfile.TemporaryDirectory(prefix=".lowbit-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        with zipfile.ZipFile(draft, "w") as file:
            for name, content in entries.items():
                info = zipfile.ZipInfo(name, _LONG_AGO)
                info.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(info, content)
        draft.replace(path)
    return lacks


def _entries(
    gm: GraphModule, pass_: Pass, context: PassContext, error: Exception
) -> tuple[dict[str, str | bytes], tuple[str, ...]]:
    parts = take_apart(gm)
    imports = [*parts.imports, type(pass_).__module__]
    lacks: list[str] = []
    if "__main__" in parts.imports:
        lacks.append("what the graph refers to in __main__")
    lacks += _why_not_found(pass_)
    patterns = _place_of_patterns(context)
    if context.patterns and (patterns is None or ":" not in patterns):
        lacks.append(
            "the operator patterns, which are of no Backend at the top level of a module"
            + ("" if patterns is None else f"; where {patterns!r} is registered it is found by name")
        )
    entries: dict[str, str | bytes] = {}
    if context.quantizer is not None:
        try:
            entries["quantizer.pickle"] = _pickled(context.quantizer)
            imports.append(type(context.quantizer).__module__)
        except Exception as refusal:  # noqa: BLE001  (a class may raise anything when it is pickled)
            lacks.append(f"the quantizer ({refusal}): pass quantizer=…")
    about = {
        "pipeline": format_pass(pass_),
        "error": str(error),
        "error_type": type(error).__name__,
        "backend": context.backend,
        "patterns": patterns,
        "imports": [name for name in dict.fromkeys(imports) if name != "__main__"],
        "lacks": lacks,
        "lowbit": version("lowbit"),
        "torch": torch.__version__,
    }
    return {
        "__main__.py": _MAIN,
        "about.json": json.dumps(about, indent=2) + "\n",
        "graph.lowbit": parts.text,
        "graph.safetensors": to_bytes(to_tensors(gm)),
        **entries,
    }, tuple(lacks)


def _why_not_found(pass_: Pass) -> list[str]:
    """Why another process would not find the pass by its text."""
    if type(pass_).__module__ == "__main__":
        return [f"the pass {pass_.name}, which is defined in __main__"]
    try:
        (found,) = Pipeline.parse(format_pass(pass_))
    except LowbitError as refusal:
        return [f"the pass {pass_.name} ({refusal.found})"]
    return [] if type(found) is type(pass_) else [f"the pass {pass_.name}: its name is that of another"]


def _place_of_patterns(context: PassContext) -> str | None:
    """Where the patterns are found again: ``module:ATTRIBUTE`` of a backend, or else the name of one."""
    if not context.patterns:
        return None
    for name, module in sorted(sys.modules.items()):
        if name != "__main__" and isinstance(module, ModuleType):  # pyright: ignore[reportUnnecessaryIsInstance]
            for attribute, value in list(vars(module).items()):
                if _is_backend_of(context, value):
                    return f"{name}:{attribute}"
    return context.backend


def _is_backend_of(context: PassContext, value: object) -> bool:
    # Backends are of a layer above this one. Only attrs classes are asked: others may do anything when asked.
    return (
        attrs.has(type(value))
        and getattr(value, "patterns", None) is context.patterns
        and hasattr(value, "lower")
        and context.backend in (None, getattr(value, "name", None))
    )


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Refuse what another process would not find: its ``__main__`` is another."""
        if isinstance(obj, (type, FunctionType)) and obj.__module__ == "__main__":
            raise pickle.PicklingError(f"{obj.__qualname__} is defined in __main__")
        return NotImplemented


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()
