"""Writing the nodes of a convolution → BatchNorm block; :mod:`.conv_bn` says what they are for."""

from __future__ import annotations

from typing import Any, Final, cast

import attrs
import torch
from torch.fx import Graph, Node

from .meta import BLOCK_KEY, PART_KEY
from .schema import OpOverload, signature

__all__ = ["Block", "BlockWriter", "role_of", "set_operand"]

_aten = torch.ops.aten

# Scales of no larger magnitude cannot be divided by: that a channel is off is all they say. In float16 this
# is 0, and only 0 is off.
_SMALLEST_SCALE: Final = 2.0**-100
_KEPT_META: Final = ("nn_module_stack", "stack_trace", "from_node")


@attrs.frozen
class Block:
    """What both forms of a block need to know.

    Args:
        name: the name of the BatchNorm node.
        weight: attribute of the convolution's weight; the others alike, None where there is none.
        bias: of its bias.
        gamma: of BatchNorm's weight.
        beta: of its bias.
        mean: of the running mean.
        var: of the running variance.
        eps: added to the variance.
        momentum: of the running statistics.
        cudnn: the last argument of ``aten.batch_norm``.
        training: whether BatchNorm, in training form, uses the statistics of the batch.
        groups: of the convolution.
        transposed: whether the convolution is.
    """

    name: str
    weight: str
    bias: str | None
    gamma: str | None
    beta: str | None
    mean: str
    var: str
    eps: float
    momentum: float
    cudnn: bool
    training: bool
    groups: int
    transposed: bool


@attrs.frozen
class BlockWriter:
    """Writes the nodes of a block, before its convolution.

    Args:
        conv: the convolution or linear.
        block: what is known of the block.
        reads: the nodes that read attributes, by name; kept up to date.
    """

    conv: Node
    block: Block
    reads: dict[str, Node]

    @property
    def graph(self) -> Graph:
        """The graph of the block."""
        return self.conv.graph

    def call(self, role: str, target: OpOverload, args: tuple[Any, ...], val: object) -> Node:
        """A call before the convolution; ``val`` is its fake value, None where nobody asks."""
        with self.graph.inserting_before(self.conv):
            node = self.graph.call_function(target, args)
        node.meta = {key: self.conv.meta[key] for key in _KEPT_META if key in self.conv.meta}
        node.meta[PART_KEY] = role
        if val is not None:
            node.meta["val"] = val
        return node

    def attribute(self, name: str) -> Node:
        """The node that reads the attribute ``name``, standing before the convolution."""
        node = self.reads.get(name)
        if node is None:
            with self.graph.inserting_before(self.conv):
                node = self.reads[name] = self.graph.get_attr(name)
        elif not node < self.conv:
            self.conv.prepend(node)
        return node

    def optional_attribute(self, name: str | None) -> Node | None:
        """The same of an attribute that need not be there."""
        return None if name is None else self.attribute(name)

    def scale(self) -> Node:
        """γ / sqrt(var + ε), ``[channels]``, without gradient."""
        block, var = self.block, self.attribute(self.block.var)
        val = var.meta.get("val")
        shifted = self.call("scale", _aten.add.Scalar, (var, block.eps), val)
        scale = self.call("scale", _aten.rsqrt.default, (shifted,), val)
        if block.gamma is not None:
            scale = self.call("scale", _aten.mul.Tensor, (scale, self.attribute(block.gamma)), val)
        return self.call("scale", _aten.detach.default, (scale,), val)

    def scale_of(self, scaled: Node) -> Node:
        """The scale that a scaled weight was made with."""
        node = cast(Node, scaled.args[1])
        while role_of(node) == "rows":
            node = cast(Node, node.args[0])
        return node

    def scaled_weight(self, scale: Node) -> Node:
        """W · s, of the shape of the weight."""
        weight = self.attribute(self.block.weight)
        rows = self._rows(scale, weight)
        return self.call("scaled", _aten.mul.Tensor, (weight, rows), weight.meta.get("val"))

    def _rows(self, scale: Node, weight: Node) -> Node:
        """``scale`` in a shape that broadcasts against the weight.

        The weight of a convolution is ``(out, in / groups, …)``, that of a transposed one
        ``(in, out / groups, …)``, whose blocks of ``in / groups`` rows belong to one group each.
        """
        ndim, rows = weight.meta["val"].ndim, weight.meta["val"].shape[0]
        if not self.block.transposed:
            return self.call("rows", _aten.view.default, (scale, [-1, *(1,) * (ndim - 1)]), None)
        groups = self.block.groups
        grouped = self.call("rows", _aten.view.default, (scale, [groups, 1, -1]), None)
        expanded = self.call("rows", _aten.expand.default, (grouped, [groups, rows // groups, -1]), None)
        return self.call("rows", _aten.reshape.default, (expanded, [rows, -1, *(1,) * (ndim - 2)]), None)

    def unscaled_weight(self, quantized: Node, scaled: Node) -> tuple[Node, Node]:
        """``quantized`` with the scale of ``scaled`` taken back, and that as the convolution reads it."""
        weight, rows = cast(Node, scaled.args[0]), cast(Node, scaled.args[1])
        val = weight.meta.get("val")
        magnitude = self.call("off", _aten.abs.default, (rows,), None)
        off = self.call("off", _aten.le.Scalar, (magnitude, _SMALLEST_SCALE), None)
        divisor = self.call("off", _aten.masked_fill.Scalar, (rows, off, 1.0), None)
        unscaled = self.call("unscaled", _aten.div.Tensor, (quantized, divisor), val)
        return unscaled, self.call("restored", _aten.where.self, (off, weight, unscaled), val)

    def folded_bias(self, scale: Node) -> Node:
        """(b - mean) · s + β, ``[channels]``."""
        block, mean = self.block, self.attribute(self.block.mean)
        val = mean.meta.get("val")
        if block.bias is None:
            shift = self.call("folded", _aten.neg.default, (mean,), val)
        else:
            shift = self.call("folded", _aten.sub.Tensor, (self.attribute(block.bias), mean), val)
        shift = self.call("folded", _aten.mul.Tensor, (shift, scale), val)
        if block.beta is not None:
            shift = self.call("folded", _aten.add.Tensor, (shift, self.attribute(block.beta)), val)
        return shift

    def batch_norm(self) -> Node:
        """The BatchNorm behind the convolution, read by all that read the convolution."""
        block, conv = self.block, self.conv
        tensors = [self.optional_attribute(n) for n in (block.gamma, block.beta, block.mean, block.var)]
        readers = list(conv.users)
        with self.graph.inserting_after(conv):
            norm = self.graph.create_node(
                "call_function",
                _aten.batch_norm.default,
                (conv, *tensors, block.training, block.momentum, block.eps, block.cudnn),
                name=block.name,
            )
        norm.meta = {**conv.meta, BLOCK_KEY: block}
        for reader in readers:
            reader.replace_input_with(conv, norm)
        return norm


def role_of(node: object) -> str | None:
    """What ``node`` computes of a block, or None."""
    return node.meta.get(PART_KEY) if isinstance(node, Node) else None


def set_operand(conv: Node, name: str, value: Node | None) -> None:
    """Let the convolution or linear read ``value`` as its ``weight`` or ``bias``."""
    conv.update_arg(signature(cast(OpOverload, conv.target)).positional[name], value)
