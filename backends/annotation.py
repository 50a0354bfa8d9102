"""Annotating a float graph from operator patterns.

Operators that compute ask for low-precision inputs; their output is quantized by whoever reads it in low
precision, or not at all. Operators that move values (pooling, concatenation, reshapes) follow: they run in
low precision where their inputs are there already and a reader wants the result, and then share one scale
throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeGuard

import attrs
import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..ir.annotation import QuantizationAnnotation, get_annotation, is_annotated, set_annotation
from ..ir.ledger import Ledger
from ..ir.operators import is_float_operator, is_pointwise
from ..ir.specs import QuantizationConfig, QuantizationSpec, QuantizationSpecBase, SharedQuantizationSpec
from ..matchers.match import Match
from ..matchers.near_miss import NearMisses
from ..matchers.operator_pattern import Mode, Occurrence, OperatorPattern, Refusal, Role, Sharing
from .capabilities import mode_of
from .inference_view import annotate_as_inference

__all__ = ["ConfigOf", "annotate_patterns", "mode_code", "modes_of_code"]

_FOLLOWED: Final = (torch.float32, torch.bfloat16, None)
"""The dtypes of what values are moved of in low precision; None is that of graphs that do not say."""

ConfigOf = Callable[[tuple[Node, ...]], "QuantizationConfig | None"]
"""The configuration for the operators of a match; None leaves them float."""

WhyNone = Callable[[tuple[Node, ...]], str]
"""Why there is none for them, in one sentence."""


_NO_PATTERN: Final = Refusal("no-pattern", "the backend has no operator pattern for it")
_POINTWISE: Final = Refusal("pointwise", "it has no int8 kernel of its own")


@attrs.define
class _Annotator:
    graph: Graph
    config_of: ConfigOf
    ledger: Ledger
    left_float: Mapping[Any, Refusal]
    fuses_pointwise: bool
    why_none: WhyNone
    claimed: set[Node]
    low_outputs: set[Node] = attrs.Factory(set)
    """Outputs of operators that can write low precision."""
    low_edges: dict[Node, QuantizationSpec] = attrs.Factory(dict)
    """Tensors that some operator reads in low precision, with the spec of the first such edge."""
    written: dict[Node, QuantizationSpec] = attrs.Factory(dict)
    """Outputs that are quantized whoever reads them, with their spec."""


def annotate_patterns(
    graph: Graph,
    patterns: Iterable[OperatorPattern],
    config_of: ConfigOf,
    ledger: Ledger,
    left_float: Mapping[Any, Refusal] | None = None,
    *,
    fuses_pointwise: bool = False,
    why_none: WhyNone = lambda nodes: "no configuration applies to it",
) -> None:
    """Annotate every occurrence of ``patterns`` in a canonical float graph.

    Larger patterns come first; operators that are annotated already are left alone. Graphs in training are
    seen as inference will see them (:mod:`.inference_view`). What is not quantized has its reason in
    ``ledger``; of operators that no pattern asks about that in ``left_float``, ``pointwise`` where the
    compiler of the backend ``fuses_pointwise`` ones, or ``no-pattern``.
    """
    ordered = sorted(patterns, key=lambda p: -p.size)

    def annotate(seen: Graph) -> None:
        claimed = {node for node in seen.nodes if is_annotated(node)}
        state = _Annotator(
            seen,
            config_of,
            ledger,
            left_float=left_float or {},
            fuses_pointwise=fuses_pointwise,
            why_none=why_none,
            claimed=claimed,
        )
        _annotate(state, ordered)

    annotate_as_inference(graph, annotate, ledger)


def _annotate(state: _Annotator, ordered: list[OperatorPattern]) -> None:
    _take_up_annotations(state)
    for pattern in ordered:
        if pattern.sharing is Sharing.INDEPENDENT:
            _annotate_compute(state, pattern)
    followers = {p.operator: p for p in ordered if p.sharing is Sharing.SAME_AS_INPUT}
    _annotate_followers(state, followers)
    _explain_rest(state, NearMisses(ordered))


def _take_up_annotations(state: _Annotator) -> None:
    """What others annotated counts: what they read and write in low precision may be followed."""
    for node in state.graph.nodes:
        annotation = get_annotation(node) if node in state.claimed else None
        if annotation is None:
            continue
        for source, spec in annotation.input_qspec_map.items():
            if _is_static(spec) and source.op != "get_attr":
                state.low_edges.setdefault(source, spec)
        if _is_static(annotation.output_qspec):
            state.written[node] = annotation.output_qspec
            state.low_outputs.add(node)


def _is_static(spec: QuantizationSpecBase | None) -> TypeGuard[QuantizationSpec]:
    return isinstance(spec, QuantizationSpec) and not spec.is_dynamic


def _annotate_compute(state: _Annotator, pattern: OperatorPattern) -> None:
    for anchor in state.graph.find_nodes(op="call_function", target=pattern.anchor):
        if anchor in state.claimed:
            continue
        match = pattern.matcher.match_at(anchor, claimed=state.claimed)
        if not isinstance(match, Match):
            # That something else stands there is no news; that it is almost the pattern is.
            if match.reason != "different-target":
                state.ledger.missed(match.reason, anchor, f"as {pattern.name}: {match.detail}")
            continue
        config = state.config_of(match.nodes)
        if config is None:
            state.ledger.missed("not-configured", anchor, state.why_none(match.nodes))
            continue
        refusal = _mode_refusal(pattern, config)
        if refusal is not None:
            # Another pattern may be for this mode, and what that says counts more.
            if state.ledger.reason_of(anchor) in (None, _NO_PATTERN.reason):
                state.ledger.missed(refusal, anchor, f"as {pattern.name}")
            continue
        refusal = pattern.match_refusal(match) or _range_refusal(pattern, match, config)
        if refusal is not None:
            state.ledger.missed(refusal, anchor, f"as {pattern.name}")
            continue
        _annotate_match(state, pattern, match, config)


def _annotate_match(
    state: _Annotator, pattern: OperatorPattern, match: Match, config: QuantizationConfig
) -> None:
    inputs: dict[Node, dict[Node, QuantizationSpecBase | None]] = {node: {} for node in match.nodes}
    placeholders = pattern.matcher.pattern.find_nodes(op="placeholder")
    for placeholder, role, bound in zip(placeholders, pattern.roles, match.placeholder_nodes, strict=True):
        spec = _spec(config, role, pattern)
        if bound is None or spec is None:
            continue
        for pattern_user in placeholder.users:
            user = match.nodes_map[pattern_user]
            assert user is not None  # only inputs of a pattern may be absent
            inputs[user][bound] = spec
        if role is Role.ACTIVATION:
            state.low_edges.setdefault(bound, spec)
    output = config.output_activation if pattern.quantizes_output else None
    if output is not None:
        state.written[match.anchor] = output
    for node in match.nodes:
        output_here = output if node is match.anchor else None
        set_annotation(node, QuantizationAnnotation(inputs[node], output_here, _annotated=True))
        state.ledger.quantized(node, pattern.name, intended=bool(inputs[node]))
    state.claimed.update(match.nodes)
    state.low_outputs.add(match.anchor)


def _mode_refusal(pattern: OperatorPattern, config: QuantizationConfig) -> str | None:
    if mode_of(config) in pattern.modes:
        return None
    return mode_code(pattern.modes)


def _range_refusal(pattern: OperatorPattern, match: Match, config: QuantizationConfig) -> str | None:
    """``activation-empty``: a range that is found at run time is one of numbers, and there are none."""
    if mode_of(config) is not Mode.DYNAMIC:
        return None
    activations = [
        bound
        for role, bound in zip(pattern.roles, match.placeholder_nodes, strict=True)
        if role is Role.ACTIVATION and bound is not None
    ]
    return "activation-empty" if any(map(_is_empty, activations)) else None


def _is_empty(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and any(statically_known_true(size == 0) for size in value.shape)


def mode_code(modes: tuple[Mode, ...]) -> str:
    """The reason code of what is for ``modes`` alone: ``static-or-dynamic-only``."""
    return "-or-".join(mode.value for mode in modes).removesuffix("-only") + "-only"


def modes_of_code(code: str) -> tuple[Mode, ...]:
    """The modes that :func:`mode_code` made ``code`` of; none of another reason code."""
    names = code.removesuffix("-only").split("-or-")
    modes = tuple(mode for mode in Mode if mode.value.removesuffix("-only") in names)
    return modes if mode_code(modes) == code else ()


def _spec(config: QuantizationConfig, role: Role, pattern: OperatorPattern) -> QuantizationSpec | None:
    if role is not Role.WEIGHT:
        return {Role.ACTIVATION: config.input_activation, Role.BIAS: config.bias}.get(role)
    # A configuration serves all operators, so it says axis 0 where it means output channels.
    if config.weight is not None and config.weight.ch_axis == 0 and pattern.weight_axis != 0:
        return attrs.evolve(config.weight, ch_axis=pattern.weight_axis)
    return config.weight


def _annotate_followers(state: _Annotator, followers: dict[object, OperatorPattern]) -> None:
    candidates = [
        node
        for node in state.graph.nodes
        if node.op == "call_function" and node.target in followers and node not in state.claimed
    ]
    # Forwards: who has all inputs in low precision, given that those it reads follow too.
    low = state.low_outputs | set(state.low_edges)
    able: list[Node] = []
    for node in candidates:
        refusal = _follower_refusal(state, followers[node.target], node, low)
        if refusal is not None:
            for of_it in (node, *_results(node)):
                state.ledger.missed(refusal[0], of_it, refusal[1])
            continue
        able.append(node)
        low.update(_results(node))
        written = [state.written[source] for source in _tensors(node) if source in state.written]
        if written:
            state.written.update(dict.fromkeys(_results(node), written[0]))
    # Backwards: of those, who is wanted by a reader in low precision, and in which spec. Behind what is in
    # low precision anyway they all are.
    wanted = state.low_edges | state.written
    specs: dict[Node, QuantizationSpec] = {}
    for node in reversed(able):
        asked = [wanted[result] for result in _results(node) if result in wanted]
        if asked:
            specs[node] = asked[0]
            for source in _tensors(node):
                wanted.setdefault(source, asked[0])
    for node in able:
        if node in specs:
            _annotate_follower(node, specs[node])
        for of_it in (node, *_results(node)):
            if node in specs:
                state.ledger.quantized(of_it, followers[node.target].name, intended=of_it is node)
                state.claimed.add(of_it)
            else:
                state.ledger.missed("no-low-precision-reader", of_it, "its result is read in float only")


def _results(node: Node) -> tuple[Node, ...]:
    """The tensors that ``node`` makes: itself, or what picks them out of the several that it returns."""
    return tuple(node.users) if isinstance(node.meta.get("val"), (list, tuple)) else (node,)


def _tensors(node: Node) -> list[Node]:
    """The tensors that ``node`` reads; what else it reads are sizes."""
    values = ((source, source.meta.get("val")) for source in node.all_input_nodes)
    return [source for source, value in values if value is None or isinstance(value, torch.Tensor)]


def _follower_refusal(
    state: _Annotator, pattern: OperatorPattern, node: Node, low: set[Node]
) -> tuple[str, str] | None:
    """Reason code and detail of what keeps ``node`` from following, or None."""
    sources, results = _tensors(node), _results(node)
    floats = [source for source in sources if source not in low]
    if floats or not sources:
        return "float-input", f"in float: {', '.join(f'%{each.name}' for each in floats) or 'all it reads'}"
    if any(result.target is not pattern.anchor for result in results):
        return "several-results", "its results are handed on together"
    config = state.config_of((node,))
    if config is None:
        return "not-configured", state.why_none((node,))
    if len(set(map(_dtype, (*sources, *results))) - {None}) > 1 or _dtype(results[0]) not in _FOLLOWED:
        return "activation-not-float32", ""
    refusal = _mode_refusal(pattern, config) or pattern.refusal(Occurrence(sources, results[0]))
    return None if refusal is None else (refusal, f"as {pattern.name}")


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _annotate_follower(node: Node, spec: QuantizationSpec) -> None:
    first, *others = _tensors(node)
    shared = SharedQuantizationSpec((first, node))
    inputs: dict[Node, QuantizationSpecBase | None] = {first: spec, **dict.fromkeys(others, shared)}
    results = _results(node)
    output = shared if results == (node,) else None
    set_annotation(node, QuantizationAnnotation(inputs, output, _annotated=True))
    for result in results:
        if result is not node:
            set_annotation(result, QuantizationAnnotation({}, shared, _annotated=True))


def _explain_rest(state: _Annotator, near: NearMisses) -> None:
    """Float operators that no pattern asked about: the backend has nothing for them, or almost something."""
    for node in state.graph.nodes:
        if node in state.claimed or not is_float_operator(node):
            continue
        # Of several quantizers, one that has more to say than that it has no pattern says it.
        if state.ledger.reason_of(node) in (None, _NO_PATTERN.reason):
            rest = _POINTWISE if state.fuses_pointwise and is_pointwise(node.target) else _NO_PATTERN
            why = state.left_float.get(node.target, rest)
            state.ledger.missed(why.reason, node, why.detail)
        miss = near.of(node)
        if miss is not None:
            state.ledger.almost(node, miss)
