"""``fuse-conv-bn-qat``: let training see the convolution weights that inference will have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar, cast

import attrs
import torch
from torch.fx import Graph, GraphModule, Node

from ...ir.annotation import QuantizationAnnotation, get_annotation, set_annotation
from ...ir.attributes import is_constant
from ...ir.batch_norm import BATCH_NORMS, Norm, NotFoldable, producer_layout, read_norm
from ...ir.conv_bn import attribute_reads, make_block
from ...ir.ledger import Ledger
from ...ir.points import map_points
from ...ir.schema import argument
from ...ir.specs import EdgeOrNode
from ...ir.stages import Stage
from ..base import PassContext
from ..contracts import REAL, Contract
from ..registry import register_pass

__all__ = ["FuseConvBnQat", "explain_fused", "fusable_norm"]

_aten = torch.ops.aten


@register_pass
@attrs.frozen
class FuseConvBnQat:
    """Make blocks of convolution (or linear) and BatchNorm; :mod:`lowbit.ir.conv_bn` says what they compute.

    conv1d to conv3d, their transposes (with groups), and linear; with or without bias; BatchNorm with or
    without affine parameters, in training or frozen. Values and gradients stay those of the two operators as
    long as nothing is rounded. Annotations of weight and bias move to their folded values, and with them what
    other specs derive from those edges or share with them.

    Declines, entering the reason in the ledger: ``not-after-convolution``, ``several-users``,
    ``batch-statistics``, ``channel-axis``, ``not-floating-point`` and ``parameters-not-constant`` as
    ``fold-batch-norm`` does, and

    - ``not-aten-batch-norm``: another operator than ``aten.batch_norm``, as older exports wrote.
    - ``mixed-dtypes``: the parameters of the two differ in dtype.
    - ``quantized-between``: the output of the convolution is annotated, so BatchNorm reads rounded values.
    - ``quantized-parameter``: a parameter is annotated by itself, or as an input of BatchNorm.

    Linear in nodes.
    """

    name: ClassVar[str] = "fuse-conv-bn-qat"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.ANNOTATED})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = REAL

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """See :class:`~lowbit.passes.base.Pass`."""
        norms = [n for t in BATCH_NORMS for n in gm.graph.find_nodes(op="call_function", target=t)]
        reads = attribute_reads(gm.graph)
        moved: dict[EdgeOrNode, EdgeOrNode] = {}
        constant = functools.cache(is_constant)
        fused = [_fuse(call, reads, moved, constant, context) for call in sorted(norms)]
        if moved:
            _follow(gm.graph, moved)
        return any(fused)


def fusable_norm(call: Node, constant: Callable[[Node], bool]) -> tuple[Norm, int, bool]:
    """The BatchNorm ``call`` with the layout of the convolution before it: groups, and whether transposed.

    ``constant`` is a cached :func:`~lowbit.ir.attributes.is_constant`, which goes through the users of a
    node: the parameters of a module that is called often have many.

    Raises:
        NotFoldable: the two cannot be fused.
    """
    if call.target is not _aten.batch_norm.default:
        raise NotFoldable("not-aten-batch-norm", f"it is {call.target}")
    norm = read_norm(call)
    groups, transposed = producer_layout(norm.source, norm)
    parameters = (argument(norm.source, "weight"), argument(norm.source, "bias"), norm.weight, norm.bias)
    dtypes: set[torch.dtype] = set()
    for node in (*parameters, norm.mean, norm.var):
        if not isinstance(node, Node):
            continue
        # BatchNorm writes its own statistics.
        if node.op != "get_attr" or (node not in (norm.mean, norm.var) and not constant(node)):
            raise NotFoldable("parameters-not-constant", f"{node.name} is computed or written to")
        itself = get_annotation(node)
        if itself is not None and itself.output_qspec is not None:
            raise NotFoldable("quantized-parameter", f"{node.name} itself is annotated")
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            dtypes.add(value.dtype)
    if not all(dtype.is_floating_point for dtype in dtypes):
        raise NotFoldable("not-floating-point", "a parameter is not floating-point")
    if len(dtypes) > 1:
        raise NotFoldable("mixed-dtypes", f"their parameters are {' and '.join(sorted(map(str, dtypes)))}")
    before = get_annotation(norm.source)
    if before is not None and before.output_qspec is not None:
        raise NotFoldable("quantized-between", f"the output of {norm.source.name} is annotated")
    annotation = get_annotation(call)
    for source, spec in () if annotation is None else annotation.input_qspec_map.items():
        if spec is not None:
            reason = "quantized-between" if source is norm.source else "quantized-parameter"
            raise NotFoldable(reason, f"what it reads from {source.name} is annotated")
    return norm, groups, transposed


def _fuse(
    call: Node,
    reads: dict[str, Node],
    moved: dict[EdgeOrNode, EdgeOrNode],
    constant: Callable[[Node], bool],
    context: PassContext,
) -> bool:
    """Fuse one BatchNorm, or enter in the ledger why not; ``moved`` gets the edges that have moved."""
    try:
        norm, groups, transposed = fusable_norm(call, constant)
    except NotFoldable as verdict:
        context.ledger.missed(verdict.reason, call, verdict.detail)
        return False
    if not context.allows("fuse", call):
        return False
    conv = norm.source
    annotation = get_annotation(conv) or QuantizationAnnotation()
    specs = dict(annotation.input_qspec_map)
    weight = cast(Node, argument(conv, "weight"))
    bias = cast("Node | None", argument(conv, "bias"))
    # A shifted channel needs a bias, whatever the convolution has: it is quantized like one that is there.
    weight_spec, bias_spec = specs.pop(weight, None), specs.pop(bias, None) if bias is not None else None
    edges = make_block(
        norm, reads, groups, transposed, weight=weight_spec is not None, bias=bias_spec is not None
    )
    for edge, node, spec in ((edges.weight, weight, weight_spec), (edges.bias, bias, bias_spec)):
        if edge is not None and node is not None:
            folded, reader = edge
            set_annotation(
                reader,
                QuantizationAnnotation(
                    {folded: spec},
                    allow_implicit_sharing=annotation.allow_implicit_sharing,
                    _annotated=True,
                ),
            )
            moved[node, conv] = edge
    if get_annotation(conv) is not None:
        set_annotation(conv, attrs.evolve(annotation, input_qspec_map=specs))
    explain_fused(call, conv, context.ledger)
    return True


def explain_fused(call: Node, conv: Node, ledger: Ledger) -> None:
    """Enter in ``ledger`` that the BatchNorm ``call`` fares as the convolution ``conv`` before it."""
    if ledger.says_quantized(conv):
        ledger.quantized(call, "batch-norm", f"folded into {conv.name}")
    else:
        ledger.missed("convolution-not-quantized", call, f"it is folded into {conv.name}, which stays float")


def _follow(graph: Graph, moved: dict[EdgeOrNode, EdgeOrNode]) -> None:
    """Let specs that refer to points in ``moved`` refer to where they are now."""

    def now(point: EdgeOrNode) -> EdgeOrNode:
        return moved.get(point, point)

    for node in graph.nodes:
        annotation = get_annotation(node)
        if annotation is not None:
            specs = {source: map_points(spec, now) for source, spec in annotation.input_qspec_map.items()}
            output = map_points(annotation.output_qspec, now)
            set_annotation(node, attrs.evolve(annotation, input_qspec_map=specs, output_qspec=output))
