"""Where a node comes from in the user's model, for errors and reports."""

from __future__ import annotations

import heapq
import re
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from torch.fx import Node

from .specs import EdgeOrNode

__all__ = [
    "ModuleCall",
    "describe_node",
    "describe_point",
    "is_at",
    "listed",
    "locate",
    "module_path",
    "module_stack",
    "source_line",
    "target_text",
]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')
_TORCH: Final = f"{Path(torch.__file__).parent}/"


@attrs.frozen
class ModuleCall:
    """One module call that a node was made in.

    Args:
        call: identity of the call; a module called twice has two.
        path: dotted path of the module (``layer1.0.conv1``), "" for the root.
        kind: qualified name of its class.
    """

    call: str
    path: str
    kind: str


def module_stack(meta: Mapping[str, Any]) -> list[ModuleCall]:
    """The module calls around a node with this metadata, the outermost first."""
    stack: Mapping[str, tuple[str, Any]] = meta.get("nn_module_stack") or {}
    return [ModuleCall(call, _dotted(path), _qualified(kind)) for call, (path, kind) in stack.items()]


def _dotted(path: str) -> str:
    # Strict export may write paths as expressions on the root: L['self'].layer1[0].
    path = re.sub(r"^L\['self'\]\.?", "", path)
    # In bodies of control flow it calls the root by this name.
    path = re.sub(r"^_export_root(\.|$)", "", path)
    path = re.sub(r"\[['\"]?([^\]'\"]+)['\"]?\]", r".\1", path)
    # A module called again is told apart by a suffix: relu, relu@1.
    return path.split("@")[0]


def _qualified(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def module_path(meta: Mapping[str, Any]) -> str:
    """The dotted path of the module that made a node with this metadata, "" for the root."""
    stack = module_stack(meta)
    return stack[-1].path if stack else ""


def source_line(meta: Mapping[str, Any]) -> str:
    """``file:line: code`` of the innermost frame of the user's model in a node's metadata, or ""."""
    trace = meta.get("stack_trace")
    if not trace:
        return ""
    # What torch generated is no line of anybody's: bodies of control flow are traced through such code.
    frames = [f for f in _FRAME.finditer(trace) if not f["file"].startswith("<eval_with_key>")]
    if not frames:
        return ""
    # Above the user's frames are the exporter's, below them those of torch.nn and torch.nn.functional.
    last = next((f for f in reversed(frames) if not f["file"].startswith(_TORCH)), frames[-1])
    return f"{last['file']}:{last['line']}: {last['code'].strip()}"


def is_at(source: str, about: str) -> bool:
    """Whether a source line ``path/file.py:12: code`` is ``file.py:12``, with as much of the path as said."""
    path, _, _ = source.partition(": ")
    return bool(about) and (path == about or path.endswith(f"/{about}"))


def target_text(target: object) -> str:
    """What a node calls, as it is written: ``aten.conv2d.default``, ``operator.getitem``, ``layer1.0``."""
    if isinstance(target, (types.FunctionType, types.BuiltinFunctionType)):
        module = "operator" if target.__module__ == "_operator" else target.__module__
        return f"{module}.{target.__name__}"
    return str(target)


def listed(nodes: Collection[Node]) -> str:
    """``%a, %b, %c and 4 more``: the first three in graph order by name, as there may be very many."""
    first = [f"%{node.name}" for node in heapq.nsmallest(3, nodes)]
    return ", ".join(first) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


def describe_node(node: Node) -> str:
    """``%name (target)`` in one short line."""
    target = target_text(node.target)
    return f"%{node.name} ({node.op} {target})" if node.op != "call_function" else f"%{node.name} ({target})"


def describe_point(point: EdgeOrNode) -> str:
    """``edge %a → %b`` or ``output of %a``."""
    if isinstance(point, Node):
        return f"output of %{point.name}"
    producer, consumer = point
    return f"edge %{producer.name} → %{consumer.name}"


def locate(node: Node) -> tuple[str, ...]:
    """The lines that tell a user where ``node`` is: itself, its module, its source line."""
    lines = [describe_node(node)]
    if path := module_path(node.meta):
        lines.append(f"module {path}")
    if source := source_line(node.meta):
        lines.append(source)
    return ("\n".join(lines),)
