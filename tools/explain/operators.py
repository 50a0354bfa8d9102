"""``explain``: what became of an operator, a module or a source line."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Container, Iterable

import attrs
from torch.fx import GraphModule, Node

from ...backends.annotation import modes_of_code
from ...backends.base import Backend
from ...backends.choosing import presets_of_modes
from ...backends.registry import get_backend
from ...errors import StageError, UnknownNameError
from ...ir.batch_norm import BATCH_NORMS
from ...ir.float_view import float_view
from ...ir.gone import gone_by_name
from ...ir.ledger import Decision
from ...ir.location import is_at
from ...ir.meta import BACKEND_KEY, ORIGIN_KEY
from ...ir.near_miss import NearMiss
from ...ir.reasons import REASONS
from ...ir.sharing import resolve_sharing
from ...ir.stages import Stage, get_stage
from ...matchers.near_miss import NearMisses
from ...verb_results import coverage, decisions, ledger_of
from .because import (
    Because,
    advice_of,
    find_causes,
    find_nearest_causes,
    low_precision_tensors,
    points_to_a_neighbour,
)
from .explanation import Explanation, OperatorExplanation
from .tensors import TensorReader

__all__ = ["explain"]

_ANNOTATED = (Stage.ANNOTATED, Stage.OBSERVED)


def explain(model: GraphModule, node_or_module: str | Node | None = None) -> Explanation:
    """What became of a model's float operators, and why; of those asked about with all that is known.

    ::

        print(explain(lowered))                     # how much is quantized, and why the rest is not
        print(explain(lowered, "conv2d_3"))         # a node, by its name
        print(explain(lowered, "layer1.0.conv1"))   # a module, by its dotted path
        print(explain(lowered, "model.py:42"))      # a line of the model's source

    Args:
        model: what a verb returned, at any stage.
        node_or_module: a node or its name, the path of a module, or ``file:line``; None for the whole model.
            A node that is no operator (an observer, a kernel, an input) stands for the operators around it;
            of an operator that a pass took out (a BatchNorm that was folded, dropout) it is said which did.

    Raises:
        StageError: no verb has seen the model.
        UnknownNameError: there is no such node, module or line; the hint has the nearest names.
    """
    found = decisions(model) if isinstance(model, GraphModule) else ()
    if not found:
        raise StageError(
            "an explanation was asked of a model that nobody prepared",
            hint="pass what prepare_pt2e, convert_pt2e or lower_pt2e returns",
        )
    about = node_or_module.name if isinstance(node_or_module, Node) else node_or_module
    if about is None:
        return Explanation("", coverage(model), tuple(_with_nearest_causes(model, found)))
    name = about.removeprefix("%")
    asked, gone = _named(name, found), gone_by_name(ledger_of(model).gone, name)
    if not asked:
        into = {each.into for each in gone}
        asked = [d for d in found if d.node in into]
    if not (asked or gone):
        asked = _around_what_is_named(model, name, found)
    explainer = _Explainer(model, found)
    return Explanation(about, coverage(model), tuple(map(explainer.operator, asked)), gone)


def _named(about: str, found: Iterable[Decision]) -> list[Decision]:
    """The decisions that ``about`` names: by node, by module, by source line, by kernel."""
    exact = [d for d in found if d.node == about]
    inside = exact or [d for d in found if about and f"{d.module}.".startswith(f"{about}.")]
    at = inside or [d for d in found if is_at(d.source, about)]
    return at or [d for d in found if about and d.runs_at == about]


def _around_what_is_named(model: GraphModule, about: str, found: Iterable[Decision]) -> list[Decision]:
    """The decisions about the operators next to the node ``about``, which is none."""
    nodes = {node.name: node for node in model.graph.nodes}
    if about in nodes:
        around = _around(nodes[about], {d.node for d in found})
        asked = [d for d in found if d.node in around]
        if asked:
            return asked
    what = "is no operator, and next to none" if about in nodes else "is no node, module or source line"
    raise UnknownNameError(f"{about!r} {what} of the model", hint=_instead(about, model, tuple(found)))


def _instead(about: str, model: GraphModule, decided: tuple[Decision, ...]) -> str:
    """What of the user's model may have been meant: no node that a pass made."""
    if about.isdecimal():
        lines = dict.fromkeys(line for d in decided if (line := _line(d)).endswith(f":{about}"))
        return f"a line is asked about behind its file: {', '.join(lines) or 'model.py:42'}"
    exported = (node.name for node in model.graph.nodes if not _maker_of(node))
    known = {*exported, *(name for d in (*decided, *ledger_of(model).gone) for name in (d.node, d.module))}
    near = difflib.get_close_matches(about, sorted(known - {""}), n=3, cutoff=0.4)
    says = f"the nearest: {', '.join(near)}" if near else "explain without a name lists all operators"
    return f"{says}; of modules that compute nothing, as nn.Identity, torch.export leaves no trace"


def _line(decision: Decision) -> str:
    """``model.py:42``: the source line without its folders and its code."""
    return decision.source.partition(": ")[0].rpartition("/")[2]


def _around(node: Node, operators: Container[str]) -> set[str]:
    """The nearest operators before and behind ``node``, which is none: an observer, an input, a weight."""
    found: set[str] = set()
    ways: tuple[Callable[[Node], list[Node]], ...] = (lambda n: n.all_input_nodes, lambda n: list(n.users))
    for neighbours in ways:
        stack, seen = [node], {node}
        while stack:
            for near in neighbours(stack.pop()):
                if near.name in operators:
                    found.add(near.name)
                elif near not in seen:
                    seen.add(near)
                    stack.append(near)
    return found


def _without_graph(decision: Decision, backend: Backend | None) -> OperatorExplanation:
    """What the ledger says by itself, and the backend of what it has presets for."""
    is_float = decision.status == "float"
    known = REASONS.get(decision.reason) if is_float else None
    presets = _presets_of(decision.reason, backend) if is_float and backend is not None else ()
    named = f": {', '.join(presets)}" if presets else ""
    return OperatorExplanation(
        node=decision.node,
        target=decision.target,
        status=decision.status,
        reason=decision.reason if is_float else "",
        meaning="" if known is None else known.meaning,
        advice="" if known is None else f"{known.advice}{named}",
        detail=decision.detail,
        pattern="" if is_float else decision.reason,
        kernel=decision.kernel,
        runs_at=decision.runs_at,
        note=decision.note,
        nearest=() if decision.nearest is None else (decision.nearest,),
        module=decision.module,
        source=decision.source,
    )


@functools.cache  # as presets make their configurations anew, and backends stay what they are
def _presets_of(reason: str, backend: Backend) -> tuple[str, ...]:
    """The names of the presets of the modes that ``reason`` asks for; none of another reason."""
    modes = modes_of_code(reason)
    return tuple(preset.name for preset in presets_of_modes(backend, modes)) if modes else ()


def _with_nearest_causes(model: GraphModule, found: Iterable[Decision]) -> list[OperatorExplanation]:
    """What the ledger says, and where a reason points to a neighbour, the nearest operator that decides."""
    decided = {d.node: d for d in found}
    pointing = {d.node for d in decided.values() if d.status == "float" and points_to_a_neighbour(d.reason)}
    causes: dict[str, Because] = {}
    if pointing:
        starts = [node for node in float_view(model).graph.nodes if node.name in pointing]
        causes = find_nearest_causes(starts, decided, low_precision_tensors(model))
    backend = _backend_of(model)
    return [
        _because(_without_graph(d, backend), (causes[d.node],) if d.node in causes else ())
        for d in decided.values()
    ]


def _because(said: OperatorExplanation, causes: tuple[Because, ...]) -> OperatorExplanation:
    """With what decides, and advice about that."""
    return attrs.evolve(said, because=causes, advice=advice_of(causes) or said.advice)


class _Explainer:
    """Explains operators of one model with what the graph knows of them."""

    def __init__(self, model: GraphModule, found: Iterable[Decision]) -> None:
        self._decisions = {d.node: d for d in found}
        self._nodes = {node.name: node for node in model.graph.nodes}
        view = float_view(model).graph
        self._floats = {node.name: node for node in view.nodes}
        sharing = resolve_sharing(view) if get_stage(model) in _ANNOTATED else None
        self._tensors = TensorReader(model, sharing)
        self._backend = _backend_of(model)
        self._patterns = () if self._backend is None else self._backend.patterns
        self._low = low_precision_tensors(model)
        self._is_lowered = get_stage(model) is Stage.LOWERED
        self._run_at: dict[str, list[str]] = {}
        for decision in self._decisions.values():
            self._run_at.setdefault(decision.runs_at, []).append(decision.node)

    @functools.cached_property
    def _near(self) -> NearMisses:
        # All patterns are captured for it, which not every question needs.
        return NearMisses(self._patterns)

    def operator(self, decision: Decision) -> OperatorExplanation:
        node = self._nodes.get(decision.node)
        kernel = self._nodes.get(decision.runs_at)
        said = _without_graph(decision, self._backend)
        if kernel is not None:
            return attrs.evolve(
                said,
                run_together=tuple(self._run_at[decision.runs_at]),
                tensors=self._tensors.of_kernel(kernel),
                made_by=_maker_of(kernel),
            )
        if node is None:
            return said
        return attrs.evolve(
            _because(said, self._causes(decision)),
            tensors=self._tensors.around(node),
            nearest=tuple(self._near_misses(decision)),
            made_by=_maker_of(node),
        )

    def _causes(self, decision: Decision) -> tuple[Because, ...]:
        """Where the reason of a float operator comes from, if it points to a neighbour."""
        node = self._floats.get(decision.node)
        if node is None or decision.status != "float":
            return ()
        return find_causes(node, self._decisions, self._low)

    def _near_misses(self, decision: Decision) -> list[NearMiss]:
        """The pattern that comes nearest, and why a BatchNorm behind the operator is not folded into it."""
        node = self._floats.get(decision.node)
        if node is None:
            return []
        fused = next((p for p in self._patterns if p.name == decision.reason), None)
        miss = decision.nearest
        if miss is None:
            # Of what is quantized already, a larger pattern; and of what somebody else annotated.
            miss = self._near.of(node, larger_than=0 if fused is None else fused.size)
            # That other operators stand behind one that is quantized is no miss.
            is_near = miss is not None and (decision.status == "float" or miss.reason != "different-target")
            miss = miss if is_near and miss is not None and not self._is_internal(miss) else None
        misses = [] if miss is None else [miss]
        for reader in sorted(node.users):
            said = self._decisions.get(reader.name)
            if reader.target in BATCH_NORMS and said is not None and said.status == "float":
                detail = f"not folded: {said.detail}" if said.detail else "not folded"
                misses.append(NearMiss("batch-norm", 1, 2, said.reason, reader.name, detail))
        return misses

    def _is_internal(self, miss: NearMiss) -> bool:
        """Whether a pattern of float operators failed at what stands in their place once they are lowered."""
        if not self._is_lowered:
            return False
        node = self._floats[miss.node]
        near = (node, *node.users) if miss.reason == "different-target" else (node,)
        return any(each.op == "call_function" and each.name not in self._decisions for each in near)


def _backend_of(model: GraphModule) -> Backend | None:
    """The backend it was prepared for; None where that is not installed here, as of a saved model."""
    name = model.meta.get(BACKEND_KEY)
    try:
        return None if name is None else get_backend(name)
    except UnknownNameError:
        return None


def _maker_of(node: Node) -> str:
    maker: tuple[str, int | None] = node.meta.get(ORIGIN_KEY) or ("", None)
    return maker[0]
