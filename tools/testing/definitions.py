"""What holds of every pass, whatever it does: the laws.

A law looks at one run of a pass on a generated graph and raises :class:`LawBroken` if it does not hold.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, Final

import torch
from torch.fx import GraphModule, Interpreter, Node

from ...errors import ContractError, StageError, UnsupportedError
from ...ir.aliasing import is_write
from ...ir.annotation import QuantizationAnnotation, get_annotation
from ...ir.attributes import find_attribute, nested_graph_modules
from ...ir.clone import clone_graph_module
from ...ir.meta import ID_KEY, ORIGIN_KEY, REFERENCE_KEY
from ...ir.points import annotated_points, owner_of, tensor_of
from ...ir.schema import OpOverload, argument, operator_name
from ...ir.sharing import resolve_sharing
from ...ir.specs import DerivedQuantizationSpec, SharedQuantizationSpec
from ...ir.stages import Stage, get_stage
from ...ir.text import parse, to_tensors, to_text
from ...ir.train_eval import switch_to_evaluation
from ...ir.verifiers import is_observer, verify
from ...passes.contracts import contract_of
from ...passes.equivalence import check_contract
from ...passes.reference import RULES
from .canonical import canonical
from .data import refuses_to_convert_without_data, refuses_what_is_no_number
from .modes import copies_are_alike, modes_return, state_kept
from .run import Law, LawBroken, Run
from .telling import (
    annotations_accepted,
    batch_norms_told,
    everything_decided,
    lowering_told,
    patterns_apply,
    regions_told,
)

__all__ = ["COSTLY", "LAWS", "Law", "LawBroken", "Run"]


def stage_verified(run: Run) -> None:
    """The graph keeps the rules of the stage that the pass leaves it at."""
    stage = run.pass_.ensures or get_stage(run.before)
    if get_stage(run.after) is not stage:
        raise LawBroken(f"the graph is at {get_stage(run.after).name}, not at {stage.name}")
    try:
        verify(run.after, stage)
    except StageError as error:
        raise LawBroken(str(error)) from error


def meaning_kept(run: Run) -> None:
    """In float64, the graph computes what it computed, as far as the pass's contract says."""
    _check_meaning(run, run.before, run.after)


def meaning_kept_in_evaluation(run: Run) -> None:
    """So it does where graphs in training are switched to evaluation."""
    if any(argument(node, "training") is True for node in run.before.graph.find_nodes(**_BATCH_NORMS)):
        graphs = [clone_graph_module(gm) for gm in (run.before, run.after)]
        for gm in graphs:
            switch_to_evaluation(gm)
        _check_meaning(run, *graphs)


_BATCH_NORMS: Final[dict[str, Any]] = {
    "op": "call_function",
    "target": torch.ops.aten.batch_norm.default,
}


def _check_meaning(run: Run, before: GraphModule, after: GraphModule) -> None:
    contract = contract_of(run.pass_)
    if contract is None or not (run.change.changed or run.before.meta.keys() != run.after.meta.keys()):
        return
    try:
        check_contract(before, after, run.inputs, contract)
    except ContractError as error:
        raise LawBroken(str(error)) from error


def runs(run: Run) -> None:
    """The graph runs, returns tensors of the shapes and dtypes it returned, and its metadata says what is."""
    if not run.change.changed and not _describes_anew(run):
        return
    want = _forms(_results(run.before, run.inputs, checks_metadata=False))
    try:
        got = _forms(_results(run.after, run.inputs, checks_metadata=True))
    except LawBroken:
        raise
    except Exception as error:
        raise LawBroken(f"it does not run: {type(error).__name__}: {error}") from error
    if want != got:
        raise LawBroken(f"it returns {got} in place of {want}")


def _describes_anew(run: Run) -> bool:
    values = ([n.meta.get("val") for n in gm.graph.nodes] for gm in (run.before, run.after))
    return any(old is not new for old, new in zip(*values, strict=False))


_Form = tuple[tuple[int, ...], torch.dtype]


def _forms(results: tuple[torch.Tensor, ...]) -> list[_Form]:
    return [_form(r) for r in results]


def _form(value: torch.Tensor) -> _Form:
    return tuple(value.shape), value.dtype


class _Runner(Interpreter):
    """Runs a graph node by node, on copies of what it writes to."""

    def __init__(self, gm: GraphModule, checks_metadata: bool) -> None:
        if any(map(is_write, gm.graph.nodes)):
            gm = clone_graph_module(gm)
            for body in nested_graph_modules(gm):
                body.recompile()
        super().__init__(gm)
        self.checks_metadata = checks_metadata

    def run_node(self, n: Node) -> Any:
        value, said = super().run_node(n), n.meta.get("val")
        if self.checks_metadata and isinstance(value, torch.Tensor) and isinstance(said, torch.Tensor):
            is_so, is_said = _form(value), _form(said)
            if is_so != is_said:
                raise LawBroken(f"%{n.name} says it is {is_said}, and is {is_so}")
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Observers take notice of what they see.
        return copy.deepcopy(self.fetch_attr(target))(*args, **kwargs)


def _results(gm: GraphModule, inputs: tuple[Any, ...], *, checks_metadata: bool) -> Any:
    with torch.no_grad():
        return _Runner(gm, checks_metadata).run(*(x.clone() for x in inputs))


def as_under_autocast(run: Run) -> None:
    """What a pass computes in a narrower dtype is what ``torch.autocast`` to it computes, bit for bit."""
    contract, writes = contract_of(run.pass_), any(map(is_write, run.before.graph.nodes))
    if (
        contract is None
        or contract.dtype not in _AUTOCAST
        or get_stage(run.before) is not Stage.FLOAT
        or writes
    ):
        return
    try:
        with torch.autocast("cpu", dtype=contract.dtype):
            want = _results(run.before, run.inputs, checks_metadata=False)
    except RuntimeError:
        return  # torch refuses the mix of dtypes that autocast makes
    got = _results(run.after, run.inputs, checks_metadata=False)
    for index, (one, other) in enumerate(zip(want, got, strict=True)):
        if not torch.allclose(one.to(other.dtype), other, rtol=0, atol=0, equal_nan=True):
            raise LawBroken(f"result {index} is not what autocast to {contract.dtype} computes")


_AUTOCAST: Final = (torch.bfloat16, torch.float16)


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


def annotations_preserved(run: Run) -> None:
    """As long as graphs have annotations, no spec gets lost, though it may move to another point."""
    if get_stage(run.after) is not Stage.ANNOTATED or get_stage(run.before) is not Stage.ANNOTATED:
        return
    before, after = (
        Counter(spec for node in gm.graph.nodes for spec in _specs(get_annotation(node)))
        for gm in (run.before, run.after)
    )
    if before - after:
        raise LawBroken(f"specs are lost: {dict(before - after)}")


def _specs(annotation: QuantizationAnnotation | None) -> list[str]:
    """The specs of an annotation; those of other points without the points, whose names may differ."""
    if annotation is None:
        return []
    specs = [s for s in (*annotation.input_qspec_map.values(), annotation.output_qspec) if s is not None]
    refers = (SharedQuantizationSpec, DerivedQuantizationSpec)
    return [type(s).__name__ if isinstance(s, refers) else repr(s) for s in specs]


def one_observer_a_group(run: Run) -> None:
    """Points have one observer if and only if they share one scale and zero point.

    Whatever the resolver of sharing says, one observer is of one spec, and of one tensor unless specs refer
    to each other.
    """
    if run.pass_.ensures is not Stage.OBSERVED or any(map(is_write, run.before.graph.nodes)):
        return
    now = {node.name: node for node in run.after.graph.nodes}
    points = annotated_points(run.before.graph)
    refers = any(isinstance(spec, (SharedQuantizationSpec, DerivedQuantizationSpec)) for _, spec in points)
    specs = dict(points)
    group_of: dict[int, tuple[int, Any, Any]] = {}
    groups = resolve_sharing(run.before.graph).groups
    if sum(len(group.points) for group in groups) != len(points):
        raise LawBroken("annotated points are in no sharing group, or in several")
    for group in groups:
        observers: set[int] = set()
        if not refers and len({repr(specs[point]) for point in group.points}) > 1:
            raise LawBroken(f"points of several specs are one group: {group}")
        for point in group.points:
            if isinstance(point, Node) or owner_of(point).name not in now:
                continue
            source = tensor_of(point)
            observer = _observer_between(run.after, source.name, now[owner_of(point).name])
            if observer is None:
                raise LawBroken(f"what %{owner_of(point).name} reads of %{source.name} has no observer")
            observers.add(id(observer))
            spec = group.spec if refers else specs[point]
            known = group_of.setdefault(id(observer), (group.index, spec, None if refers else source))
            if known != (group.index, spec, None if refers else source):
                raise LawBroken(f"points of other specs, tensors or groups have the observer of {group}")
        if len(observers) > 1:
            raise LawBroken(f"the points of {group} have {len(observers)} observers")


def _observer_between(gm: GraphModule, source: str, reader: Node) -> Any:
    """The observer that ``reader`` reads the value of ``source`` through, wherever it reads it, or None."""
    seen: dict[int, Any] = {}
    for node in reader.all_input_nodes:
        found, at = None, node
        while at.op == "call_module" and is_observer(module := find_attribute(gm, str(at.target))):
            found = module if found is None else found
            at = at.args[0]
            assert isinstance(at, Node)
        if at.name == source:
            seen[id(found)] = found
    return next(iter(seen.values())) if len(seen) == 1 else None


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


COSTLY: Final[tuple[Law, ...]] = (
    refuses_to_convert_without_data,
    blind_to_names,
    deterministic,
    text_reads_back,
    copies_are_alike,
)
"""The laws that cost more than a run of most passes: a few graphs will do."""

LAWS: Final[tuple[Law, ...]] = (
    stage_verified,
    meaning_kept,
    meaning_kept_in_evaluation,
    runs,
    report_honest,
    nothing_left_over,
    everything_decided,
    patterns_apply,
    annotations_accepted,
    batch_norms_told,
    regions_told,
    lowering_told,
    rules_fire,
    as_under_autocast,
    state_kept,
    modes_return,
    annotations_preserved,
    one_observer_a_group,
    refuses_what_is_no_number,
    idempotent,
    *COSTLY,
)
"""All laws. That the caller's graph and tensors stay as they are, and that no change is concealed, the pass
manager checks in every run."""
