"""From values of the syntax tree to what they stand for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

import attrs
import torch
from torch.fx import Node

from ...errors import GraphTextError, LowbitError
from ..observers import ObserverConstructor
from ..wording import with_article
from .references import find_operator, find_reference
from .short import DTYPE_NAMES
from .symbols import Interval, SymbolReader, read_end
from .syntax import Source
from .trees import Call, Entry, Items, Literal, Name, NodeName, TensorType, Tree
from .trees import Mapping as MappingTree
from .values import SPECS

__all__ = ["ValueReader"]

_SHORT_DTYPES: Final = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_CONSTANTS: Final = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
# Called with what the text gives them, and able to do nothing but make a value.
_MAKERS: Final[Mapping[str, Callable[..., Any]]] = {
    "slice": slice,
    "range": range,
    "complex": complex,
    "bytes": bytes.fromhex,
    "device": torch.device,
    "set": lambda *items: set(items),
    "frozenset": lambda *items: frozenset(items),
    "size": lambda *sizes: torch.Size(sizes),
}


class ValueReader:
    """Makes values. What they refer to is looked up in tables that the reader of the text fills."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.symbols = SymbolReader(source)
        self.nodes: dict[str, Node] = {}
        """The nodes of the graph that is being read, by name."""
        self.modules: dict[str, torch.nn.Module] = {}
        self.specs: dict[int, Any] = {}

    def error(self, tree: Tree, found: str, hint: str) -> GraphTextError:
        """An error at ``tree``."""
        return self.source.error(tree.at, found, hint)

    def read(self, tree: Tree) -> Any:
        """What ``tree`` stands for."""
        reader = _READERS.get(type(tree))
        if reader is None:
            raise self.error(tree, "this is no value", "see lowbit.ir.text.syntax")
        return reader(self, tree)

    def _items(self, tree: Items) -> Any:
        items = [self.read(t) for t in tree.items]
        return items if tree.kind == "[" else tuple(items)

    def _mapping(self, tree: MappingTree) -> dict[Any, Any]:
        return {self._key(k): self.read(v) for k, v in tree.items}

    def _key(self, tree: Tree) -> Any:
        value = self.read(tree)
        if not isinstance(value, Hashable):
            raise self.error(
                tree, f"{with_article(type(value).__name__)} cannot be a key", "write text or a number"
            )
        return value

    def node(self, tree: NodeName) -> Node:
        """The node of that name."""
        found = self.nodes.get(tree.name)
        if found is None:
            raise self.error(
                tree, f"there is no node %{tree.name} before this", "nodes go before what reads them"
            )
        return found

    def _entry(self, tree: Entry) -> Any:
        if tree.table != "#" or tree.index not in self.specs:
            raise self.error(
                tree, f"there is no spec {tree.table}{tree.index}", "write it down in the section specs"
            )
        return self.specs[tree.index]

    def _name(self, tree: Name) -> Any:
        if tree.name in _SHORT_DTYPES:
            return _SHORT_DTYPES[tree.name]
        if tree.name == "ellipsis":
            return ...
        module, _, name = tree.name.partition(".")
        constant = getattr(torch, name, None) if module == "torch" else None
        if isinstance(constant, _CONSTANTS):
            return constant
        return self.reference(tree, tree.name)

    def reference(self, tree: Tree, name: str) -> Any:
        """The Python object of the name ``module:qualified.name``."""
        found = find_reference(name)
        if found is None:
            module = name.partition(":")[0]
            raise self.error(
                tree,
                f"there is nothing called {name!r}",
                f"import {module} before reading, which the text does not do of itself"
                if ":" in name
                else "write module:name for a function or class, f32 or torch.complex64 for a dtype",
            )
        return found

    def operator(self, tree: Tree, name: str) -> Any:
        """The operator ``namespace.name.overload``."""
        found = find_operator(name)
        if found is None:
            raise self.error(tree, f"there is no operator {name!r}", "import the package that registers it")
        return found

    def dtype(self, tree: Name) -> torch.dtype:
        """The dtype of that name."""
        found = self._name(tree)
        if not isinstance(found, torch.dtype):
            raise self.error(tree, f"{tree.name} is no dtype", "write f32, i8, torch.complex64")
        return found

    # Calls.

    def _call(self, tree: Call) -> Any:
        special = _SPECIAL_CALLS.get(tree.name)
        if special is not None:
            return special(self, tree)
        maker = _MAKERS.get(tree.name) or SPECS.get(tree.name)
        if maker is None:
            known = ", ".join((*_MAKERS, *SPECS, *_SPECIAL_CALLS))
            raise self.error(tree, f"there is no value {tree.name}(…)", f"known are {known}")
        args, keywords = self.arguments(tree)
        return self.make(tree, maker, *args, **keywords)

    def arguments(self, tree: Call) -> tuple[list[Any], dict[str, Any]]:
        """What stands in the parentheses of a call."""
        return [self.read(a) for a in tree.args], {k: self.read(v) for k, v in tree.keywords}

    def _interval(self, tree: Call) -> Any:
        return self.make(tree, Interval, *(read_end(end, self.source) for end in tree.args))

    def _operator(self, tree: Call) -> Any:
        match tree.args:
            case (Name() as name,):
                return self.operator(name, name.name)
            case _:
                raise self.error(tree, "this names no operator", "write op(aten.add.Tensor)")

    def _bound(self, tree: Call) -> Any:
        args, keywords = self.arguments(tree)
        return self.make(tree, lambda factory: ObserverConstructor(factory, keywords), *args)

    def _partial(self, tree: Call) -> Any:
        args, keywords = self.arguments(tree)
        return self.make(tree, functools.partial, *args, **keywords)

    def _record(self, tree: Call) -> Any:
        args, keywords = self.arguments(tree)
        match args:
            case [type() as kind] if attrs.has(kind) or dataclasses.is_dataclass(kind):
                return self.make(tree, kind, **keywords)
            case _:
                raise self.error(tree, "this is no record", "name an attrs class or a dataclass first")

    def _module(self, tree: Call) -> torch.nn.Module:
        args, _ = self.arguments(tree)
        match args:
            case [str() as path] if path in self.modules:
                return self.modules[path]
            case _:
                hint = "name a submodule that the section modules has"
                raise self.error(tree, f"there is no submodule {', '.join(map(repr, args))}", hint)

    def make(self, tree: Tree, maker: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        """``maker(*args, **keywords)``, what it refuses being an error at ``tree``."""
        try:
            return maker(*args, **keywords)
        except LowbitError as error:
            raise self.error(tree, error.found, error.hint) from error
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise self.error(
                tree, f"it is refused: {error}", "give what the writer would have written"
            ) from error

    # What stands in brackets: sizes, and tensors by shape.

    def _bracketed(self, tree: TensorType) -> Any:
        match tree.dtype.name, tree.shape:
            case "sym", (size,):
                return self.symbols.size(size)
            case "symbol", (Name() as name,):
                return self.symbols.symbol(name.name, name.at)
            case _:
                return self.fake_tensor(tree)

    def fake_tensor(self, tree: TensorType) -> torch.Tensor:
        """A fake tensor of the dtype, shape, strides and device that ``tree`` says."""
        dtype = self.dtype(tree.dtype)
        shape = tuple(self.symbols.size(size) for size in tree.shape)
        options = self.options(tree)
        strides = options.get("strides")
        device = options.get("device", torch.device("cpu"))
        with self.symbols.fake_mode:
            if strides is None:
                return self.make(tree, torch.empty, shape, dtype=dtype, device=device)
            return self.make(tree, torch.empty_strided, shape, strides, dtype=dtype, device=device)

    def options(self, tree: TensorType) -> dict[str, Any]:
        """What stands in braces behind a tensor: its strides and device."""
        options: dict[str, Any] = {}
        for name, value in () if tree.options is None else tree.options.items:
            match name, value:
                case Name(name="strides"), TensorType(dtype=Name(name="sizes")):
                    options["strides"] = tuple(self.symbols.size(size) for size in value.shape)
                case Name(name="device"), _:
                    options["device"] = self.read(value)
                case _:
                    raise self.error(name, "this is no option of a tensor", "known are strides and device")
        return options


_READERS: Final[dict[type, Callable[[ValueReader, Any], Any]]] = {
    Literal: lambda _, tree: tree.value,
    Name: ValueReader._name,
    NodeName: ValueReader.node,
    Entry: ValueReader._entry,
    Items: ValueReader._items,
    MappingTree: ValueReader._mapping,
    Call: ValueReader._call,
    TensorType: ValueReader._bracketed,
}
_SPECIAL_CALLS: Final[dict[str, Callable[[ValueReader, Call], Any]]] = {
    "bind": ValueReader._bound,
    "interval": ValueReader._interval,
    "module": ValueReader._module,
    "op": ValueReader._operator,
    "partial": ValueReader._partial,
    "record": ValueReader._record,
}
