"""Short, stable text for nodes: what diffs and reports print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs
import torch
from torch.fx import Node

from ..observers import ObserverConstructor
from ..points import as_point
from ..specs import EdgeOrNode, QuantizationSpecBase, SharedQuantizationSpec
from ..wording import with_article

__all__ = [
    "DTYPE_NAMES",
    "format_annotation",
    "format_arguments",
    "format_spec",
    "format_target",
    "format_value",
]

DTYPE_NAMES: Final = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
"""Short names of the common dtypes."""


def format_value(value: Any) -> str:
    """``f32[2, 3]`` for a tensor, a tuple of such for several, "" for what has no short form."""
    if isinstance(value, torch.Tensor):
        name = DTYPE_NAMES.get(value.dtype, str(value.dtype).removeprefix("torch."))
        return f"{name}[{', '.join(str(s) for s in value.shape)}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(format_value(v) or '?' for v in value)})"
    return ""


def format_target(op: str, target: Any) -> str:
    """``aten.conv2d.default``, or the attribute name of a ``call_module``."""
    if op == "call_module":
        return f"self.{target}"
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return getattr(target, "__qualname__", None) or str(target)


def _format_argument(argument: Any) -> str:
    if isinstance(argument, Node):
        return f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_format_argument(a) for a in argument)}]"
    if isinstance(argument, torch.dtype):
        return DTYPE_NAMES.get(argument, str(argument))
    return repr(argument)


def format_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The arguments of a call as they would be written."""
    return ", ".join(
        [*(_format_argument(a) for a in args), *(f"{k}={_format_argument(v)}" for k, v in kwargs.items())]
    )


def _format_point(point: EdgeOrNode) -> str:
    if as_point(point) is None:
        return f"{with_article(type(point).__name__)}, which is no point"
    return f"%{point.name}" if isinstance(point, Node) else f"%{point[0].name}→%{point[1].name}"


def _format_constructor(constructor: Any) -> str:
    # The bound arguments are part of what is asked for; a partial's repr would show addresses.
    if isinstance(constructor, ObserverConstructor):
        return repr(constructor)
    return getattr(constructor, "__name__", None) or type(constructor).__name__


def format_spec(spec: QuantizationSpecBase) -> str:
    """A spec in a few words: dtype, range, scheme; or what it shares with or derives from."""
    if isinstance(spec, SharedQuantizationSpec):
        return f"as {_format_point(spec.edge_or_node)}"
    fields: dict[str, Any] = attrs.asdict(spec, recurse=False) if attrs.has(type(spec)) else {}
    words = [_format_argument(fields["dtype"])] if "dtype" in fields else [type(spec).__name__]
    if fields.get("quant_min") is not None:
        words.append(f"[{fields['quant_min']}, {fields['quant_max']}]")
    if fields.get("qscheme") is not None:
        words.append(str(fields["qscheme"]).removeprefix("torch."))
    if fields.get("ch_axis") is not None:
        words.append(f"axis {fields['ch_axis']}")
    if fields.get("is_dynamic"):
        words.append("dynamic")
    if "scale" in fields:
        words.append(f"scale {fields['scale']!r} zero_point {fields['zero_point']}")
    if "derived_from" in fields:
        words.append(f"from {', '.join(_format_point(p) for p in fields['derived_from'])}")
    constructor = fields.get("observer_or_fake_quant_ctr")
    if constructor is not None:
        words.append(_format_constructor(constructor))
    return " ".join(words)


def format_annotation(
    inputs: tuple[tuple[Node, QuantizationSpecBase | None], ...],
    output: QuantizationSpecBase | None,
    allow_implicit_sharing: bool,
    annotated: bool,
) -> str:
    """An annotation in braces, inputs first."""
    words = [f"%{node.name}: {format_spec(spec)}" for node, spec in inputs if spec is not None]
    if output is not None:
        words.append(f"out: {format_spec(output)}")
    if not allow_implicit_sharing:
        words.append("no implicit sharing")
    if not words and annotated:
        words.append("annotated")
    return "{" + "; ".join(words) + "}"
