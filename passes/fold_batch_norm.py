"""The pass ``fold-batch-norm``: BatchNorm in evaluation, folded into the convolution or linear before it.

With running statistics BatchNorm is affine per channel, ``y = (x - mean) · γ / sqrt(var + ε) + β``. Of
``x = W * u + b`` that is ``y = W' * u + b'`` with ``s = γ / sqrt(var + ε)``, ``W' = s · W`` per output
channel and ``b' = s · (b - mean) + β`` (Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", 2018, section 3.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, cast

import attrs
import torch
from torch.fx import GraphModule, Node

from ..ir.attributes import FreeNames, delete_unused, get_tensor, is_constant, set_tensor
from ..ir.batch_norm import BATCH_NORMS, Norm, NotFoldable, producer_layout, read_norm
from ..ir.devices import check_has_values
from ..ir.schema import OpOverload, argument, complete_arguments, signature
from ..ir.stages import Stage
from .base import PassContext
from .contracts import REAL, Contract
from .registry import register_pass

__all__ = ["FoldBatchNorm", "fold_batch_norms"]


@register_pass
@attrs.frozen
class FoldBatchNorm:
    """Fold BatchNorm that runs on running statistics into the convolution or linear that feeds it.

    conv1d to conv3d, their transposes (with groups), and linear, each with or without bias. The folded weight
    and bias are computed in float64 and rounded once, to the dtype of the weight. A weight or bias read by
    nothing else keeps its name; a shared one stays as it is and the folded one gets a free name.

    Declines, keeping the float meaning exactly and entering the reason in the ledger:

    - ``not-after-convolution``: the input is no convolution or linear (nor ``linear`` of a 1-d weight).
    - ``several-users``: the convolution's output is also read elsewhere.
    - ``batch-statistics``: BatchNorm is in training mode, or has no running statistics.
    - ``statistics-read``: an output besides the normalized one is read.
    - ``parameters-not-constant``: a weight, bias or statistic is computed or written to.
    - ``channel-axis``: BatchNorm's channels (axis 1) are not those of the convolution.
    - ``not-floating-point``: complex or integer tensors, or an output dtype that BatchNorm changes.
    - ``not-finite``: the folded parameters overflow.

    Linear in nodes.
    """

    name: ClassVar[str] = "fold-batch-norm"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = REAL
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """See :class:`~lowbit.passes.base.Pass`."""
        norms = [n for t in BATCH_NORMS for n in gm.graph.find_nodes(op="call_function", target=t)]
        return bool(norms) and bool(fold_batch_norms(gm, sorted(norms), context))


def fold_batch_norms(
    gm: GraphModule, norms: Sequence[Node], context: PassContext, *, by: str = FoldBatchNorm.name
) -> frozenset[Node]:
    """Fold the BatchNorm calls ``norms`` of ``gm``, given in graph order, as the pass does.

    Args:
        gm: a float graph.
        norms: nodes of it.
        context: asked before each, and told why not.
        by: name of the pass that does it, for the ledger.

    Returns:
        Those that were folded, and are no longer in the graph.
    """
    folder = _Folder(gm, context, by)
    folded = frozenset([norm for norm in norms if folder.fold(norm)])
    if folded:
        for node in gm.graph.find_nodes(op="get_attr"):
            if not node.users:
                gm.graph.erase_node(node)
        delete_unused(gm)
    return folded


class _Folder:
    """Folds the BatchNorms of one graph module."""

    def __init__(self, gm: GraphModule, context: PassContext, by: str) -> None:
        self.gm = gm
        self.context = context
        self.by = by
        self.names = FreeNames(gm)
        self.constants: dict[Node, bool] = {}
        # How often each attribute is read, over all nodes that read it.
        self.reads: Counter[str] = Counter()
        for node in gm.graph.find_nodes(op="get_attr"):
            self.reads[node.target] += len(node.users)

    def fold(self, call: Node) -> bool:
        """Fold the BatchNorm ``call``, or enter in the ledger why not."""
        try:
            norm = read_norm(call)
            if norm.training:
                raise NotFoldable("batch-statistics", "it normalizes with the statistics of the batch")
            producer = norm.source
            groups, transposed = producer_layout(producer, norm)
            weight_node = cast("Node", argument(producer, "weight"))
            bias_node = cast("Node | None", argument(producer, "bias"))
            self._check_constant(weight_node, bias_node, norm.weight, norm.bias, norm.mean, norm.var)
            if not self.context.allows("fold", call):
                return False
            weight, bias = self._folded(norm, weight_node, bias_node, groups, transposed)
        except NotFoldable as verdict:
            self.context.ledger.missed(verdict.reason, call, verdict.detail)
            return False

        self._rewrite(norm, weight_node, weight, bias_node, bias)
        return True

    def _check_constant(self, *nodes: Node | None) -> None:
        for node in nodes:
            if node is None:
                continue
            if node not in self.constants:
                self.constants[node] = is_constant(node)
            if not self.constants[node]:
                raise NotFoldable("parameters-not-constant", f"{node.name} is computed or written to")

    def _folded(
        self, norm: Norm, weight_node: Node, bias_node: Node | None, groups: int, transposed: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The folded weight and bias."""

        def read(node: Node) -> torch.Tensor:
            return get_tensor(self.gm, str(node.target)).detach()

        weight = read(weight_node)
        others = [read(n) for n in (bias_node, norm.weight, norm.bias, norm.mean, norm.var) if n is not None]
        if any(t.is_meta for t in (weight, *others)):
            check_has_values(self.gm)
        if not all(t.is_floating_point() for t in (weight, *others)):
            raise NotFoldable("not-floating-point", f"the weight is {weight.dtype}")
        with torch.no_grad():
            scale = torch.rsqrt(read(norm.var).double() + norm.eps)
            if norm.weight is not None:
                scale = scale * read(norm.weight).double()
            shift = -read(norm.mean).double()
            if bias_node is not None:
                shift = shift + read(bias_node).double()
            shift = shift * scale
            if norm.bias is not None:
                shift = shift + read(norm.bias).double()
            new_weight = _scale_channels(weight.double(), scale, groups, transposed).to(weight.dtype)
            new_bias = shift.to(weight.dtype)
        if not (new_weight.isfinite().all() and new_bias.isfinite().all()):
            raise NotFoldable("not-finite", f"the folded parameters overflow {weight.dtype}")
        return new_weight, new_bias

    def _rewrite(
        self,
        norm: Norm,
        weight_node: Node,
        weight: torch.Tensor,
        bias_node: Node | None,
        bias: torch.Tensor,
    ) -> None:
        producer = norm.source
        complete_arguments(producer)
        index = signature(cast("OpOverload", producer.target)).positional
        new_weight = self._place(weight_node, weight, weight_node, producer)
        if bias_node is None:
            parent, _, _ = str(weight_node.target).rpartition(".")
            bias_name = self.names.fresh(f"{parent}.bias" if parent else "bias")
            new_bias = self._read(bias_name, bias, weight_node, producer, norm.mean)
        else:
            new_bias = self._place(bias_node, bias, weight_node, producer)
        producer.update_arg(index["weight"], new_weight)
        producer.update_arg(index["bias"], new_bias)

        self.context.ledger.removed(norm.call, "folded", by=self.by, into=producer)
        norm.output.replace_all_uses_with(producer)
        if norm.output is not norm.call:
            self.gm.graph.erase_node(norm.output)
        self.gm.graph.erase_node(norm.call)

    def _place(self, node: Node, tensor: torch.Tensor, like: Node, producer: Node) -> Node:
        """Put ``tensor`` where ``node`` reads, or beside it when others read that too."""
        target = str(node.target)
        if self.reads[target] == 1:
            set_tensor(self.gm, target, tensor)
            return node
        self.reads[target] -= 1
        return self._read(self.names.fresh(target), tensor, like, producer, node)

    def _read(self, name: str, tensor: torch.Tensor, like: Node, producer: Node, shaped: Node) -> Node:
        """A new node that reads ``tensor``, put at ``name``; ``shaped`` has its shape."""
        set_tensor(self.gm, name, tensor, like=get_tensor(self.gm, str(like.target)))
        self.reads[name] = 1
        with self.gm.graph.inserting_after(like):
            node = self.gm.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        for key in ("nn_module_stack", "stack_trace", "from_node"):
            if key in producer.meta:
                node.meta[key] = producer.meta[key]
        value = shaped.meta.get("val")
        if isinstance(value, torch.Tensor):
            node.meta["val"] = value if value.dtype == tensor.dtype else value.to(tensor.dtype)
        return node


def _scale_channels(weight: torch.Tensor, scale: torch.Tensor, groups: int, transposed: bool) -> torch.Tensor:
    """``weight`` with each output channel multiplied by its entry of ``scale``.

    A convolution's weight is ``(out, in / groups, …)``, a transposed one's ``(in, out / groups, …)``, whose
    block of ``in / groups`` rows belongs to one group of output channels.
    """
    if not transposed:
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    rows = scale.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return weight * rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2))
