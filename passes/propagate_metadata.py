"""``propagate-metadata``: tell quantize and dequantize nodes where they come from and what they produce."""

from __future__ import annotations

import operator
from typing import Any, ClassVar, Final

import attrs
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node

from ..ir import quantized_decomposed as qd
from ..ir.attributes import get_attribute
from ..ir.stages import Stage
from .base import PassContext
from .contracts import EXACT, Contract
from .registry import register_pass

__all__ = ["PropagateMetadata"]

_ORIGIN_KEYS: Final = ("nn_module_stack", "stack_trace", "from_node", "source_fn_stack", "torch_fn")


@register_pass
@attrs.frozen
class PropagateMetadata:
    """Gives Q/DQ nodes the module path, stack trace and provenance of the operator they serve, and a ``val``.

    A quantize (with its ``choose_qparams`` and what it chose) belongs to the operator that made the tensor, a
    dequantize to the operator that reads it; so do casts there and back. Next to inputs and constants the
    other neighbour stands in.
    """

    name: ClassVar[str] = "propagate-metadata"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = EXACT
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Complete the metadata in place. Metadata alone is not a change of the graph."""
        values = _Values(gm)
        nodes = list(gm.graph.nodes)
        for node in nodes:
            values.complete(node)
        # Backwards, so that a quantize finds its dequantize complete already.
        for node in reversed(nodes):
            if _is_ours(node):
                origin = _origin(node)
                if origin is not None:
                    for key in _ORIGIN_KEYS:
                        if key in origin.meta:
                            node.meta.setdefault(key, origin.meta[key])
        return False


def _is_ours(node: Node) -> bool:
    if node.op != "call_function":
        return False
    return (
        node.target in qd.QUANTIZE_OPS
        or node.target in qd.DEQUANTIZE_OPS
        or node.target in qd.CHOOSE_QPARAMS_OPS
        or node.target is qd.CONVERT_ELEMENT_TYPE
        or _is_chosen(node)
    )


def _is_chosen(node: Node) -> bool:
    """Whether ``node`` is a scale or zero point found at run time."""
    chosen = node.args[0] if node.target is operator.getitem else None
    return isinstance(chosen, Node) and chosen.target in qd.CHOOSE_QPARAMS_OPS


def _origin(node: Node) -> Node | None:
    source = node.args[0]
    assert isinstance(source, Node)
    reader = next((user for user in node.users if user.op != "output"), None)
    casts_back = source.target is qd.CONVERT_ELEMENT_TYPE
    if node.target in qd.DEQUANTIZE_OPS or casts_back or _is_chosen(node):
        return reader or source
    return reader if source.op in {"placeholder", "get_attr"} else source


class _Values:
    """Fake values for the nodes that conversion made.

    A fake operation costs a tenth of a millisecond; models have few distinct shapes, so equal ones are made
    once.
    """

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._made: dict[Any, torch.Tensor] = {}
        values = (node.meta.get("val") for node in gm.graph.nodes)
        self._fake_mode = next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)

    def complete(self, node: Node) -> None:
        if node.meta.get("val") is not None:
            return
        if node.op == "get_attr":
            self._complete_constant(node)
        if not node.all_input_nodes or node.op != "call_function":
            return
        source = node.all_input_nodes[0].meta.get("val")
        if _is_chosen(node) and source is not None:
            node.meta["val"] = source[node.args[1]]
        if not isinstance(source, FakeTensor):
            return
        if node.target in qd.QUANTIZE_OPS:
            node.meta["val"] = self._like(source, _argument_dtype(node))
        elif node.target in qd.DEQUANTIZE_OPS:
            node.meta["val"] = self._like(source, node.kwargs.get("out_dtype") or torch.float32)
        elif node.target is qd.CONVERT_ELEMENT_TYPE:
            node.meta["val"] = self._like(source, node.args[1])
        elif node.target in qd.CHOOSE_QPARAMS_OPS:
            assert callable(node.target)
            with source.fake_mode:
                node.meta["val"] = node.target(source, *node.args[1:])

    def _complete_constant(self, node: Node) -> None:
        constant = get_attribute(self._gm, str(node.target))
        if isinstance(constant, torch.Tensor) and self._fake_mode is not None:
            node.meta["val"] = self._fake(constant, constant.dtype, self._fake_mode)

    def _like(self, source: FakeTensor, dtype: Any) -> torch.Tensor:
        return self._fake(source, dtype, source.fake_mode)

    def _fake(self, source: torch.Tensor, dtype: torch.dtype, fake_mode: FakeTensorMode) -> torch.Tensor:
        shape, stride = tuple(source.shape), source.stride()
        static = all(isinstance(s, int) for s in (*shape, *stride))
        key = (shape, stride, source.device, dtype)
        if static and key in self._made:
            return self._made[key]
        with fake_mode:
            value = torch.empty_strided(shape, stride, dtype=dtype, device=source.device)
        if static:
            self._made[key] = value
        return value


def _argument_dtype(node: Node) -> torch.dtype:
    return next(a for a in node.args if isinstance(a, torch.dtype))
