"""``reference-representation``: quantized operators as integer arithmetic."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch.fx import GraphModule, Node

from ...ir import quantized_decomposed as qd
from ...ir.attributes import delete_unused
from ...ir.meta import KERNEL_KEY, REFERENCE_KEY, STANDS_FOR_KEY
from ...ir.operators import is_float_operator
from ...ir.schema import complete_arguments
from ...ir.stages import Stage
from ...ir.sweep import erase_unread
from ...matchers.operator_pattern import KernelCall, Refusal
from ..base import PassContext
from ..contracts import ONE_STEP, Contract
from ..propagate_metadata import PropagateMetadata
from ..registry import register_pass
from .operands import Tail, find_tail, read_operand, tail_at
from .rule import Found, Rule
from .rules import RULES
from .write_out import write_dequantize, write_quantize

__all__ = ["ReferenceRepresentation"]

_ORIGIN_KEYS = ("nn_module_stack", "stack_trace", "from_node")


@register_pass
@attrs.frozen
class ReferenceRepresentation:
    """Writes dequantize → operator → quantize as integer arithmetic: what the quantized model means, exactly.

    The rules are :data:`~lowbit.passes.reference.RULES`. ReLU and other clamps behind an operator become
    bounds of its output; any other post-operator reads the accumulator scaled to float32. Whatever is left
    of quantize and dequantize is written out in plain operators, so the result is ATen (with ``out_dtype``)
    alone; ``choose_qparams``, which finds dynamic parameters, is the one exception.

    Against the Q/DQ graph a quantized value differs by one step at most, and by none where scales are powers
    of two (and biases whole steps of their accumulators), as float32 is exact there. Why an operator stays
    float is in the ledger.
    """

    name: ClassVar[str] = "reference-representation"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = Stage.REFERENCE
    contract: ClassVar[Contract | None] = ONE_STEP
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Rewrite in place."""
        for node in gm.graph.nodes:
            # A program that was saved and loaded again has its trailing defaults left out.
            complete_arguments(node)
        PropagateMetadata().run(gm, context)  # rules ask for shapes
        rewriting = _Rewriting(gm, context)
        for rule in RULES:
            for found in rule.find(gm.graph):
                rewriting.apply(rule, found)
        rewriting.explain()
        erase_unread(gm.graph)
        _write_out(gm, context)
        erase_unread(gm.graph)
        delete_unused(gm)
        return True


@attrs.define(eq=False)
class _Rewriting:
    """The rewriting of one graph.

    Args:
        gm: whose graph it is.
        context: of the pass.
        done: operators that were rewritten, and are erased in the end.
        refused: the others, each with the first rule that met it, and why that did not apply.
    """

    gm: GraphModule
    context: PassContext
    done: set[Node] = attrs.field(factory=set[Node])
    refused: dict[Node, tuple[Rule, Refusal]] = attrs.field(factory=dict[Node, tuple[Rule, Refusal]])

    def apply(self, rule: Rule, found: Found) -> None:
        """Rewrite what was found, or note why not."""
        if not self.done.isdisjoint(found.operators) or found.quantize in self.done:
            return
        if not any(map(qd.is_dequantize, found.tensors.values())):
            return
        tail = _tail(found)
        calls = [self._call(found, tail)]
        if tail is not None and rule.leaves_float:
            calls.append(self._call(found, None))
        refusal = None
        for call in calls:
            said = rule.kernel.refuses(call)
            if said is None:
                if self.context.allows(rule.name, call.nodes[0] if call.nodes else call.output):
                    self._replace(rule, call, refusal)
                return
            refusal = refusal or said
        assert refusal is not None
        for operator in found.operators:
            self.refused.setdefault(operator, (rule, refusal))

    def _call(self, found: Found, tail: Tail | None) -> KernelCall:
        operands = {name: read_operand(node) for name, node in found.tensors.items()}
        nodes = found.operators if tail is None else (*found.operators, *tail.clamps)
        output = nodes[-1] if tail is None else tail.quantize
        quantization = None if tail is None else tail.quantization
        return KernelCall(self.gm, operands, nodes, output, quantization)

    def _replace(self, rule: Rule, call: KernelCall, refusal: Refusal | None) -> None:
        output = call.output
        before = output.prev
        with call.graph.inserting_before(output):
            new = rule.kernel.emit(call)
        _describe(before, output, new)
        new.meta[KERNEL_KEY] = f"{rule.name} → {rule.kernel.name}"
        output.replace_all_uses_with(new)
        self.done.update((*call.nodes, output))
        for operator in call.nodes:
            detail = "integer arithmetic"
            if call.quantization is None:
                why = refusal.reason if refusal is not None else "result-read-in-float"
                detail = f"integer accumulator, scaled to float32 ({why})"
            self.context.ledger.quantized(operator, rule.name, detail)

    def explain(self) -> None:
        """Say of each float operator between quantized tensors that is left why it is."""
        for node in self.gm.graph.nodes:
            if node in self.done or not any(map(qd.is_dequantize, node.all_input_nodes)):
                continue
            if node in self.refused:
                rule, refusal = self.refused[node]
                detail = f"the rule {rule.name} does not apply"
                detail = f"{detail}: {refusal.detail}" if refusal.detail else detail
                reason = refusal.reason
            elif is_float_operator(node):
                reason, detail = "no-reference-rule", "no rule writes it as integer arithmetic"
            else:
                continue
            node.meta[REFERENCE_KEY] = f"float: {reason}"
            self.context.ledger.missed(reason, node, detail)


def _tail(found: Found) -> Tail | None:
    return find_tail(found.operators[-1]) if found.quantize is None else tail_at(found.quantize)


def _write_out(gm: GraphModule, context: PassContext) -> None:
    for node in gm.graph.nodes:
        if qd.is_quantize(node):
            write, what = write_quantize, "quantize"
        elif qd.is_dequantize(node):
            write, what = write_dequantize, "dequantize"
        else:
            continue
        if not context.allows(f"write-out-{what}", node):
            continue
        before = node.prev
        with gm.graph.inserting_before(node):
            new = write(gm.graph, node)
        _describe(before, node, new)
        new.meta[REFERENCE_KEY] = what
        node.replace_all_uses_with(new)


def _describe(before: Node, old: Node, new: Node) -> None:
    """Tell the nodes between ``before`` and ``old``, which ``new`` stands for, where they come from."""
    origin = {key: old.meta[key] for key in _ORIGIN_KEYS if key in old.meta}
    node = before.next
    while node is not old:
        node.meta = dict(origin)
        node = node.next
    new.meta[STANDS_FOR_KEY] = old.name
    if "val" in old.meta:
        new.meta["val"] = old.meta["val"]
