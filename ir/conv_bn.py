"""Convolution → BatchNorm in quantization-aware training: two forms of one block.

With ``s = γ / sqrt(var + ε)`` per channel, inference runs the convolution with the weight ``q(W · s)`` and
the bias ``(b - mean) · s + β`` (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018, section 3.2); ``q`` is what the fake quantizer does. Training must
see that weight, and BatchNorm the statistics of the batch.

- **Training form**: ``batch_norm(conv(x, q(W · s) / s, b))``. The scale is taken back on the weight, which is
  smaller than the output, and no gradient goes through ``s``: what it would carry is the rounding error
  divided by ``s``, without bound as γ goes to 0. Channels with ``s`` about 0 use ``W`` itself; BatchNorm
  multiplies them by γ = 0 later. Without fake quantization this is the block as it was, gradients included.
- **Evaluation form**: ``conv(x, q(W · s), (b - mean) · s + β)``, the arithmetic of the converted model, so
  that the two agree to the bit.

A block is found by what its BatchNorm (training) or convolution (evaluation) carries in ``node.meta``.
"""

from __future__ import annotations

from typing import cast

import attrs
import torch
from torch.fx import Graph, GraphModule, Node

from .attributes import get_tensor
from .batch_norm import Norm
from .conv_bn_writer import Block, BlockWriter, role_of, set_operand
from .meta import BLOCK_KEY, PART_KEY
from .schema import argument

__all__ = [
    "BlockEdges",
    "Part",
    "attribute_reads",
    "blocks_in_evaluation",
    "blocks_in_training",
    "constant_parts",
    "enter_evaluation",
    "enter_training",
    "make_block",
]

_aten = torch.ops.aten


def attribute_reads(graph: Graph) -> dict[str, Node]:
    """The first node that reads each attribute, by name."""
    reads: dict[str, Node] = {}
    for node in graph.find_nodes(op="get_attr"):
        reads.setdefault(node.target, node)
    return reads


def blocks_in_training(graph: Graph) -> list[Node]:
    """The BatchNorm of each block in training form."""
    norms = graph.find_nodes(op="call_function", target=_aten.batch_norm.default)
    return [node for node in norms if BLOCK_KEY in node.meta]


def blocks_in_evaluation(graph: Graph) -> list[Node]:
    """The convolution of each block in evaluation form."""
    return [
        node for node in graph.nodes if BLOCK_KEY in node.meta and node.target is not _aten.batch_norm.default
    ]


@attrs.frozen
class BlockEdges:
    """Where weight and bias of a block are to be quantized: (folded value, its reader), or None."""

    weight: tuple[Node, Node] | None
    bias: tuple[Node, Node] | None


def make_block(
    norm: Norm, reads: dict[str, Node], groups: int, transposed: bool, *, weight: bool, bias: bool
) -> BlockEdges:
    """Make a block, in training form, of a convolution and the BatchNorm ``norm`` behind it.

    Where neither weight nor bias is quantized, the training form is the two as they were. A bias that is
    quantized is computed in training too, for its fake quantizer to see, but does not take part.

    Args:
        norm: an ``aten.batch_norm`` whose parameters are attributes of the module.
        reads: see :func:`attribute_reads`; kept up to date.
        groups: see :func:`~lowbit.ir.batch_norm.producer_layout`.
        transposed: likewise.
        weight: whether the weight is to be quantized.
        bias: whether the bias is.
    """
    conv = norm.source
    momentum, cudnn = argument(norm.call, "momentum"), argument(norm.call, "cudnn_enabled")
    block = Block(
        name=norm.call.name,
        weight=_target(argument(conv, "weight")),
        bias=_optional_target(argument(conv, "bias")),
        gamma=_optional_target(norm.weight),
        beta=_optional_target(norm.bias),
        mean=_target(norm.mean),
        var=_target(norm.var),
        eps=norm.eps,
        momentum=cast(float, momentum),
        cudnn=cast(bool, cudnn),
        training=norm.training,
        groups=groups,
        transposed=transposed,
    )
    norm.call.meta[BLOCK_KEY] = block
    if not (weight or bias):
        return BlockEdges(None, None)
    write = BlockWriter(conv, block, reads)
    scale = write.scale()
    scaled = write.scaled_weight(scale)
    unscaled, restored = write.unscaled_weight(scaled, scaled)
    set_operand(conv, "weight", restored)
    bias_edge = None
    if bias:
        folded = write.folded_bias(scale)
        bias_edge = (folded, write.call("bias", _aten.alias.default, (folded,), folded.meta.get("val")))
    return BlockEdges((scaled, unscaled) if weight else None, bias_edge)


def enter_evaluation(gm: GraphModule) -> bool:
    """Bring the blocks of ``gm`` into evaluation form; say whether there was one in training form."""
    norms, reads = blocks_in_training(gm.graph), attribute_reads(gm.graph)
    for norm in norms:
        block: Block = attrs.evolve(norm.meta[BLOCK_KEY], training=argument(norm, "training") is not False)
        conv = cast(Node, norm.args[0])
        write = BlockWriter(conv, block, reads)
        weight = cast(Node, argument(conv, "weight"))
        if role_of(weight) == "restored":
            unscaled = cast(Node, weight.args[2])
            weight = cast(Node, unscaled.args[0])
            scale = write.scale_of(_part_behind(weight))
        else:
            scale = write.scale()
            weight = write.scaled_weight(scale)
        bias = next((end for user in scale.users if (end := _quantized_bias(user)) is not None), None)
        set_operand(conv, "weight", weight)
        set_operand(conv, "bias", write.folded_bias(scale) if bias is None else bias)
        conv.meta[BLOCK_KEY] = block
        norm.replace_all_uses_with(conv)
        gm.graph.erase_node(norm)
    if norms:
        _erase_unread_parts(gm.graph)
    return bool(norms)


def enter_training(gm: GraphModule) -> bool:
    """Bring the blocks of ``gm`` into training form; say whether there was one in evaluation form."""
    convs, reads = blocks_in_evaluation(gm.graph), attribute_reads(gm.graph)
    taken = {node.name for node in gm.graph.nodes} if convs else set[str]()
    for conv in convs:
        block: Block = conv.meta.pop(BLOCK_KEY)
        write = BlockWriter(conv, block, reads)
        quantized = cast(Node, argument(conv, "weight"))
        scaled = _part_behind(quantized)
        if quantized is scaled and role_of(argument(conv, "bias")) != "bias":
            weight = write.attribute(block.weight)
        else:
            _, weight = write.unscaled_weight(quantized, scaled)
        set_operand(conv, "weight", weight)
        set_operand(conv, "bias", write.optional_attribute(block.bias))
        norm = write.batch_norm()
        if block.name not in taken:
            # A graph hands out no name twice, be its node long gone.
            norm.name = block.name
    if convs:
        _erase_unread_parts(gm.graph)
    return bool(convs)


@attrs.frozen
class Part:
    """A node that computes a folded weight or bias, and its value."""

    node: Node
    value: torch.Tensor


def constant_parts(gm: GraphModule, conv: Node) -> tuple[Part, Part]:
    """The folded weight and bias of a block in evaluation form.

    They are computed by the operators of the graph, so they equal what the graph computes to the bit.
    """
    values: dict[Node, torch.Tensor] = {}

    def value(node: Node) -> torch.Tensor:
        if node not in values:
            if node.op == "get_attr":
                values[node] = get_tensor(gm, str(node.target)).detach()
            else:
                assert callable(node.target)
                values[node] = node.target(*(value(a) if isinstance(a, Node) else a for a in node.args))
        return values[node]

    weight, bias = cast(Node, argument(conv, "weight")), cast(Node, argument(conv, "bias"))
    if role_of(bias) == "bias":
        # The alias was there to mark the edge to the fake quantizer.
        set_operand(conv, "bias", cast(Node, bias.args[0]))
    with torch.no_grad():
        first, second = (Part(node, value(node)) for node in map(_part_behind, (weight, bias)))
    return first, second


def _target(node: object) -> str:
    assert isinstance(node, Node)
    return str(node.target)


def _optional_target(node: object) -> str | None:
    return None if node is None else _target(node)


def _part_behind(node: Node) -> Node:
    """``node``, or what the fake quantizers before it read, up to a part that computes."""
    while node.op == "call_module" or role_of(node) == "bias":
        node = cast(Node, node.args[0])
    return node


def _quantized_bias(node: Node) -> Node | None:
    """The end of the chain from ``node`` to a quantized bias, if it is one."""
    while role_of(node) in ("folded", None) and len(node.users) == 1:
        if role_of(node) is None and node.op != "call_module":
            return None
        (node,) = node.users
    return node if role_of(node) == "bias" else None


def _erase_unread_parts(graph: Graph) -> None:
    for node in reversed(graph.nodes):
        # A quantized bias stays for its fake quantizer, which is to see it in training too.
        if PART_KEY in node.meta and not node.users and role_of(node) != "bias":
            graph.erase_node(node)
