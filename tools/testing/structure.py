"""Laws of structure: what graph a pass makes, made again, of other names, or written down and read back."""

from __future__ import annotations

from typing import Final

from torch.fx import GraphModule, Node

from ...errors import StageError, UnsupportedError
from ...ir.clone import clone_graph_module
from ...ir.meta import ID_KEY, ORIGIN_KEY, REFERENCE_KEY
from ...ir.schema import OpOverload, operator_name
from ...ir.stages import Stage, get_stage
from ...ir.text import parse, to_tensors, to_text
from ...ir.verifiers import verify
from ...passes.reference import RULES
from .canonical import canonical
from .run import LawBroken, Run

__all__ = [
    "blind_to_names",
    "deterministic",
    "idempotent",
    "nothing_left_over",
    "report_honest",
    "rules_fire",
    "stage_verified",
    "text_reads_back",
]


def stage_verified(run: Run) -> None:
    """The graph keeps the rules of the stage that the pass leaves it at."""
    stage = run.pass_.ensures or get_stage(run.before)
    if get_stage(run.after) is not stage:
        raise LawBroken(f"the graph is at {get_stage(run.after).name}, not at {stage.name}")
    try:
        verify(run.after, stage)
    except StageError as error:
        raise LawBroken(str(error)) from error


def idempotent(run: Run) -> None:
    """A second run changes nothing."""
    if get_stage(run.after) not in run.pass_.requires or not run.change.changed:
        return
    second = run.again(run.after)
    if second.change.changed:
        raise LawBroken(f"a second run changes the graph again:\n{second.change.diff}")


def deterministic(run: Run) -> None:
    """Run on a copy, the pass makes the same graph, name by name."""
    if run.again(run.before).change.after.digest != run.change.after.digest:
        raise LawBroken("two runs on the same graph make different graphs")


def blind_to_names(run: Run) -> None:
    """Run on a graph with other names of nodes, the pass makes the same graph but for names."""
    renamed = clone_graph_module(run.before)
    for index, node in enumerate(renamed.graph.nodes):
        if node.op not in {"placeholder", "output"}:
            node._rename(f"n{index}_of_other_name")
    if canonical(run.again(renamed).after) != canonical(run.after):
        raise LawBroken("with other names of nodes the pass makes another graph")


def text_reads_back(run: Run) -> None:
    """Written down and read back, the graph is the same."""
    try:
        text = to_text(run.after)
        again = parse(text, to_tensors(run.after))
    except UnsupportedError:
        return  # weights packed for a kernel cannot be written down
    if to_text(again) != text or canonical(again) != canonical(run.after):
        raise LawBroken("the graph that is read back from its text is another one")


def report_honest(run: Run) -> None:
    """The pass says that it changed something exactly if it did."""
    if run.pass_.ensures is None and run.said and not run.change.changed and not _relabels(run):
        raise LawBroken("the pass said that it changed the graph, and it did not")


def nothing_left_over(run: Run) -> None:
    """No parameter or buffer stays that nothing reads any more, and none is made that nothing reads."""
    left = _unread(run.after) - _unread(run.before)
    if left:
        raise LawBroken(f"nothing reads {', '.join(sorted(left))}, and it stays")


def _unread(gm: GraphModule) -> set[str]:
    read = {str(node.target) for node in gm.graph.nodes if node.op in {"get_attr", "call_module"}}
    return {
        name for name in _tensors(gm) if name not in read and not any(map(read.__contains__, _owners(name)))
    }


def _tensors(gm: GraphModule) -> set[str]:
    return {name for name, _ in (*gm.named_parameters(), *gm.named_buffers())}


def _owners(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def rules_fire(run: Run) -> None:
    """What the reference representation has a rule for is written by it, or the rule says why not."""
    if run.pass_.ensures is not Stage.REFERENCE:
        return
    for node in run.after.graph.nodes:
        if node.meta.get(REFERENCE_KEY) == "float: no-reference-rule" and _rule_name(node) in _RULES:
            raise LawBroken(f"%{node.name} stays float, as if there were no rule {_rule_name(node)}")


_RULES: Final = frozenset(rule.name for rule in RULES)


def _rule_name(node: Node) -> str:
    # Rules are named after what they write, and read tensors alone, but for lists of them.
    if not isinstance(node.target, OpOverload) or any(isinstance(x, (int, float)) for x in node.args[:2]):
        return ""
    _, name, overload = operator_name(node.target)
    return "" if overload == "padding" else name  # of an even window, the two sides of which differ


def _relabels(run: Run) -> bool:
    """Whether what lowbit keeps in metadata differs, which passes tell each other by."""
    before, after = (
        [
            gm.meta.keys(),
            *({k for k in n.meta if k.startswith("lowbit.")} - {ID_KEY, ORIGIN_KEY} for n in gm.graph.nodes),
        ]
        for gm in (run.before, run.after)
    )
    return before != after
