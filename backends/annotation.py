"""Annotating a float graph from operator patterns.

Operators that compute ask for low-precision inputs; their output is quantized by whoever reads it in low
precision, or not at all. Operators that move values (pooling, concatenation, reshapes) follow: they run in
low precision where their inputs are there already and a reader wants the result, and then share one scale
throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import torch
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from ..ir.annotation import QuantizationAnnotation, is_annotated, set_annotation
from ..ir.ledger import Ledger
from ..ir.specs import QuantizationConfig, QuantizationSpec, QuantizationSpecBase, SharedQuantizationSpec
from ..matchers.match import Match
from ..matchers.operator_pattern import Mode, Occurrence, OperatorPattern, Role, Sharing
from .batch_norm import annotate_past_batch_norms

__all__ = ["ConfigOf", "annotate_patterns"]

ConfigOf = Callable[[tuple[Node, ...]], "QuantizationConfig | None"]
"""The configuration for the operators of a match; None leaves them float."""


@attrs.define
class _Annotator:
    graph: Graph
    config_of: ConfigOf
    ledger: Ledger
    claimed: set[Node]
    low_outputs: set[Node] = attrs.Factory(set)
    """Outputs of operators that can write low precision."""
    low_edges: dict[Node, QuantizationSpec] = attrs.Factory(dict)
    """Tensors that some operator reads in low precision, with the spec of the first such edge."""
    written: dict[Node, QuantizationSpec] = attrs.Factory(dict)
    """Outputs that are quantized whoever reads them, with their spec."""


def annotate_patterns(
    graph: Graph, patterns: Iterable[OperatorPattern], config_of: ConfigOf, ledger: Ledger
) -> None:
    """Annotate every occurrence of ``patterns`` in a canonical float graph.

    Larger patterns come first; operators that are annotated already are left alone. BatchNorms that will be
    folded are seen as part of the convolution before them. What is not quantized has
    its reason in ``ledger``.
    """
    ordered = sorted(patterns, key=lambda p: -p.size)
    annotate_past_batch_norms(graph, lambda seen: _annotate(seen, ordered, config_of, ledger))


def _annotate(graph: Graph, ordered: list[OperatorPattern], config_of: ConfigOf, ledger: Ledger) -> None:
    state = _Annotator(graph, config_of, ledger, {node for node in graph.nodes if is_annotated(node)})
    for pattern in ordered:
        if pattern.sharing is Sharing.INDEPENDENT:
            _annotate_compute(state, pattern)
    followers = {p.anchor: p for p in ordered if p.sharing is Sharing.SAME_AS_INPUT}
    _annotate_followers(state, followers)
    _explain_rest(state)


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
            state.ledger.missed("not-configured", anchor, "no configuration applies to it")
            continue
        refusal = _mode_refusal(pattern, config)
        if refusal is not None:
            # Another pattern may be for this mode, and what that says counts more.
            if anchor not in state.ledger:
                state.ledger.missed(refusal, anchor, f"as {pattern.name}")
            continue
        refusal = pattern.match_refusal(match)
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
        state.ledger.quantized(node, pattern.name)
    state.claimed.update(match.nodes)
    state.low_outputs.add(match.anchor)


def _mode_refusal(pattern: OperatorPattern, config: QuantizationConfig) -> str | None:
    if _mode_of(config) in pattern.modes:
        return None
    return f"{'-or-'.join(mode.value for mode in pattern.modes)}-only"


def _mode_of(config: QuantizationConfig) -> Mode:
    activation, weight = config.input_activation, config.weight
    if activation is not None:
        return Mode.DYNAMIC if activation.is_dynamic else Mode.STATIC
    if weight is None:
        return Mode.STATIC
    return Mode.HALF_WEIGHT if weight.dtype is torch.float16 else Mode.WEIGHT_ONLY


def _spec(config: QuantizationConfig, role: Role, pattern: OperatorPattern) -> QuantizationSpec | None:
    if role is not Role.WEIGHT:
        return config.input_activation if role is Role.ACTIVATION else config.bias
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
            state.ledger.missed(refusal[0], node, refusal[1])
            continue
        able.append(node)
        low.add(node)
        written = [state.written[source] for source in node.all_input_nodes if source in state.written]
        if written:
            state.written[node] = written[0]
    # Backwards: of those, who is wanted by a reader in low precision, and in which spec. Behind what is in
    # low precision anyway they all are.
    wanted = state.low_edges | state.written
    for node in reversed(able):
        if node in wanted:
            for source in node.all_input_nodes:
                wanted.setdefault(source, wanted[node])
    for node in able:
        if node in wanted:
            _annotate_follower(node, wanted[node])
            state.ledger.quantized(node, followers[node.target].name)
            state.claimed.add(node)
        else:
            state.ledger.missed("no-low-precision-reader", node, "its result is read in float only")


def _follower_refusal(
    state: _Annotator, pattern: OperatorPattern, node: Node, low: set[Node]
) -> tuple[str, str] | None:
    """Reason code and detail of what keeps ``node`` from following, or None."""
    if not all(source in low for source in node.all_input_nodes):
        return "float-input", "not all of its inputs are in low precision"
    config = state.config_of((node,))
    if config is None:
        return "not-configured", "no configuration applies to it"
    if not _is_float32(node):
        return "activation-not-float32", ""
    refusal = _mode_refusal(pattern, config) or pattern.refusal(Occurrence(node.all_input_nodes, node))
    return None if refusal is None else (refusal, f"as {pattern.name}")


def _is_float32(node: Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.dtype is torch.float32


def _annotate_follower(node: Node, spec: QuantizationSpec) -> None:
    first, *others = node.all_input_nodes
    shared = SharedQuantizationSpec((first, node))
    set_annotation(
        node,
        QuantizationAnnotation(
            input_qspec_map={first: spec, **dict.fromkeys(others, shared)},
            output_qspec=shared,
            _annotated=True,
        ),
    )


def _explain_rest(state: _Annotator) -> None:
    """Float operators that no pattern asked about: the backend has nothing for them."""
    for node in state.graph.nodes:
        if node.op == "call_function" and node not in state.claimed and node not in state.ledger:
            # Of several outputs (split, topk) one in floating-point is enough.
            values = pytree.tree_leaves(node.meta.get("val"))
            if any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values):
                state.ledger.missed("no-pattern", node, "the backend has no operator pattern for it")
