"""``observers-to-qdq``: replace observers by quantize/dequantize pairs with the parameters they found."""

from __future__ import annotations

import copy
import operator
from typing import Any, ClassVar

import attrs
import torch
from torch.fx import GraphModule, Node

from ..errors import NotCalibratedError
from ..ir import quantized_decomposed as qd
from ..ir.attributes import FreeNames, delete_unused, get_tensor, is_constant, set_tensor
from ..ir.location import locate
from ..ir.observers import DerivedObserver, StatisticObserver
from ..ir.specs import PER_CHANNEL_QSCHEMES, dtype_range
from ..ir.stages import Stage
from ..ir.verifiers import is_observer
from .base import PassContext
from .registry import register_pass

__all__ = ["ObserversToQdq"]

_CAST_DTYPES = frozenset({torch.float16, torch.bfloat16})


@register_pass
@attrs.frozen
class ObserversToQdq:
    """Writes what each observer found into the graph.

    Per-tensor scale and zero point become literals, per-channel ones buffers named after the tensor they
    belong to (``conv1.weight_scale``); dynamic observers become ``choose_qparams`` at run time, float16 ones
    a cast. Observers of constants are run on the constant as it is now, so weights loaded after calibration
    count.
    """

    name: ClassVar[str] = "observers-to-qdq"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.OBSERVED})
    ensures: ClassVar[Stage | None] = Stage.QDQ

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Replace every observer of ``gm``."""
        observers = [
            (node, gm.get_submodule(node.target))
            for node in gm.graph.find_nodes(op="call_module")
            if is_observer(gm.get_submodule(node.target))
        ]
        prepared = _observe_constants(gm, observers)
        _check_calibrated(prepared)
        names = FreeNames(gm)
        channel_buffers: dict[int, tuple[str, str]] = {}
        for node, observer in prepared:
            _replace(gm, node, observer, names, channel_buffers)
        delete_unused(gm)
        return bool(observers)


def _observe_constants(
    gm: GraphModule, observers: list[tuple[Node, torch.nn.Module]]
) -> list[tuple[Node, Any]]:
    """The observers, where those of constants that changed since are copies that looked at them anew.

    The caller's observers keep what they have: the prepared model stays usable.
    """
    stale: dict[int, tuple[torch.nn.Module, torch.Tensor | None]] = {}
    for node, observer in observers:
        source = node.args[0]
        assert isinstance(source, Node)
        if getattr(observer, "observe_once", False) and is_constant(source):
            constant = get_tensor(gm, str(source.target))
            if not (isinstance(observer, StatisticObserver) and observer.has_seen(constant)):
                stale[id(observer)] = (observer, constant)
    if not stale:
        return [*observers]
    for _, observer in observers:
        if isinstance(observer, DerivedObserver):  # it must derive from the copies, so it is copied along
            stale[id(observer)] = (observer, None)
    copies = copy.deepcopy([observer for observer, _ in stale.values()])
    for fresh, (_, constant) in zip(copies, stale.values(), strict=True):
        if constant is not None:
            fresh(constant)
    fresh_by_id = dict(zip(stale, copies, strict=True))
    return [(node, fresh_by_id.get(id(observer), observer)) for node, observer in observers]


def _check_calibrated(observers: list[tuple[Node, Any]]) -> None:
    unseen = [node for node, observer in observers if not getattr(observer, "has_data", True)]
    if unseen:
        raise NotCalibratedError(
            f"{len(unseen)} of {len(observers)} observers never saw data, the first at %{unseen[0].name} "
            f"(of %{unseen[0].all_input_nodes[0].name})",
            where=locate(unseen[0].all_input_nodes[0]),
            hint="run the prepared model on representative inputs first: calibrate(prepared, loader)",
        )


def _replace(
    gm: GraphModule,
    node: Node,
    observer: Any,
    names: FreeNames,
    channel_buffers: dict[int, tuple[str, str]],
) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    graph = gm.graph
    dtype: torch.dtype = observer.dtype
    with graph.inserting_before(node):
        if dtype in _CAST_DTYPES:
            low = graph.call_function(qd.CONVERT_ELEMENT_TYPE, (source, dtype))
            new = graph.call_function(qd.CONVERT_ELEMENT_TYPE, (low, _float_dtype(source)))
        else:
            quant_min, quant_max = _range(observer)
            tail = (quant_min, quant_max, dtype)
            if getattr(observer, "is_dynamic", False):
                symmetric = observer.qscheme == torch.per_tensor_symmetric
                choose = qd.CHOOSE_QPARAMS_SYMMETRIC if symmetric else qd.CHOOSE_QPARAMS
                eps = float(getattr(observer, "eps", torch.finfo(torch.float32).eps))
                chosen = graph.call_function(choose, (source, quant_min, quant_max, eps, dtype))
                scale = graph.call_function(operator.getitem, (chosen, 0))
                zero_point = graph.call_function(operator.getitem, (chosen, 1))
                arguments = (scale, zero_point, *tail)
                pair = (qd.QUANTIZE_PER_TENSOR_DYNAMIC, qd.DEQUANTIZE_PER_TENSOR_DYNAMIC)
            elif observer.qscheme in PER_CHANNEL_QSCHEMES:
                if id(observer) not in channel_buffers:
                    channel_buffers[id(observer)] = _register_qparams(gm, source, observer, names)
                scale, zero_point = (graph.get_attr(name) for name in channel_buffers[id(observer)])
                arguments = (scale, zero_point, observer.ch_axis, *tail)
                pair = (qd.QUANTIZE_PER_CHANNEL, qd.DEQUANTIZE_PER_CHANNEL)
            else:
                scale, zero_point = observer.calculate_qparams()
                arguments = (float(scale), int(zero_point), *tail)
                pair = (qd.QUANTIZE_PER_TENSOR, qd.DEQUANTIZE_PER_TENSOR)
            quantized = graph.call_function(pair[0], (source, *arguments))
            out_dtype = _float_dtype(source)
            # Left out for float32: what compilers' patterns for the interchange form expect.
            kwargs: dict[str, Any] = {} if out_dtype is torch.float32 else {"out_dtype": out_dtype}
            new = graph.call_function(pair[1], (quantized, *arguments), kwargs)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _float_dtype(source: Node) -> torch.dtype:
    value = source.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else torch.float32


def _range(observer: Any) -> tuple[int, int]:
    """The quantized range, which observers of the user's own may leave to the dtype."""
    quant_min, quant_max = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if quant_min is not None and quant_max is not None:
        return int(quant_min), int(quant_max)
    held = dtype_range(observer.dtype)
    assert held is not None  # floating dtypes are casts
    return held


def _register_qparams(gm: GraphModule, source: Node, observer: Any, names: FreeNames) -> tuple[str, str]:
    scale, zero_point = observer.calculate_qparams()
    stem = str(source.target) if source.op == "get_attr" else source.name
    registered: list[str] = []
    for suffix, tensor in (("scale", scale), ("zero_point", zero_point)):
        target = names.fresh(f"{stem}_{suffix}")
        set_tensor(gm, target, tensor)
        registered.append(target)
    return registered[0], registered[1]
