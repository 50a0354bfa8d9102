"""Where nodes come from: module calls, stack traces, and torch's own provenance, apart from the graph.

Most nodes share most of it, so it goes to tables at the end of the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from .exported import write_sources
from .values import NoTextError, ValueWriter, quoted

__all__ = ["PLACE_KEYS", "Places"]

PLACE_KEYS: Final = ("nn_module_stack", "stack_trace", "torch_fn", "source_fn_stack", "from_node")
"""``node.meta`` keys that say where a node comes from."""

_FRAME: Final = re.compile(r' *File "[^"\n]*", line \d+, in ')


class Places:
    """Writes where nodes come from, each place and each stack frame once.

    Args:
        value: writes values.
    """

    def __init__(self, value: ValueWriter) -> None:
        self._value = value
        self._graph_numbers: dict[int, int] = {}
        self.places: dict[str, int] = {}
        self.frames: dict[str, int] = {}
        self.left_out: dict[str, str] = {}
        """Keys whose value is not plain data, with its class."""

    def write(self, meta: Mapping[str, Any]) -> str:
        """``@3``, the place that ``meta`` says; "" if it says none."""
        parts: list[str] = []
        for name in PLACE_KEYS:
            if name in meta:
                try:
                    parts.append(f"{name}={self._origin(name, meta[name])}")
                except NoTextError:
                    self.left_out[name] = type(meta[name]).__qualname__
        return f"@{self.places.setdefault(' '.join(parts), len(self.places))}" if parts else ""

    def _origin(self, name: str, value: Any) -> str:
        if name == "from_node":
            value = write_sources(value, self._graph_numbers)
        elif name == "stack_trace" and isinstance(value, str):
            frames = [self.frames.setdefault(frame, len(self.frames)) for frame in _frames(value)]
            return f"[{', '.join(f'&{i}' for i in frames)}]"
        elif name == "nn_module_stack" and isinstance(value, dict):
            value = {k: (p, _class_name(kind)) for k, (p, kind) in value.items()}
        elif name == "source_fn_stack" and isinstance(value, list):
            value = [(n, _class_name(f)) for n, f in value]
        return self._value.write(value)


def _class_name(kind: Any) -> str:
    """Classes and functions by name: those of models are often found by none."""
    if isinstance(kind, str):
        return kind
    module, name = getattr(kind, "__module__", None), getattr(kind, "__qualname__", str(kind))
    return f"{module}.{name}" if module else name


def _frames(trace: str) -> list[str]:
    """A stack trace as a list of frames, quoted; in one piece if it has another form."""
    starts = [match.start() for match in _FRAME.finditer(trace)]
    if not starts or starts[0] != 0:
        return [quoted(trace)]
    return [quoted(trace[a:b]) for a, b in zip(starts, [*starts[1:], len(trace)], strict=True)]
