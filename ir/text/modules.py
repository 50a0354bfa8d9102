"""What a graph module is made of besides its graph: submodules with their state, and tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule

from ...errors import UnsupportedError
from .exported import EXPORT_STATE, foreign_hooks

__all__ = ["FoundTensor", "Submodule", "own_state", "submodules", "tensors_of"]

_BARE_STATE: Final = frozenset(vars(torch.nn.Module()))
_BARE_GRAPH_STATE: Final = (
    frozenset(vars(GraphModule(torch.nn.Module(), torch.fx.Graph()))) | _BARE_STATE | EXPORT_STATE
)


@attrs.frozen
class Submodule:
    """A place in the module tree.

    Args:
        path: dotted path from the top, which is "".
        module: what is there; None for a name that holds nothing.
        same: the first path of the module, if it has several.
    """

    path: str
    module: torch.nn.Module | None
    same: str | None = None


@attrs.frozen
class FoundTensor:
    """A name of a tensor.

    Args:
        path: dotted path.
        kind: "parameter", "buffer", or "constant" for an attribute that is neither.
        tensor: None for a name that holds nothing.
        transient: whether it is a buffer that ``state_dict`` leaves out.
    """

    path: str
    kind: str
    tensor: Tensor | None
    transient: bool


def submodules(gm: GraphModule) -> list[Submodule]:
    """The module tree, the top first, each module before what is in it."""
    first: dict[int, str] = {id(gm): ""}
    found = [Submodule("", gm)]

    def walk(module: torch.nn.Module, prefix: str) -> None:
        for name, child in module._modules.items():
            path = prefix + name
            if "." in name:
                raise UnsupportedError(
                    f"a submodule is called {path!r}, with a dot in its name",
                    hint="give it a name that an attribute can have",
                )
            if child is None:
                found.append(Submodule(path, None))
            elif id(child) in first:
                found.append(Submodule(path, child, same=first[id(child)]))
            else:
                first[id(child)] = path
                found.append(Submodule(path, child))
                walk(child, f"{path}.")

    walk(gm, "")
    return found


def tensors_of(tree: list[Submodule]) -> Iterator[FoundTensor]:
    """The tensors of a module tree, in the order of its modules.

    Raises:
        UnsupportedError: a tensor that no file can hold, such as the packed weight of a kernel.
    """
    for place in tree:
        module = place.module
        if module is None or place.same is not None:
            continue
        prefix = f"{place.path}." if place.path else ""
        constants = {k: v for k, v in own_state(module).items() if isinstance(v, Tensor)}
        for kind, table in (
            *(("parameter", module._parameters), ("buffer", module._buffers)),
            ("constant", constants),
        ):
            for name, tensor in table.items():
                if tensor is not None:
                    _check_storable(prefix + name, tensor)
                transient = kind == "buffer" and name in module._non_persistent_buffers_set
                yield FoundTensor(prefix + name, kind, tensor, transient)


def _check_storable(path: str, tensor: Tensor) -> None:
    if tensor.is_mkldnn:
        raise UnsupportedError(
            f"{path!r} is packed for the kernel that reads it, and no file can hold it",
            hint="lower with pack_weights=False (lower_pt2e), or save the converted model and lower it after "
            "loading",
        )
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
        kind = type(tensor).__qualname__ if tensor.layout == torch.strided else tensor.layout
        raise UnsupportedError(
            f"{path!r} is a {kind}, and no file can hold it", hint="make it a plain tensor"
        )
    if tensor.is_meta or tensor.is_quantized:
        kind = (
            "on the meta device: it has no values" if tensor.is_meta else f"of the old dtype {tensor.dtype}"
        )
        raise UnsupportedError(f"{path!r} is {kind}", hint="make it a plain tensor with data")


def own_state(module: torch.nn.Module) -> dict[str, Any]:
    """What a module has besides parameters, buffers, submodules and hooks: its ``__dict__``, or what its
    ``__getstate__`` says of it.

    Raises:
        UnsupportedError: hooks, which have no text.
    """
    hooks = foreign_hooks(module)
    if hooks:
        raise UnsupportedError(
            f"a {type(module).__qualname__} has the hook {hooks[0]}, of which there is no text",
            hint="remove it before saving: handle.remove()",
        )
    if isinstance(module, GraphModule):
        return {k: v for k, v in vars(module).items() if k not in _BARE_GRAPH_STATE}
    return {k: v for k, v in module.__getstate__().items() if k not in _BARE_STATE}  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
