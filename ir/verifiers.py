"""The rules of each stage, and the check of a graph against them.

All broken rules are reported at once. The check is one sweep over the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from ..errors import StageError
from . import quantized_decomposed as qd
from .attributes import AttributeFinder
from .location import describe_node, locate
from .meta import REFERENCE_KEY
from .points import annotated_points
from .stages import Stage

__all__ = ["broken_rules", "is_observer", "stage_error", "verify"]

_MOST_SHOWN = 5
_OUT_DTYPE = torch.ops.higher_order.out_dtype
_ACCUMULATING = frozenset(
    {
        torch.ops.aten.linear.default,
        torch.ops.aten.conv1d.default,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv3d.default,
    }
)


def verify(gm: GraphModule, stage: Stage) -> None:
    """Check that ``gm`` keeps the rules of ``stage``.

    FLOAT, every stage: inputs stand before their users and belong to the graph, attributes and submodules
    exist. ANNOTATED: annotations name edges that are there. OBSERVED: observers take one tensor. QDQ and
    after: no observer is left, literal scales and zero points are legal, what is quantized is dequantized by
    the same parameters. REFERENCE: quantize and dequantize are written out, integer accumulators read
    integers, and a convolution or linear that reads dequantized tensors says why it computes in float. All
    of it goes for nested graphs (the branches of ``cond``, say) too.

    Raises:
        StageError: the broken rules, each with its node.
        AnnotationError: an annotation on an edge that does not exist.
    """
    problems = broken_rules(gm, stage)
    if problems:
        raise stage_error(problems, stage)


def broken_rules(gm: GraphModule, stage: Stage) -> list[tuple[Node, str]]:
    """The rules of ``stage`` that ``gm`` breaks, each with its node.

    Raises:
        AnnotationError: an annotation on an edge that does not exist.
    """
    modules: dict[int, GraphModule] = {}
    problems = list(_structure(gm, modules))
    for module in modules.values():
        if stage is Stage.ANNOTATED and not problems:
            annotated_points(module.graph)
        elif stage is Stage.OBSERVED:
            problems += _observed(module)
        elif stage in {Stage.QDQ, Stage.REFERENCE, Stage.LOWERED}:
            problems += _quantized(module)
        if stage is Stage.REFERENCE:
            problems += _reference(module)
    return problems


def stage_error(problems: list[tuple[Node, str]], stage: Stage) -> StageError:
    """The error that says ``problems``, at least one."""
    (node, text), *others = problems
    more = f" (and {len(others)} more)" if others else ""
    return StageError(
        f"the graph breaks the rules of stage {stage.name} at %{node.name}: {text}{more}",
        where=(*locate(node), *(f"{describe_node(n)}: {t}" for n, t in others[:_MOST_SHOWN])),
        hint="the pass that ran last left it so; dump its diff with the DiffToFolder instrument",
    )


def is_observer(module: object) -> bool:
    """Whether a module is an observer or fake quantizer, lowbit's own or a user's."""
    return isinstance(module, torch.nn.Module) and callable(getattr(module, "calculate_qparams", None))


def _structure(gm: GraphModule, visited: dict[int, GraphModule]) -> Iterator[tuple[Node, str]]:
    visited[id(gm)] = gm
    find = AttributeFinder(gm).find
    seen: set[Node] = set()
    for node in gm.graph.nodes:
        for source in node.all_input_nodes:
            if source not in seen:
                elsewhere = "stands after it" if source.graph is gm.graph else "belongs to another graph"
                yield node, f"its input %{source.name} {elsewhere}"
        seen.add(node)
        if node.op in {"get_attr", "call_module"}:
            value = find(str(node.target))
            if value is None:
                yield node, f"the module has no attribute {node.target!r}"
            elif isinstance(value, GraphModule) and id(value) not in visited:
                yield from _structure(value, visited)


def _observed(gm: GraphModule) -> Iterator[tuple[Node, str]]:
    find = AttributeFinder(gm).find
    for node in gm.graph.find_nodes(op="call_module"):
        if len(node.args) != 1 and is_observer(find(str(node.target))):
            yield node, f"an observer takes one tensor, not {len(node.args)}"


def _quantized(gm: GraphModule) -> Iterator[tuple[Node, str]]:
    find = AttributeFinder(gm).find
    for node in gm.graph.nodes:
        if node.op == "call_module":
            if is_observer(find(str(node.target))):
                yield node, "an observer is left"
        elif node.op == "call_function":
            if node.target in (qd.QUANTIZE_PER_TENSOR, qd.DEQUANTIZE_PER_TENSOR):
                yield from _literals(node)
            if node.target in qd.DEQUANTIZE_OPS and qd.is_quantize(node.args[0]):
                quantize = node.args[0]
                assert isinstance(quantize, Node)
                if quantize.args[1:] != node.args[1:]:
                    yield node, f"dequantizes with other parameters than %{quantize.name} quantized with"


def _reference(gm: GraphModule) -> Iterator[tuple[Node, str]]:
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in qd.QUANTIZE_OPS or node.target in qd.DEQUANTIZE_OPS:
            yield node, "it is not written out"
        dequantized = [n for n in node.all_input_nodes if n.meta.get(REFERENCE_KEY) == "dequantize"]
        if node.target is _OUT_DTYPE:
            for source in dequantized:
                yield node, f"an integer accumulator reads %{source.name}, which is float"
        elif node.target in _ACCUMULATING and dequantized and REFERENCE_KEY not in node.meta:
            yield node, f"it computes in float of %{dequantized[0].name} and does not say why"


def _literals(node: Node) -> Iterator[tuple[Node, str]]:
    match node.args:
        case (Node(), int() | float() as scale, int() as zero_point, int() as low, int() as high, _):
            if not (math.isfinite(scale) and scale > 0):
                yield node, f"scale {scale} is not positive and finite"
            if not low <= zero_point <= high:
                yield node, f"zero point {zero_point} is outside [{low}, {high}]"
        case _:
            yield node, f"its arguments are not a tensor, four numbers and a dtype: {node.args}"
