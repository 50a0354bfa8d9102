"""``emit-inductor``: replace dequantize → operators → quantize by the backend's kernels."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import attrs
import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import PipelineError
from ..ir import quantized_decomposed as qd
from ..ir.attributes import delete_unused
from ..ir.bodies import explain_bodies, is_body
from ..ir.meta import KERNEL_KEY
from ..ir.operators import is_float_operator, is_precision_change, maker
from ..ir.reasons import REASONS
from ..ir.schema import complete_arguments
from ..ir.stages import Stage
from ..ir.sweep import erase_unread
from ..matchers.operator_pattern import KernelCall, OperatorPattern, Refusal, Sharing
from .base import PassContext
from .contracts import KERNELS, Contract
from .registry import register_pass

__all__ = ["EmitInductor"]

_CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}
_CONTIGUOUS: Final = torch.ops.aten.contiguous.default


@register_pass
@attrs.frozen
class EmitInductor:
    """Matches the context's operator patterns in the Q/DQ graph and puts their kernels in place.

    The patterns are Inductor's, run ahead of time on the undecomposed graph, so the result needs neither
    freezing nor an environment variable. What no kernel takes stays dequantize → operator → quantize, which
    the compiler fuses into its loops.
    """

    name: ClassVar[str] = "emit-inductor"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = Stage.LOWERED
    contract: ClassVar[Contract | None] = KERNELS
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Lower in place."""
        # Inductor's matcher takes a second to import, and who does not lower does not need it.
        from ..matchers.inductor import replace_with_kernels

        if not context.patterns:
            raise PipelineError(
                "emit-inductor has no operator patterns to lower to",
                hint="use lower_pt2e(model, backend=…), or PassContext(patterns=backend.patterns)",
            )
        replaced: list[Node] = []
        refusing: dict[Node, OperatorPattern] = {}

        def lowered(pattern: OperatorPattern, call: KernelCall, node: Node) -> None:
            assert pattern.kernel is not None
            node.meta[KERNEL_KEY] = f"{pattern.name} → {pattern.kernel.name}"
            replaced.append(node)
            for replaced_node in call.nodes:
                context.ledger.quantized(
                    replaced_node,
                    pattern.name,
                    f"runs as {pattern.kernel.name}",
                    intended=_reads_low_precision(replaced_node),
                    kernel=pattern.kernel.name,
                    runs_at=node.name,
                )

        def refused(pattern: OperatorPattern, call: KernelCall, refusal: Refusal) -> None:
            assert pattern.kernel is not None
            for left_node in call.nodes:
                # Of one pattern the first reason counts: it was tried with the quantize behind it.
                if refusing.get(left_node) is not pattern:
                    refusing[left_node] = pattern
                    known = REASONS.get(refusal.reason)
                    why = refusal.detail or (refusal.reason if known is None else known.meaning)
                    detail = f"{why}; tried {pattern.kernel.name} as {pattern.name}"
                    intended = _reads_low_precision(left_node)
                    context.ledger.missed(refusal.reason, left_node, detail, intended=intended)

        def allows(pattern: OperatorPattern, call: KernelCall) -> bool:
            return context.allows(pattern.name, call.nodes[0])

        for node in gm.graph.nodes:
            # A program that was saved and loaded again has its trailing defaults left out.
            complete_arguments(node)
        _sink_dequantizes(gm.graph)
        operators = [node for node in gm.graph.nodes if is_float_operator(node)]
        context.ledger.retire({node.name for node in gm.graph.nodes})
        returned = [node.meta.get("val") for node in gm.graph.output_node().all_input_nodes]
        replace_with_kernels(gm, context.patterns, lowered, refused, allows)
        left = set(gm.graph.nodes)
        _explain([node for node in operators if node in left], context)
        if not is_body(gm):
            explain_bodies(gm, context.ledger)
        if replaced and is_body(gm):
            _keep_layouts(gm.graph, returned)
        if replaced:
            erase_unread(gm.graph)
            delete_unused(gm)
        return True


def _sink_dequantizes(graph: Graph) -> None:
    """Move each dequantize to just before its user.

    Inductor does not match across an operator that writes into memory (a cache, a counter); the nodes of a
    pattern must stand together.
    """
    for node in reversed(list(graph.nodes)):
        if qd.is_dequantize(node) and len(node.users) == 1:
            user = next(iter(node.users))
            if user.op != "output":
                user.prepend(node)


def _keep_layouts(graph: Graph, returned: list[Any]) -> None:
    """Return images from a body in the layout that they had.

    Kernels write channels-last. Branches of ``cond`` must agree on a layout, and so must the steps of a loop.

    Args:
        graph: the body.
        returned: what it returned before, as fake tensors.
    """
    output = graph.output_node()
    for node, value in zip(output.all_input_nodes, returned, strict=True):
        if not isinstance(value, torch.Tensor) or value.dim() < 3 or not value.is_floating_point():
            continue
        in_rows = value.is_contiguous()
        layout = torch.contiguous_format if in_rows else _CHANNELS_LAST.get(value.dim())
        if layout is not None and value.is_contiguous(memory_format=layout):
            with graph.inserting_before(output):
                kept = graph.call_function(_CONTIGUOUS, (node,), {"memory_format": layout})
            kept.meta = {"val": value}
            output.replace_input_with(node, kept)


def _reads_low_precision(node: Node) -> bool:
    return any(is_precision_change(source) for source in node.all_input_nodes)


def _explain(left: list[Node], context: PassContext) -> None:
    """Decide about the operators that no kernel replaced."""
    # Which operators the backend knows, and of those it leaves to the compiler, the pattern.
    known = {node.target for p in context.patterns for node in p.captured.graph.nodes}
    compiled = {
        p.anchor: p for p in context.patterns if p.kernel is None and p.sharing is Sharing.SAME_AS_INPUT
    }
    for node in left:
        pattern = compiled.get(node.target)
        if pattern is not None and _is_between_equal_parameters(node):
            context.ledger.quantized(
                node,
                pattern.name,
                "left to the compiler, between 8-bit values",
                intended=True,
                kernel="the compiler",
            )
        elif node not in context.ledger or context.ledger.says_quantized(node):
            if maker(node).target in known:
                context.ledger.missed("no-kernel", node, "no kernel takes it as it is quantized here")
            else:
                context.ledger.missed("no-pattern", node, "the backend has no operator pattern for it")


def _is_between_equal_parameters(node: Node) -> bool:
    neighbours = (*node.all_input_nodes, *node.users)
    return (
        all(map(qd.is_dequantize, node.all_input_nodes))
        and all(map(qd.is_quantize, node.users))
        and len({n.args[1:] for n in neighbours}) == 1
    )
