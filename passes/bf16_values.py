"""The dtypes of values before and after ``propagate-bf16``, and what operators make of other dtypes."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ..errors import GraphInputError
from ..ir.attributes import find_attribute
from ..ir.location import locate

__all__ = ["Dtypes", "Values"]

Dtypes = tuple[torch.dtype | None, ...]
"""The dtypes of a result's tensors, flattened; None for what is no tensor."""


class Values:
    """Reads and keeps true ``meta["val"]`` of the nodes of one graph module."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._exported: dict[Node, torch.dtype] = {}
        self._retyped: set[Node] = set()
        self._results: dict[str, Dtypes | None] = {}
        self._made: dict[str, torch.Tensor] = {}

    def dtype(self, node: Node) -> torch.dtype | None:
        """The dtype of ``node`` now, where it is one tensor of real floating-point numbers."""
        value = self.value(node)
        return value.dtype if isinstance(value, torch.Tensor) and value.is_floating_point() else None

    def exported(self, node: Node) -> torch.dtype:
        """The dtype that the floating-point tensor ``node`` had before the pass."""
        dtype = self._exported.get(node) or self.dtype(node)
        assert dtype is not None
        return dtype

    def floating_inputs(self, node: Node) -> dict[Node, torch.dtype]:
        """The floating-point tensors that ``node`` reads, with their dtypes now."""
        dtypes = {source: self.dtype(source) for source in node.all_input_nodes}
        return {source: dtype for source, dtype in dtypes.items() if dtype is not None}

    def would_change(self, node: Node, dtypes: Mapping[Node, torch.dtype]) -> bool:
        """Whether ``node``, its inputs cast to ``dtypes``, reads others than before the pass."""
        if node.target is operator.getitem:
            return node.args[0] in self._retyped
        now = self.floating_inputs(node)
        return any(dtypes.get(source, d) is not self.exported(source) for source, d in now.items())

    def result_dtypes(self, node: Node, dtypes: Mapping[Node, torch.dtype]) -> Dtypes | None:
        """What ``node`` gives when its inputs are cast to ``dtypes``; None where torch refuses."""
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, Node)
            return _dtypes(self.value(source)[index])

        def described(source: Node) -> object:
            value = self.value(source)
            if not isinstance(value, torch.Tensor):
                return str(value)
            return f"{dtypes.get(source, value.dtype)}{tuple(value.shape)}"

        # Models have few distinct shapes, and a call on fake tensors may cost a millisecond.
        key = f"{node.target} {map_arg((node.args, node.kwargs), described)}"  # pyright: ignore[reportArgumentType]  (any object will do)
        if key not in self._results:
            self._results[key] = self._try(node, dtypes)
        return self._results[key]

    def _try(self, node: Node, dtypes: Mapping[Node, torch.dtype]) -> Dtypes | None:
        """Call ``node`` on fake tensors of its own, which it may write into."""

        def fake(source: Node) -> object:
            value = self.value(source)
            if not isinstance(value, torch.Tensor):
                return value
            return _with_dtype(value, dtypes.get(source, value.dtype))

        assert callable(node.target)
        produced = self.value(node)
        try:
            with _fake(produced):
                args, kwargs = map_arg((node.args, node.kwargs), fake)  # pyright: ignore[reportArgumentType]
                return _dtypes(node.target(*args, **kwargs))
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return None

    def set_result(self, node: Node, dtypes: Dtypes) -> None:
        """Note that ``node`` gives ``dtypes``. Its shapes and strides stay: they depend on no dtype."""
        leaves, spec = pytree.tree_flatten(node.meta.get("val"))
        pairs = zip(leaves, dtypes, strict=True)
        new = [v if d is None or d is v.dtype else self._with_dtype(v, d) for v, d in pairs]
        if any(a is not b for a, b in zip(leaves, new, strict=True)):
            before = self.dtype(node)
            if before is not None:
                self._exported.setdefault(node, before)
            self._retyped.add(node)
            node.meta["val"] = pytree.tree_unflatten(new, spec)

    def set_cast(self, node: Node, source: Node, dtype: torch.dtype) -> None:
        """Note that ``node``, a new one or ``source`` itself, is ``source`` in ``dtype``."""
        value = self.value(source)
        if node is source:
            self._exported.setdefault(node, value.dtype)
        node.meta["val"] = self._with_dtype(value, dtype)

    def _with_dtype(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # Equal ones are made once: a fake tensor takes as long as a cast of a small tensor.
        key = f"{dtype}{tuple(value.shape)}{value.stride()}{value.device}"
        if key not in self._made:
            self._made[key] = _with_dtype(value, dtype)
        return self._made[key]

    def value(self, node: Node) -> Any:
        """What ``node`` produces: a fake tensor, a collection of them, or something else."""
        value = node.meta.get("val")
        if value is None and node.op == "get_attr":
            return find_attribute(self._gm, str(node.target))
        if value is None and node.op in {"placeholder", "call_function"} and "val" not in node.meta:
            raise GraphInputError(
                "a node does not say which dtype it produces: it has no meta['val']",
                where=locate(node),
                hint="export the model with torch.export, and let propagate-metadata run after conversion",
            )
        return value


def _dtypes(result: object) -> Dtypes:
    leaves = pytree.tree_leaves(result)
    return tuple(leaf.dtype if isinstance(leaf, torch.Tensor) else None for leaf in leaves)


def _with_dtype(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A new tensor with the shape and strides of ``value``, fake where that is fake."""
    with _fake(value):
        return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device)


@contextlib.contextmanager
def _fake(value: object) -> Generator[None]:
    """The fake tensor mode of ``value``. Sizes that only data tell are not kept: those in the graph count."""
    mode = next((v.fake_mode for v in pytree.tree_leaves(value) if isinstance(v, FakeTensor)), None)
    if mode is None:
        yield
    elif mode.shape_env is None:
        with mode:
            yield
    else:
        with mode, mode.shape_env.ignore_fresh_unbacked_symbols():
            yield
