"""Regions that ``torch.export`` puts into submodules, brought back into the graph (a step of ``normalize``).

The forward of a model under ``torch.no_grad()``, or a ``with torch.no_grad():`` block of it, is exported as a
call of ``wrap_with_set_grad_enabled`` on a submodule of its own. Its operators are the model's operators.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import cast

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from ..ir.attributes import FreeNames, get_attribute, set_tensor
from .base import PassContext

__all__ = ["inline_grad_regions"]


def inline_grad_regions(gm: GraphModule, context: PassContext, *, keep_gradients: bool) -> bool:
    """Inline every ``wrap_with_set_grad_enabled`` region of ``gm``, nested ones too; say whether one was.

    Values are the same. Gradients flow where the region stopped them; with ``keep_gradients`` its results are
    detached, and regions that hold others stay (``nested-grad-region`` in the ledger). Regions under
    ``torch.autocast`` stay, since there the dtypes an operator computes in come from the region, and so do
    regions called in a form that export does not write (``autocast-region``, ``grad-region-form``).
    """
    ledger = context.ledger
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.wrap_with_autocast):
        ledger.missed("autocast-region", node, "its operators compute in the dtypes that autocast chooses")
    todo = gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.wrap_with_set_grad_enabled)
    if not todo:
        return False
    names = FreeNames(gm)
    changed = False
    while todo:
        call = todo.pop()
        region = _region_of(gm, call)
        if region is None:
            ledger.missed("grad-region-form", call, "the region is not called the way torch.export does")
            continue
        inner = region.graph.find_nodes(op="call_function", target=call.target)
        if keep_gradients and inner:
            ledger.missed("nested-grad-region", call, "it turns gradients on or off inside")
            continue
        if not context.allows("inline-region", call):
            continue
        if keep_gradients and call.args[0] is False:
            _detach_results(call)
        inlined = _inline(gm, call, region, names)
        todo.extend(n for n in inlined if n.target is call.target)
        gm.graph.erase_node(call)
        changed = True
    return changed


def _region_of(gm: GraphModule, call: Node) -> GraphModule | None:
    """The submodule that ``call`` runs, if the call and its users have the exported form."""
    reference = call.args[1]
    if not isinstance(reference, Node) or reference.op != "get_attr":
        return None
    region = get_attribute(gm, str(reference.target))
    if not isinstance(region, GraphModule):
        return None
    results = _results(region)
    for user in call.users:
        if user.target is not operator.getitem or not isinstance(results[cast(int, user.args[1])], Node):
            return None
    return region


def _detach_results(call: Node) -> None:
    """Put a ``detach`` behind each result of ``call`` that could have a gradient."""
    for result in list(call.users):
        value = result.meta.get("val")
        if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
            readers = list(result.users)
            with call.graph.inserting_after(result):
                detached = call.graph.call_function(torch.ops.aten.detach.default, (result,))
            detached.meta = dict(result.meta)
            for reader in readers:
                reader.replace_input_with(result, detached)


def _inline(gm: GraphModule, call: Node, region: GraphModule, names: FreeNames) -> list[Node]:
    """Copy the nodes of ``region`` before ``call`` and let the users of ``call`` read them."""
    graph = gm.graph
    operands = iter(call.args[2:])
    values: dict[Node, Argument] = {}
    copies: list[Node] = []
    moved: dict[str, str] = {}
    with graph.inserting_before(call):
        for node in region.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(operands)
            elif node.op != "output":
                copy = graph.node_copy(node, lambda n: values[n])  # pyright: ignore[reportArgumentType]
                if node.op in ("get_attr", "call_module"):
                    copy.target = moved.setdefault(node.target, "") or _move(gm, region, node.target, names)
                    moved[node.target] = copy.target
                values[node] = copy
                copies.append(copy)
    results = _results(region)
    for user in list(call.users):
        user.replace_all_uses_with(cast(Node, values[cast(Node, results[cast(int, user.args[1])])]))
        graph.erase_node(user)
    return copies


def _results(region: GraphModule) -> Sequence[Argument]:
    """What ``region`` returns: torch.export lets every region return a tuple."""
    return cast("Sequence[Argument]", region.graph.output_node().args[0])


def _move(gm: GraphModule, region: GraphModule, target: str, names: FreeNames) -> str:
    """Give ``gm`` what ``region`` has at ``target``; returns the name it has there."""
    value = get_attribute(region, target)
    name = names.fresh(target.replace(".", "_"))
    if isinstance(value, torch.Tensor):
        set_tensor(gm, name, value, like=value)
    elif isinstance(value, torch.nn.Module):
        gm.add_submodule(name, value)
    return name
