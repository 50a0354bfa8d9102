"""What a pass is, and the context it runs in.

A pass is a value with a name, the stages it may run at, the stage it leaves, and ``run``. Ten lines are
enough::

    @attrs.frozen
    class DropDropout:
        name: ClassVar[str] = "drop-dropout"
        requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
        ensures: ClassVar[Stage | None] = None

        def run(self, gm: GraphModule, context: PassContext) -> bool:
            dropouts = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.dropout.default)
            for node in dropouts:
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
            return bool(dropouts)

The fields of the attrs class are the pass's options; they are what its text form shows.

A pass that applies a rule at many places asks before each::

            for node in dropouts:
                if context.allows("drop", node):
                    …

Whoever looks for the application that breaks a model (:mod:`lowbit.tools.bisect`) lets the first *n* through
and stops the pipeline behind the pass, so what is left undone need not keep the rules of the stage, but the
graph must still run. A pass that does not ask is bisected as a whole.

A pass with ``bodies: ClassVar[bool] = True`` is also run on each body of ``cond``, ``while_loop``, ``scan``
and ``map``, before the model itself. A body then has its weights as attributes, as a model has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import attrs
from torch.fx import GraphModule, Node

from ..ir.ledger import Ledger
from ..ir.quantizer import Quantizer
from ..ir.stages import Stage
from ..matchers.operator_pattern import OperatorPattern

__all__ = ["Pass", "PassContext"]


@attrs.define
class PassContext:
    """What passes of one run share besides the graph.

    Args:
        quantizer: who annotates; None in runs without an ``annotate`` pass.
        ledger: the decisions taken so far.
        patterns: what the backend can run, for passes that lower.
        gate: asked by :meth:`allows`; None lets everything through.
        backend: the name of the backend whose patterns they are.
    """

    quantizer: Quantizer | None = None
    ledger: Ledger = attrs.Factory(Ledger)
    patterns: tuple[OperatorPattern, ...] = ()
    gate: Callable[[str, Node], bool] | None = None
    backend: str | None = None

    def allows(self, rule: str, node: Node) -> bool:
        """Whether the pass may apply ``rule`` at ``node``; to be asked right before every application.

        Args:
            rule: what is done, a kebab-case name that is unique in the pass.
            node: where: the node that is rewritten, while it is still in the graph.

        Returns:
            False when ``node`` is to be left as it is. Once it was False, it is so for the rest of the pass.
        """
        return self.gate is None or self.gate(rule, node)


@runtime_checkable
class Pass(Protocol):
    """A graph pass: a frozen value with a name, stages and a ``run``."""

    name: ClassVar[str]
    """Kebab-case name, unique among registered passes."""
    requires: ClassVar[frozenset[Stage]]
    """The stages the pass may run at."""
    ensures: ClassVar[Stage | None]
    """The stage of the graph afterwards; None when the pass keeps the stage."""

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Change ``gm.graph`` (and attributes of ``gm``) in place; say whether anything changed.

        ``gm`` is the manager's own copy, so a pass may fail half-way without harm. Tensors are shared with
        the caller's module: replace them, never write into them. The pass neither recompiles nor lints.
        """
        ...
