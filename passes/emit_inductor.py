"""``emit-inductor``: replace dequantize → operators → quantize by the backend's kernels."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch.fx import Graph, GraphModule, Node

from ..errors import PipelineError
from ..ir.attributes import delete_unused
from ..ir.quantized_decomposed import is_dequantize
from ..ir.schema import complete_arguments
from ..ir.snapshot import KERNEL_KEY
from ..ir.stages import Stage
from ..ir.sweep import erase_unread
from ..matchers.inductor import inductor_patterns
from ..matchers.operator_pattern import KernelCall, OperatorPattern
from .base import PassContext
from .registry import register_pass

__all__ = ["EmitInductor"]


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

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Lower in place."""
        if not context.patterns:
            raise PipelineError(
                "emit-inductor has no operator patterns to lower to",
                hint="use lower_pt2e(model, backend=…), or PassContext(patterns=backend.patterns)",
            )
        replaced: list[Node] = []

        def lowered(pattern: OperatorPattern, call: KernelCall, node: Node) -> None:
            assert pattern.kernel is not None
            node.meta[KERNEL_KEY] = f"{pattern.name} → {pattern.kernel.name}"
            replaced.append(node)
            for operator in call.nodes:
                context.ledger.quantized(operator, pattern.name, f"runs as {pattern.kernel.name}")

        def refused(pattern: OperatorPattern, call: KernelCall, reason: str) -> None:
            assert pattern.kernel is not None
            for operator in call.nodes:
                context.ledger.missed(reason, operator, f"{pattern.kernel.name} does not take {pattern.name}")

        for node in gm.graph.nodes:
            # A program that was saved and loaded again has its trailing defaults left out.
            complete_arguments(node)
        _sink_dequantizes(gm.graph)
        inductor_patterns(context.patterns, lowered, refused).apply(gm)
        if replaced:
            erase_unread(gm.graph)
            delete_unused(gm)
        return True


def _sink_dequantizes(graph: Graph) -> None:
    """Move each dequantize to just before its user.

    Inductor does not match across an operator that writes into memory, and kernels that accumulate in place
    do; the nodes of a pattern must stand together.
    """
    for node in reversed(list(graph.nodes)):
        if is_dequantize(node) and len(node.users) == 1:
            user = next(iter(node.users))
            if user.op != "output":
                user.prepend(node)
