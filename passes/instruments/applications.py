"""Rule applications: what the passes of a run did where, counted, and if asked only the first so many."""

from __future__ import annotations

import attrs
from torch.fx import GraphModule, Node

from ...ir.location import module_path, module_stack, source_line
from ...ir.text import format_target
from ..base import Pass
from .base import Change

__all__ = ["Application", "Applications"]


@attrs.frozen
class Application:
    """One application of a rule.

    Args:
        pass_name: the pass that asked for it.
        rule: what was done, as the pass calls it.
        node: name of the node it was done at.
        target: what that node called, as text.
        inputs: names of the nodes it read.
        module: dotted path of the module that made the node, or a neighbour of it where none did.
        source: source line of the user's model, likewise.
    """

    pass_name: str
    rule: str
    node: str
    target: str
    inputs: tuple[str, ...] = ()
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        inputs = "".join(f" %{name}" for name in self.inputs)
        text = f"{self.pass_name}: {self.rule} at %{self.node} = {self.target}{inputs}"
        text = f"{text}, module {self.module}" if self.module else text
        return f"{text}, {self.source}" if self.source else text


@attrs.define
class Applications:
    """Records the rule applications that passes ask about, and allows the first ``limit`` of them.

    An instrument, which hears what pass is running, and a gate, which is asked::

        seen = Applications(limit=3)
        PassManager((seen,)).run(gm, pipeline, PassContext(gate=seen.allows))

    Args:
        limit: how many are allowed; None for all.
        applied: those that were.
        denied: the others.
    """

    limit: int | None = None
    applied: list[Application] = attrs.field(factory=list, init=False)
    denied: list[Application] = attrs.field(factory=list, init=False)
    _pass_name: str = attrs.field(default="", init=False)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Note who asks from now on."""
        self._pass_name = pass_.name

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Nothing to do."""

    def allows(self, rule: str, node: Node) -> bool:
        """See :meth:`lowbit.passes.PassContext.allows`."""
        around = (node, *node.users, *node.all_input_nodes)
        application = Application(
            self._pass_name,
            rule,
            node.name,
            format_target(node.op, node.target),
            tuple(source.name for source in node.all_input_nodes),
            # At the top its path is "", but it says so.
            next((module_path(n.meta) for n in around if module_stack(n.meta)), ""),
            next(filter(None, (source_line(n.meta) for n in around)), ""),
        )
        allowed = self.limit is None or len(self.applied) < self.limit
        (self.applied if allowed else self.denied).append(application)
        return allowed
