"""Values in another dtype: one cast a tensor and dtype, none of constants (a step of ``propagate-bf16``)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import torch
from torch.fx import GraphModule, Node

from ..ir.attributes import FreeNames, get_tensor, is_constant, set_tensor
from ..ir.quantized_decomposed import DEQUANTIZE_PER_CHANNEL, is_dequantize
from .bf16_values import Values

__all__ = ["Casts"]

_TO: Final = torch.ops.aten.to.dtype
_ORIGIN_KEYS: Final = ("nn_module_stack", "stack_trace", "from_node", "source_fn_stack", "torch_fn")


class Casts:
    """Makes the casts of one graph module and remembers them.

    Args:
        gm: the graph module.
        values: the dtypes of its values.
        is_written: says whether a value's memory is written into.
    """

    def __init__(self, gm: GraphModule, values: Values, is_written: Callable[[Node], bool]) -> None:
        self._gm = gm
        self._values = values
        self._is_written = is_written
        self._is_constant = functools.cache(is_constant)
        self._names = FreeNames(gm)
        self._made: dict[tuple[Node | str, torch.dtype], Node] = {}
        self._replaced: dict[Node, None] = {}

    def cast(self, source: Node, dtype: torch.dtype, reader: Node) -> Node:
        """``source`` in ``dtype``, for ``reader``. Readers ask in the order of the graph."""
        source = self._before_widening(source, dtype)
        if self._values.dtype(source) is dtype:
            return source
        if source.op == "get_attr" and self._is_constant(source):
            return self._once(source, str(source.target), dtype, self._constant)
        if dtype is torch.bfloat16 and is_dequantize(source) and self._gives_bfloat16_exactly(source):
            if len(source.users) == 1 and (source, dtype) not in self._made:
                source.update_kwarg("out_dtype", dtype)
                self._values.set_cast(source, source, dtype)
                return source
            return self._once(source, source, dtype, self._dequantize)
        if self._is_written(source):
            # What it holds depends on when it is read.
            return self._conversion(source, dtype, reader)
        return self._once(source, source, dtype, lambda s, d: self._conversion(s, d, reader))

    def finish(self) -> None:
        """Erase what is read in another dtype only."""
        for node in self._replaced:
            if not node.users:
                self._gm.graph.erase_node(node)

    def _once(
        self, source: Node, key: Node | str, dtype: torch.dtype, make: Callable[[Node, torch.dtype], Node]
    ) -> Node:
        if (key, dtype) not in self._made:
            self._made[key, dtype] = make(source, dtype)
        return self._made[key, dtype]

    def _before_widening(self, source: Node, dtype: torch.dtype) -> Node:
        """What was cast from ``dtype`` to ``source``, since nothing is lost on the way there and back."""
        if source.target is _TO and self._values.dtype(source) is torch.float32 and dtype is torch.bfloat16:
            narrow, _, *options = source.args
            assert isinstance(narrow, Node)
            plain = not any(options) and not any(source.kwargs.values())
            if plain and self._values.dtype(narrow) is dtype and not self._is_written(narrow):
                return narrow
        return source

    def _gives_bfloat16_exactly(self, dequantize: Node) -> bool:
        """Whether ``out_dtype`` means rounding once: per tensor, torch subtracts the zero point in it."""
        if self._values.dtype(dequantize) is not torch.float32:
            return False
        integers = dequantize.args[0]
        assert isinstance(integers, Node)
        is_8_bit = self._values.value(integers).dtype in (torch.uint8, torch.int8)
        return is_8_bit or dequantize.target is DEQUANTIZE_PER_CHANNEL

    def _dequantize(self, source: Node, dtype: torch.dtype) -> Node:
        with self._gm.graph.inserting_after(source):
            new = self._gm.graph.node_copy(source)
        new.update_kwarg("out_dtype", dtype)
        self._values.set_cast(new, source, dtype)
        self._replaced[source] = None
        return new

    def _constant(self, source: Node, dtype: torch.dtype) -> Node:
        tensor = get_tensor(self._gm, str(source.target))
        target = self._names.fresh(f"{source.target}_{str(dtype).removeprefix('torch.')}")
        set_tensor(self._gm, target, _saturated(tensor.detach(), dtype), like=tensor)
        with self._gm.graph.inserting_after(source):
            new = self._gm.graph.get_attr(target)
        new.meta = dict(source.meta)
        self._values.set_cast(new, source, dtype)
        self._replaced[source] = None
        return new

    def _conversion(self, source: Node, dtype: torch.dtype, reader: Node) -> Node:
        with self._gm.graph.inserting_before(reader):
            new = self._gm.graph.call_function(_TO, (source, dtype, False, False, None))
        origin = source if reader.op == "output" else reader
        new.meta = {key: origin.meta[key] for key in _ORIGIN_KEYS if key in origin.meta}
        self._values.set_cast(new, source, dtype)
        return new


def _saturated(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` in ``dtype``, with finite numbers staying finite."""
    cast = tensor.to(dtype)
    if not cast.isinf().any():
        return cast
    limits = torch.finfo(dtype)
    return torch.where(tensor.isinf(), tensor, tensor.clamp(limits.min, limits.max)).to(dtype)
