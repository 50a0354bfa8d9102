"""Plain data as text: what stands in arguments, metadata, and the state of observers.

Everything is written so that reading it gives an equal value of the same types, floats to the bit (``nan``
loses its payload). What has no such text raises :class:`NoTextError` with the reason, and the caller says
where it stands.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import sympy
import torch
from torch.fx import Node

from ..observers import ObserverConstructor
from ..specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from .references import name_operator, name_reference
from .short import DTYPE_NAMES
from .symbols import Interval, SymbolicNumber, SymbolWriter, write_end

__all__ = ["SPECS", "NoTextError", "ValueWriter", "key", "node_name", "path", "quoted"]

SPECS: Final[Mapping[str, type[QuantizationSpecBase]]] = {
    "quantization": QuantizationSpec,
    "fixed": FixedQParamsQuantizationSpec,
    "shared": SharedQuantizationSpec,
    "derived": DerivedQuantizationSpec,
}
"""The kinds of specs, by the names they are written with."""

_SPEC_NAMES: Final[Mapping[type, str]] = {kind: name for name, kind in SPECS.items()}
_TORCH_CONSTANTS: Final = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)


class NoTextError(Exception):
    """There is no text for a value; the message says why, as a clause."""


def quoted(text: str) -> str:
    """``text`` in quotation marks."""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False)


def key(name: str) -> str:
    """A key of metadata: as it is when it is made of words."""
    plain = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name, re.ASCII)
    return name if plain and name not in ("None", "True", "False", "nan", "inf") else quoted(name)


def path(target: str) -> str:
    """A dotted path of attributes: as it is when it is made of words."""
    return target if re.fullmatch(r"\w+(\.\w+)*", target, re.ASCII) else quoted(target)


def node_name(node: Node) -> str:
    """``%name``"""
    return f"%{node.name if re.fullmatch(r'[0-9A-Za-z_]+', node.name) else quoted(node.name)}"


class ValueWriter:
    """Writes values. It notes the symbols in them, and the specs, which go to a table of their own.

    Args:
        modules: the dotted path of every module that may be referred to, by ``id``.
    """

    def __init__(self, modules: Mapping[int, str]) -> None:
        self._modules = modules
        self.symbols = SymbolWriter()
        self.specs: dict[str, int] = {}
        self.nodes: Mapping[Node, object] = {}
        """The nodes that may be referred to: those of the graph that is being written."""
        self.imports: dict[str, None] = {}
        """The Python modules of what was written by name."""

    def reference(self, value: Any) -> str | None:
        """``module:qualified.name`` of a function, class or member of an enumeration; None if it has none."""
        name = name_reference(value)
        if name is not None:
            self.imports.setdefault(name.partition(":")[0])
        return name

    def write(self, value: Any) -> str:
        """The text of ``value``.

        Raises:
            NoTextError: there is none.
        """
        if value is None or isinstance(value, bool):
            return repr(value)
        writer = _WRITERS.get(type(value))
        if writer is None:
            writer = next((w for kind, w in _BY_KIND if isinstance(value, kind)), ValueWriter._other)
        return writer(self, value)

    def call(self, name: str, *args: Any, **keywords: Any) -> str:
        """``name(a, b, key=c)``"""
        return f"{name}({', '.join(self._arguments(args, keywords))})"

    def _arguments(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[str]:
        return [*map(self.write, args), *(self.keyword(k, v) for k, v in keywords.items())]

    def keyword(self, name: str, value: Any) -> str:
        """``name=value``"""
        plain = re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)
        return f"{name if plain else quoted(name)}={self.write(value)}"

    def arguments(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
        """The arguments of a call, without parentheses."""
        return ", ".join(self._arguments(args, keywords))

    def node(self, node: Node) -> str:
        """``%name``, of a node of the graph that is being written."""
        if node not in self.nodes:
            raise NoTextError(f"%{node.name} is not a node of this graph (or stands in another one)")
        return node_name(node)

    def spec(self, spec: QuantizationSpecBase) -> str:
        """A spec: an entry of the table of specs, or in full if it refers to nodes."""
        name = _SPEC_NAMES.get(type(spec))
        if name is None:
            raise NoTextError(f"a {type(spec).__qualname__} is none of the specs of lowbit")
        fields = _changed_fields(spec)
        if isinstance(spec, SharedQuantizationSpec):
            return self.call(name, spec.edge_or_node)
        if isinstance(spec, DerivedQuantizationSpec):
            return self.call(name, **fields)
        return f"#{self.specs.setdefault(self.call(name, **fields), len(self.specs))}"

    def tensor_type(self, value: torch.Tensor) -> str:
        """``f32[2, s0]`` with what is not the default: strides, device."""
        if value.layout is not torch.strided:
            raise NoTextError(f"it is a tensor of layout {value.layout}")
        sizes = [self.symbols.size(s) for s in value.shape]
        strides = [self.symbols.size(s) for s in value.stride()]
        options: list[str] = []
        if strides != self._contiguous(value):
            options.append(f"strides: sizes[{', '.join(strides)}]")
        if value.device != torch.device("cpu"):
            options.append(f"device: {self.write(value.device)}")
        suffix = f"{{{', '.join(options)}}}" if options else ""
        return f"{_dtype(self, value.dtype)}[{', '.join(sizes)}]{suffix}"

    def fake_value(self, value: Any) -> str:
        """What a node's ``val`` says of its result: shapes and dtypes, in the structure of the result."""
        if isinstance(value, torch.Tensor):
            return self.tensor_type(value)
        if type(value) is list:
            return f"[{', '.join(map(self.fake_value, value))}]"
        if type(value) is tuple:
            comma = "," if len(value) == 1 else ""
            return f"({', '.join(map(self.fake_value, value))}{comma})"
        if type(value) is dict:
            return f"{{{', '.join(f'{self.write(k)}: {self.fake_value(v)}' for k, v in value.items())}}}"
        return self.write(value)

    def _contiguous(self, value: torch.Tensor) -> list[str]:
        strides: list[str] = []
        stride: Any = 1
        for size in reversed(value.shape):
            strides.append(self.symbols.size(stride))
            # As torch does: an empty dimension does not make the strides before it 0.
            stride = stride * (size if not isinstance(size, int) else max(size, 1))
        return strides[::-1]

    def _other(self, value: Any) -> str:
        if value is Ellipsis:
            return "ellipsis"
        if attrs.has(type(value)) and not isinstance(value, type):
            fields = attrs.fields_dict(type(value)).values()
            return self._record(value, {str(f.alias): getattr(value, f.name) for f in fields if f.init})
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = dataclasses.fields(value)
            return self._record(value, {f.name: getattr(value, f.name) for f in fields if f.init})
        reference = self.reference(value)
        if reference is not None:
            return reference
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if callable(value):
            raise NoTextError(
                f"{getattr(value, '__qualname__', kind)!r} cannot be found by name: define it with def or "
                "class at the top level of a module"
            )
        raise NoTextError(f"a {kind} is not plain data")

    def _record(self, value: Any, fields: dict[str, Any]) -> str:
        reference = self.reference(type(value))
        if reference is None:
            raise NoTextError(f"{type(value).__qualname__} is not defined at the top level of a module")
        inside = self._arguments((), fields)
        return f"record({', '.join([reference, *inside])})"

    def _tensor(self, value: torch.Tensor) -> str:
        raise NoTextError("a tensor inside of other data")

    def _module(self, value: torch.nn.Module) -> str:
        found = self._modules.get(id(value))
        if found is None:
            raise NoTextError(f"a {type(value).__qualname__} that is not a submodule of the graph module")
        return f"module({quoted(found)})"


def _changed_fields(value: Any) -> dict[str, Any]:
    """The fields that are not their defaults."""
    return {
        f.alias: getattr(value, f.name)
        for f in attrs.fields(type(value))
        if f.default is attrs.NOTHING or getattr(value, f.name) != f.default
    }


def _dtype(_: ValueWriter, dtype: torch.dtype) -> str:
    return DTYPE_NAMES.get(dtype) or str(dtype)


def _float(_: ValueWriter, value: float) -> str:
    return repr(value)


def _list(write: ValueWriter, value: Any) -> str:
    return f"[{', '.join(map(write.write, value))}]"


def _tuple(write: ValueWriter, value: Any) -> str:
    if type(value) is torch.Size:
        return write.call("size", *value)
    if type(value) is not tuple:
        raise NoTextError(f"a {type(value).__qualname__} is a tuple of a class of its own")
    comma = "," if len(value) == 1 else ""
    return f"({', '.join(map(write.write, value))}{comma})"


def _dict(write: ValueWriter, value: Any) -> str:
    return f"{{{', '.join(f'{write.write(k)}: {write.write(v)}' for k, v in value.items())}}}"


def _set(write: ValueWriter, value: Any) -> str:
    name = "frozenset" if isinstance(value, frozenset) else "set"
    return f"{name}({', '.join(sorted(map(write.write, value)))})"


def _constructor(write: ValueWriter, value: ObserverConstructor) -> str:
    bound = write._arguments((), dict(value.keywords))
    return f"bind({', '.join([write.write(value.factory), *bound])})"


def _partial(write: ValueWriter, value: functools.partial[Any]) -> str:
    bound = write._arguments(value.args, value.keywords)
    return f"partial({', '.join([write.write(value.func), *bound])})"


def _operator(_: ValueWriter, value: Any) -> str:
    name = name_operator(value)
    if name is None:
        raise NoTextError(f"the operator {value} is not registered")
    return f"op({name})"


def _symbol(write: ValueWriter, value: sympy.Symbol) -> str:
    return f"symbol[{write.symbols.symbol(value)}]"


_WRITERS: dict[type, Callable[[ValueWriter, Any], str]] = {
    int: _float,
    float: _float,
    complex: lambda write, value: write.call("complex", value.real, value.imag),
    str: lambda _, value: quoted(value),
    bytes: lambda _, value: f"bytes({quoted(value.hex())})",
    slice: lambda write, value: write.call("slice", value.start, value.stop, value.step),
    range: lambda write, value: write.call("range", value.start, value.stop, value.step),
    torch.dtype: _dtype,
    torch.device: lambda _, value: f"device({quoted(str(value))})",
    sympy.Symbol: _symbol,
    Interval: lambda _, value: f"interval({write_end(value.lower)}, {write_end(value.upper)})",
    ObserverConstructor: _constructor,
    functools.partial: _partial,
}

# In this order: what stands first wins.
_BY_KIND: tuple[tuple[Any, Callable[[ValueWriter, Any], str]], ...] = (
    (Node, ValueWriter.node),
    (enum.Enum, ValueWriter._other),
    (QuantizationSpecBase, ValueWriter.spec),
    (_TORCH_CONSTANTS, lambda _, value: str(value)),
    (SymbolicNumber, lambda write, value: write.symbols.number(value)),
    (torch.Tensor, ValueWriter._tensor),
    (list, _list),
    (tuple, _tuple),
    (dict, _dict),
    ((set, frozenset), _set),
    (torch.nn.Module, ValueWriter._module),
    ((torch._ops.OpOverload, torch._ops.HigherOrderOperator), _operator),
)
