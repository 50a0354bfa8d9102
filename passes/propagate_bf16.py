"""``propagate-bf16``: what ``torch.autocast`` to bfloat16 does at run time, written into the graph."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import attrs
import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from ..ir.aliasing import is_write, written_inputs, written_memory
from ..ir.attributes import delete_unused, nested_graph_modules
from ..ir.bodies import is_body
from ..ir.control_flow import bodies
from ..ir.inputs import replace_inputs
from ..ir.meta import BODY_KEY
from ..ir.schema import OpOverload, operator_name
from ..ir.stages import Stage
from .base import PassContext
from .bf16_casts import Casts
from .bf16_operators import COMPUTE_IN_BFLOAT16
from .bf16_plan import ASSERT_METADATA, Rule, make_plan
from .bf16_values import Values
from .contracts import ROUNDED_TO_BF16, Contract
from .registry import register_pass

__all__ = ["PropagateBf16"]

_LARGEST: Final = torch.finfo(torch.bfloat16).max
_LOW_PRECISION: Final = (torch.bfloat16, torch.float16)


@register_pass
@attrs.frozen
class PropagateBf16:
    """Lets a model compute in bfloat16, as under ``torch.autocast("cpu", dtype=torch.bfloat16)``.

    Before lowering, for int8 mixed with bfloat16::

        pipeline = backend.lower.before("emit-inductor", PropagateBf16())
        lowered = lower_pt2e(converted, pipeline=pipeline)

    and alone, for bfloat16 without int8::

        PassManager().run(exported, Pipeline((Normalize(), PropagateBf16())))

    - Convolutions and matrix products (``COMPUTE_IN_BFLOAT16`` of :mod:`.bf16_operators`) read and give
      bfloat16. Dequantize operators before them give it themselves, by ``out_dtype``.
    - A quantized convolution or linear whose result is quantized again, behind pointwise operators or not,
      stays as it is: its kernel goes from integers to integers.
    - ``STAY_FLOAT32`` reads and gives float32.
    - All else, pointwise operators, normalizations and softmax among them, goes by torch's type promotion.
    - Tensors written in place (caches, statistics) keep their dtype, and so do integers and float64.

    A tensor is cast once to each dtype, and only where its reader needs another; constants are cast now, and
    stored as ``conv1.weight_bfloat16`` beside or in place of ``conv1.weight``. ``meta["val"]`` is kept true.
    Running the pass again changes nothing. Linear in nodes and edges.

    The values are those of autocast bit for bit, except that

    - results that are quantized again are not rounded to bfloat16 first (see above),
    - the recurrent operators, operators of other namespaces and what reads a tensor sent through float16
      compute in the dtypes they were exported in (``stays-float32`` in the ledger),
    - what goes into the bodies of ``cond``, ``while_loop``, ``scan`` and ``map`` and comes out of them keeps
      its dtype; in them the rules are the same. Other bodies stay as they are (``stays-float32``, too),
    - where torch refuses a mix of dtypes or has no bfloat16 kernel, autocast raises; here they are brought to
      the widest dtype, or to float32,
    - finite literals and constants beyond bfloat16's range, masks of ``finfo(float32).min`` say, become its
      largest or smallest number, where autocast raises or makes them infinite,
    - outputs are cast back to the dtype they had.

    Args:
        keep_output_dtype: cast the model's outputs back to the dtype they had; False leaves those in bfloat16
            that are computed in it.

    Raises:
        GraphInputError: a node does not say what it produces (``meta["val"]``).
    """

    keep_output_dtype: bool = True

    name: ClassVar[str] = "propagate-bf16"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.QDQ})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = ROUNDED_TO_BF16
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """See :class:`~lowbit.passes.base.Pass`."""
        # A body's caller counts on the dtypes of what it returns, as do the other branch and the next step.
        changed = _Propagation(gm, context).run(self.keep_output_dtype or is_body(gm))
        if changed:
            delete_unused(gm)
        return changed


class _Propagation:
    """One sweep over a graph, from its inputs down."""

    def __init__(self, gm: GraphModule, context: PassContext) -> None:
        self.graph = gm.graph
        self.context = context
        self.is_written = functools.cache(written_memory(gm.graph))
        self.plan = make_plan(gm.graph, self.is_written)
        self.values = Values(gm)
        self.casts = Casts(gm, self.values, self.is_written)
        inside = [body for body in bodies(gm) if body.owner is gm]
        left = {b.caller for b in inside if not b.module.meta.get(BODY_KEY) and _has_products(b.module)}
        self.entered = {b.caller for b in inside} - left
        self.changed = False

    def run(self, keep_output_dtype: bool) -> bool:
        for node in list(self.graph.nodes):
            if node in self.plan:
                self._visit(node, self.plan[node])
            elif node.op == "output" and keep_output_dtype:
                self._convert(node, self._exported(node))
        self.casts.finish()
        return self.changed

    def _visit(self, node: Node, rule: Rule) -> None:
        if node.target is ASSERT_METADATA:
            self._correct_assertion(node)
        if rule is Rule.EXPORTED:
            self._note(node)
        dtypes = self._wanted(node, rule)
        if not self.values.would_change(node, dtypes):
            self._convert(node, dtypes)
            return
        if _may_stay(node) and not self.context.allows("change-dtype", node):
            self._convert(node, self._exported(node))
            return
        results = self.values.result_dtypes(node, dtypes)
        if results is None:
            # torch does not take the mix.
            self._note(node)
            dtypes = self._exported(node)
        elif torch.bfloat16 in results:
            self._saturate_literals(node)
        self._convert(node, dtypes)
        if results is not None:
            self.values.set_result(node, results)

    def _note(self, node: Node) -> None:
        # Why an operator is not quantized, if that is known, says more.
        if (
            node.op == "call_function"
            and node not in self.entered
            and node not in self.context.ledger
            and self.values.floating_inputs(node)
        ):
            self.context.ledger.missed("stays-float32", node, "it computes in the dtypes it was exported in")

    def _wanted(self, node: Node, rule: Rule) -> Mapping[Node, torch.dtype]:
        """The dtypes to cast inputs of ``node`` to."""
        now = self.values.floating_inputs(node)
        match rule:
            case Rule.AS_GIVEN:
                return {}
            case Rule.BFLOAT16:
                return {n: torch.bfloat16 for n, d in now.items() if d in (torch.float32, torch.float16)}
            case Rule.FLOAT32:
                return {n: torch.float32 for n, d in now.items() if d in _LOW_PRECISION}
            case Rule.EXPORTED:
                return self._exported(node)
            case Rule.SAME:
                return self._same(node, now)

    def _same(self, node: Node, now: Mapping[Node, torch.dtype]) -> Mapping[Node, torch.dtype]:
        exported = self._exported(node)
        if len(set(exported.values())) > 1:
            # It takes several dtypes, but then those are the ones it is known to take.
            return exported
        written = [n for n in written_inputs(node) if n in now]
        # As in type promotion, tensors without dimensions count only where there are no others.
        deciding = written or [n for n in now if self.values.value(n).ndim] or list(now)
        if not deciding:
            return {}
        dtype = functools.reduce(torch.promote_types, (now[n] for n in deciding))
        return {n: dtype for n in now if n not in written}

    def _exported(self, node: Node) -> Mapping[Node, torch.dtype]:
        return {n: self.values.exported(n) for n in self.values.floating_inputs(node)}

    def _convert(self, node: Node, dtypes: Mapping[Node, torch.dtype]) -> None:
        """Let ``node`` read its inputs in ``dtypes``."""
        now = self.values.floating_inputs(node)
        casts = {n: self.casts.cast(n, d, node) for n, d in dtypes.items() if d is not now[n]}
        replaced = {old: new for old, new in casts.items() if new is not old}
        if replaced:
            replace_inputs(node, replaced)
        self.changed |= bool(casts)

    def _correct_assertion(self, node: Node) -> None:
        """``torch.export`` asserts dtypes before conversions; let it assert what holds now."""
        source = node.args[0]
        assert isinstance(source, Node)
        now = self.values.floating_inputs(node).get(source)
        if now is None or now is self.values.exported(source):
            return
        if node.kwargs.get("dtype") is not None:
            node.update_kwarg("dtype", now)
            self.changed = True
        elif len(node.args) > 3 and node.args[3] is not None:
            node.update_arg(3, now)
            self.changed = True

    def _saturate_literals(self, node: Node) -> None:
        def saturated(value: Any) -> Any:
            if isinstance(value, float) and math.isfinite(value):
                return max(-_LARGEST, min(_LARGEST, value))
            return value

        # FX types the results as arguments of any form; they have the form of what is mapped.
        node.args = map_aggregate(node.args, saturated)  # pyright: ignore[reportAttributeAccessIssue]
        node.kwargs = map_aggregate(node.kwargs, saturated)  # pyright: ignore[reportAttributeAccessIssue]


def _has_products(body: GraphModule) -> bool:
    """Whether ``body``, or a body in it, has what would compute in bfloat16."""
    graphs = (body.graph, *(inner.graph for inner in nested_graph_modules(body)))
    targets = (node.target for graph in graphs for node in graph.nodes)
    return any(isinstance(t, OpOverload) and operator_name(t)[1] in COMPUTE_IN_BFLOAT16 for t in targets)


def _may_stay(node: Node) -> bool:
    """Whether ``node`` may compute as it was exported, whatever its inputs have become.

    What picks of several results or asserts a dtype follows them, and a cast of a tensor that is written into
    would be written instead.
    """
    return node.target not in (operator.getitem, ASSERT_METADATA) and not is_write(node)
