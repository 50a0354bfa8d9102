"""``observers-to-qdq``: replace observers by quantize/dequantize pairs with the parameters they found."""

from __future__ import annotations

import copy
import functools
import operator
from typing import Any, ClassVar

import attrs
import torch
from torch.fx import GraphModule, Node

from ..errors import CalibrationDataError, NotCalibratedError
from ..ir import quantized_decomposed as qd
from ..ir.attributes import FreeNames, delete_unused, find_attribute, get_tensor, is_constant, set_tensor
from ..ir.bodies import is_body
from ..ir.inputs import replace_inputs
from ..ir.location import locate
from ..ir.meta import ANNOTATION_KEY, GROUPS_KEY
from ..ir.observers import DerivedObserver, StatisticObserver
from ..ir.specs import CAST_DTYPES, PER_CHANNEL_QSCHEMES, dtype_range, storage_dtype
from ..ir.stages import Stage
from ..ir.verifiers import is_observer
from .base import PassContext
from .contracts import EXACT, Contract
from .registry import register_pass
from .unseen_body import leave_float, never_ran

__all__ = ["ObserversToQdq"]

_Call = tuple[Node, Any]
"""The node that calls an observer, and the observer (of any class that has what an observer needs)."""


@register_pass
@attrs.frozen
class ObserversToQdq:
    """Writes what each observer found into the graph.

    Per-tensor scale and zero point become literals, per-channel ones buffers named after the tensor they
    belong to (``conv1.weight_scale``); dynamic observers become ``choose_qparams`` at run time, float16 ones
    a cast. Observers of constants are run on the constant as it is now, so weights loaded after calibration
    count. A branch that no calibration batch took stays float (``body-not-calibrated`` in the ledger).

    Warns with UncalibratedBodyWarning of such a branch.
    """

    name: ClassVar[str] = "observers-to-qdq"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.OBSERVED})
    ensures: ClassVar[Stage | None] = Stage.QDQ
    contract: ClassVar[Contract | None] = EXACT
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Replace every observer of ``gm``.

        Raises:
            NotCalibratedError: an observer saw no data.
        """
        modules = [(node, find_attribute(gm, node.target)) for node in gm.graph.find_nodes(op="call_module")]
        found = [(node, module) for node, module in modules if is_observer(module)]
        if is_body(gm) and never_ran([observer for _, observer in found]):
            leave_float(gm, [node for node, _ in found], context)
            found = []
        calls = _observe_constants(gm, found)
        _check_calibrated(calls)
        names = FreeNames(gm)
        channel_qparams: dict[int, tuple[str, str]] = {}
        made: dict[Node, Node] = {}
        for node, observer in calls:
            replace_inputs(node, made)  # what it observes may itself be observed
            is_cast = observer.dtype in CAST_DTYPES
            if not context.allows("cast" if is_cast else "quantize-dequantize", node):
                continue
            with gm.graph.inserting_before(node):
                if is_cast:
                    made[node] = _cast_there_and_back(node, observer.dtype)
                else:
                    made[node] = _quantize_and_dequantize(gm, node, observer, names, channel_qparams)
        for reader in dict.fromkeys(user for node in made for user in node.users):
            replace_inputs(reader, made)
        for node in made:
            gm.graph.erase_node(node)
        for node in gm.graph.nodes:
            # Fulfilled, and about nodes that are no more.
            node.meta.pop(ANNOTATION_KEY, None)
            node.meta.pop(GROUPS_KEY, None)
        delete_unused(gm)
        # Also without observers: annotations of nodes that only claim them may be gone.
        return True


def _observe_constants(gm: GraphModule, calls: list[_Call]) -> list[_Call]:
    """The calls, where observers of constants that changed since are copies that looked at them anew.

    The caller's observers keep what they have: the prepared model stays usable.
    """
    fresh: dict[int, Any] = {}
    # A tied weight may have as many observers as users, and each look goes through the users.
    constant_here = functools.cache(is_constant)
    for node, observer in calls:
        if isinstance(observer, DerivedObserver):
            continue  # observes nothing itself
        source = _observed_tensor(gm, node)
        if getattr(observer, "observe_once", False) and constant_here(source):
            constant = get_tensor(gm, str(source.target))
            if not (isinstance(observer, StatisticObserver) and observer.has_seen(constant)):
                fresh[id(observer)] = copy.deepcopy(observer)
                _observe(fresh[id(observer)], constant, source)
    if not fresh:
        return calls

    def current(observer: Any) -> Any:
        if isinstance(observer, DerivedObserver) and id(observer) not in fresh:
            # A shallow copy: the function it derives with may belong to anything, a whole quantizer say.
            fresh[id(observer)] = copy.copy(observer)
            fresh[id(observer)].sources = tuple(current(source) for source in observer.sources)
        return fresh.get(id(observer), observer)

    return [(node, current(observer)) for node, observer in calls]


def _observe(observer: Any, constant: torch.Tensor, source: Node) -> None:
    try:
        observer(constant)
    except CalibrationDataError as error:
        error.where = (*error.where, *locate(source))
        error.hint = "the constants of the model must be finite: check the checkpoint"
        raise


def _observed_tensor(gm: GraphModule, node: Node) -> Node:
    """What the observer that ``node`` calls looks at, seen through the observers before it."""
    source = node
    while source.op == "call_module" and is_observer(find_attribute(gm, str(source.target))):
        (source,) = source.all_input_nodes
    return source


def _check_calibrated(calls: list[_Call]) -> None:
    has_data: dict[int, bool] = {}
    unseen: list[Node] = []
    for node, observer in calls:
        if id(observer) not in has_data:
            # A dynamic range is found when the model runs: there is nothing to calibrate.
            dynamic = getattr(observer, "is_dynamic", False)
            has_data[id(observer)] = dynamic or getattr(observer, "has_data", True)
            if not has_data[id(observer)]:
                unseen.append(node)
    if unseen:
        node = unseen[0]
        (source,) = node.all_input_nodes
        raise NotCalibratedError(
            f"{len(unseen)} of {len(has_data)} observers never saw data, the first at %{node.name} "
            f"(of %{source.name})",
            where=locate(source),
            hint="run the prepared model on representative inputs first: calibrate(prepared, loader)",
        )


def _cast_there_and_back(node: Node, dtype: torch.dtype) -> Node:
    low = node.graph.call_function(qd.CONVERT_ELEMENT_TYPE, (node.args[0], dtype))
    return node.graph.call_function(qd.CONVERT_ELEMENT_TYPE, (low, _float_dtype(node)))


def _quantize_and_dequantize(
    gm: GraphModule, node: Node, observer: Any, names: FreeNames, channel_qparams: dict[int, tuple[str, str]]
) -> Node:
    graph = gm.graph
    source = node.args[0]
    assert isinstance(source, Node)
    quant_min, quant_max = _range(observer)
    dtype = storage_dtype(observer.dtype)
    if getattr(observer, "is_dynamic", False):
        symmetric = observer.qscheme == torch.per_tensor_symmetric
        choose = qd.CHOOSE_QPARAMS_SYMMETRIC if symmetric else qd.CHOOSE_QPARAMS
        eps = float(getattr(observer, "eps", torch.finfo(torch.float32).eps))
        chosen = graph.call_function(choose, (source, quant_min, quant_max, eps, dtype))
        qparams = tuple(graph.call_function(operator.getitem, (chosen, i)) for i in (0, 1))
        pair = (qd.QUANTIZE_PER_TENSOR_DYNAMIC, qd.DEQUANTIZE_PER_TENSOR_DYNAMIC)
    elif observer.qscheme in PER_CHANNEL_QSCHEMES:
        if id(observer) not in channel_qparams:
            channel_qparams[id(observer)] = _register_qparams(gm, source, observer, names)
        scale, zero_point = (graph.get_attr(name) for name in channel_qparams[id(observer)])
        qparams = (scale, zero_point, observer.ch_axis)
        pair = (qd.QUANTIZE_PER_CHANNEL, qd.DEQUANTIZE_PER_CHANNEL)
    else:
        scale, zero_point = observer.calculate_qparams()
        qparams = (float(scale), int(zero_point))
        pair = (qd.QUANTIZE_PER_TENSOR, qd.DEQUANTIZE_PER_TENSOR)
    quantize, dequantize = pair
    arguments = (*qparams, quant_min, quant_max, dtype)
    out_dtype = _float_dtype(node)
    # Left out for float32: what compilers' patterns for the interchange form expect.
    named: dict[str, Any] = {} if out_dtype is torch.float32 else {"out_dtype": out_dtype}
    quantized = graph.call_function(quantize, (source, *arguments))
    return graph.call_function(dequantize, (quantized, *arguments), named)


def _float_dtype(node: Node) -> torch.dtype:
    """The dtype of what an observer returns, which is what it is given."""
    value = node.meta.get("val")
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
