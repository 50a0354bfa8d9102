"""The pass ``normalize``: one way of writing what ``torch.export`` writes in many."""

from __future__ import annotations

from typing import ClassVar, cast

import attrs
import torch
from torch.fx import Graph, GraphModule, Node

from ..ir.attributes import delete_unused, nested_graph_modules
from ..ir.canonical_operators import canonical_call
from ..ir.control_flow import bodies
from ..ir.ledger import Ledger
from ..ir.operators import is_float_operator
from ..ir.schema import argument, complete_arguments, has_complete_arguments
from ..ir.stages import Stage
from ..ir.sweep import erase_unread
from ..ir.train_eval import DROPOUTS
from .base import PassContext
from .contracts import EXACT, Contract
from .functional_form import make_functional
from .inline_regions import inline_grad_regions
from .registry import register_pass

__all__ = ["Normalize"]

_aten = torch.ops.aten

_WITHOUT_PADDING_MODE = {
    _aten.conv1d.padding: _aten.conv1d.default,
    _aten.conv2d.padding: _aten.conv2d.default,
    _aten.conv3d.padding: _aten.conv3d.default,
}


@register_pass
@attrs.frozen
class Normalize:
    """Bring a float graph into canonical form, keeping every value it computes.

    - Regions of ``torch.no_grad()`` are inlined (:mod:`.inline_regions`).
    - Arguments are complete (:func:`lowbit.ir.schema.complete_arguments`).
    - Of several names of one operator there is one (:mod:`lowbit.ir.canonical_operators`).
    - One ``get_attr`` node reads each attribute.
    - ``padding="valid"`` and symmetric ``padding="same"`` of convolutions are numbers.
    - Dropout that drops nothing, ``detach``, ``detach_`` and ``alias`` are gone.
    - In-place operators are functional (:mod:`.functional_form`).
    - Nodes, parameters, buffers and submodules that nothing reads are gone; calls with effects stay.

    Values are kept, gradients are not: without ``detach`` and ``no_grad`` they flow further. With
    ``keep_gradients``, for graphs that are to be trained, ``detach`` stays, and stands behind what was a
    region of ``torch.no_grad()``.

    Bodies of ``cond``, ``while_loop`` and the like are normalized as well; their code is not generated.
    What had to be left is entered in the ledger, with the reasons of the two modules named above and
    ``asymmetric-same-padding``; so are operators that are gone. Linear in nodes and edges.
    """

    name: ClassVar[str] = "normalize"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = EXACT
    keep_gradients: bool = False

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """See :class:`~lowbit.passes.base.Pass`."""
        keep = self.keep_gradients
        changed = _normalize(gm, context, is_body=False, keep_gradients=keep)
        ledgers = {id(b.module): context.ledger.inside(b.name, b.callers) for b in bodies(gm)}
        for module in nested_graph_modules(gm):
            inside = attrs.evolve(context, ledger=ledgers.get(id(module), Ledger()))
            changed |= _normalize(module, inside, is_body=True, keep_gradients=keep)
        if changed:
            delete_unused(gm)
        return changed


def _normalize(gm: GraphModule, context: PassContext, *, is_body: bool, keep_gradients: bool) -> bool:
    graph = gm.graph
    changed = inline_grad_regions(gm, context, keep_gradients=keep_gradients)
    for node in graph.nodes:
        if not has_complete_arguments(node) and context.allows("complete-arguments", node):
            changed |= complete_arguments(node)
        call = canonical_call(node) if has_complete_arguments(node) else None
        if call is not None and context.allows("canonical-operator", node):
            node.target, node.args, node.kwargs = call
            changed = True
    changed |= _merge_attribute_reads(graph, context)
    changed |= _resolve_padding_modes(graph, context)
    changed |= _drop_identities(graph, context, is_body=is_body, keep_gradients=keep_gradients)
    # Who is not read himself is no reader on whose account a write has to stay.
    changed = _erase_unread(graph, context) or changed
    while make_functional(graph, context):
        changed = True
        # Functional forms let aliases go that had to stay before, and other writes.
        _drop_identities(graph, context, is_body=is_body, keep_gradients=keep_gradients)
        if not _erase_unread(graph, context):
            break
    changed |= _erase_unread(graph, context)
    return changed


def _erase_unread(graph: Graph, context: PassContext) -> bool:
    def erasing(node: Node) -> None:
        if is_float_operator(node):
            context.ledger.removed(node, "unread", by=Normalize.name)

    return erase_unread(graph, erasing)


def _merge_attribute_reads(graph: Graph, context: PassContext) -> bool:
    first: dict[str, Node] = {}
    changed = False
    for node in graph.find_nodes(op="get_attr"):
        kept = first.setdefault(node.target, node)
        if kept is not node and context.allows("merge-attribute-reads", node):
            node.replace_all_uses_with(kept)
            graph.erase_node(node)
            changed = True
    return changed


def _resolve_padding_modes(graph: Graph, context: PassContext) -> bool:
    changed = False
    for with_mode, with_numbers in _WITHOUT_PADDING_MODE.items():
        for node in graph.find_nodes(op="call_function", target=with_mode):
            padding = _padding_numbers(node)
            if padding is None:
                detail = "the two ends are padded by different amounts"
                context.ledger.missed("asymmetric-same-padding", node, detail)
                continue
            if not context.allows("padding-mode", node):
                continue
            node.update_arg(4, padding)
            node.target = with_numbers
            changed = True
    return changed


def _padding_numbers(node: Node) -> list[int] | None:
    """What ``padding="same"`` or ``"valid"`` adds at either end of each dimension; None when they differ."""
    weight, dilation = node.args[1], cast("list[int]", argument(node, "dilation"))
    value = weight.meta.get("val") if isinstance(weight, Node) else None
    if not isinstance(value, torch.Tensor):
        return None
    kernel = list(value.shape[2:])
    if argument(node, "padding") == "valid":
        return [0] * len(kernel)
    # One dilation may stand for all dimensions. padding="same" requires stride 1.
    dilations = [*dilation] * (len(kernel) if len(dilation) == 1 else 1)
    total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    return None if any(t % 2 for t in total) else [t // 2 for t in total]


def _drop_identities(graph: Graph, context: PassContext, *, is_body: bool, keep_gradients: bool) -> bool:
    # The same memory under another name; detach_ returns its very input.
    aliases = (_aten.alias.default,) if keep_gradients else (_aten.alias.default, _aten.detach.default)
    identities: list[Node] = []
    if not keep_gradients:
        identities += graph.find_nodes(op="call_function", target=_aten.detach_.default)
    for target in DROPOUTS:
        dropouts = graph.find_nodes(op="call_function", target=target)
        identities += [node for node in dropouts if argument(node, "train") is False]
    # An operator that changes the shape of a tensor in place does not change that of its aliases.
    if not any(_changes_shape_in_place(node) for node in graph.nodes):
        for target in aliases:
            identities += graph.find_nodes(op="call_function", target=target)
    changed = False
    for node in identities:
        source = node.args[0]
        assert isinstance(source, Node)
        # The body of a control-flow operator may not return its input.
        if is_body and source.op == "placeholder":
            continue
        if not context.allows("drop-identity", node):
            continue
        context.ledger.removed(node, "identity", by=Normalize.name, into=source)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        changed = True
    return changed


def _changes_shape_in_place(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.inplace_view in tags and node.target is not _aten.detach_.default
