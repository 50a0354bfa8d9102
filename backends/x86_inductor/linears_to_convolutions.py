"""``linears-to-convolutions``: linears as convolutions of one tap, on CPUs with AVX2 alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, ClassVar, Final, cast

import attrs
import torch
from torch.fx import GraphModule, Node

from ...ir.attributes import FreeNames, constants, delete_unused, get_tensor, set_tensor
from ...ir.meta import ID_KEY, KERNEL_KEY, ORIGIN_KEY, STANDS_FOR_KEY
from ...ir.stages import Stage
from ...ir.sweep import erase_unread
from ...passes import PassContext, register_pass
from ...passes.contracts import EXACT, Contract
from .cpu import convolves_faster
from .linear import size_arguments
from .operands import constant_like
from .post_operators import AFTER_CONVOLUTION
from .prepack import QCONV_PREPACK, QLINEAR_PREPACK

__all__ = ["LinearsToConvolutions"]

_aten = torch.ops.aten
_LINEAR: Final = torch.ops.onednn.qlinear_pointwise.default
_CONVOLUTION: Final = torch.ops.onednn.qconv_pointwise.default
_KERNEL: Final = "onednn.qconv_pointwise"
_GEOMETRY: Final = ((1, 1), (0, 0), (1, 1), 1)
"""Stride, padding, dilation and groups."""
_POST_OPERATORS: Final = frozenset({"none", "hardtanh", *(post.attribute for post in AFTER_CONVOLUTION)})
_DTYPES: Final = frozenset({torch.uint8, torch.int8, torch.float32})
_OWN: Final = frozenset({ID_KEY, KERNEL_KEY, ORIGIN_KEY, STANDS_FOR_KEY})


@register_pass
@attrs.frozen
class LinearsToConvolutions:
    """Lets the kernel of convolutions compute int8 linears, where the CPU has AVX2 alone.

    A linear is a convolution of one tap over an image of one line, with a pixel a row. oneDNN multiplies int8
    matrices by other code than it convolves with, and on such CPUs that is the slower one. Measured with one
    thread on a CPU with AVX2: one row, 1280 to 1000, takes 0.07 ms rather than 0.24, and float32 0.13; 128
    rows, 384 to 1536, 1.0 ms rather than 1.2. The numbers are the same to the bit.

    Linears stay as they are whose scale the run tells (dynamic quantization), whose weight is not constant,
    that give bfloat16 or add a bias of it, or behind which is a post-operator that the other kernel does not
    know. With VNNI or AVX-512 all of them do.
    """

    name: ClassVar[str] = "linears-to-convolutions"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.LOWERED})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = EXACT
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Rewrite in place."""
        if not convolves_faster():
            return False
        filters = _Filters(gm)
        runs_at: dict[str, str] = {}
        for node in gm.graph.find_nodes(op="call_function", target=_LINEAR):
            linear = _Linear.of(node)
            if linear.fits(filters) and context.allows("rewrite", node):
                runs_at |= _rewrite(linear, filters)
        if runs_at:
            context.ledger.moved(runs_at, _KERNEL)
            erase_unread(gm.graph)
            delete_unused(gm)
        return bool(runs_at)


@attrs.frozen
class _Linear:
    """A call of the kernel, by its arguments."""

    node: Node
    x: Node
    x_scale: float
    x_zero_point: int
    packed: Node
    scales: Any
    zero_points: Any
    bias: Any
    result: tuple[float, int, torch.dtype]
    post: tuple[str, list[float], str]

    @classmethod
    def of(cls, node: Node) -> _Linear:
        x, scale, zero_point, packed, scales, zero_points, bias, *rest = cast("tuple[Any, ...]", node.args)
        result, post = tuple(rest[:3]), tuple(rest[3:])
        return cls(node, x, scale, zero_point, packed, scales, zero_points, bias, result, post)

    @property
    def weight(self) -> Node:
        return cast(Node, self.packed.args[0])

    def fits(self, filters: _Filters) -> bool:
        """Whether the other kernel computes it."""
        known = self.result[2] in _DTYPES and self.post[0] in _POST_OPERATORS
        # The two round the sum with a bias of bfloat16 differently.
        added = None if self.bias is None else self.bias.meta.get("val")
        same = not isinstance(added, torch.Tensor) or added.dtype is torch.float32
        return known and same and filters.can_have(self.packed) and self.batch_sizes() is not None

    def batch_sizes(self) -> list[int | torch.SymInt] | None:
        """The sizes of its input without the last; None where nothing tells them."""
        for node in (self.node, self.x):
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                return list(value.shape[:-1])
        shape = cast("list[int] | None", self.packed.args[1])
        return None if shape is None else list(shape[:-1])


def _rewrite(linear: _Linear, filters: _Filters) -> dict[str, str]:
    """Put a convolution in its place; where what ran at a node runs now, by name."""
    graph, node = linear.node.graph, linear.node
    with graph.inserting_before(node):
        width, depth = filters.shape(linear.weight)
        # All rows make one line: several images would be as many calls of the innermost code.
        line = graph.call_function(_aten.reshape.default, (linear.x, [1, 1, -1, depth]))
        image = graph.call_function(_aten.permute.default, (line, [0, 3, 1, 2]))
        geometry = [list(part) if isinstance(part, tuple) else part for part in _GEOMETRY]
        packed = filters.packed(linear, geometry, _line_of(linear.packed, depth))
        head = (image, linear.x_scale, linear.x_zero_point, packed, linear.scales, linear.zero_points)
        convolution = graph.call_function(
            _CONVOLUTION, (*head, linear.bias, *geometry, *linear.result, *linear.post)
        )
        rows = graph.call_function(_aten.permute.default, (convolution, [0, 2, 3, 1]))
        sizes = [*size_arguments(linear.x, linear.batch_sizes() or []), width]
        result = graph.call_function(_aten.reshape.default, (rows, sizes))
    for new in (line, image, convolution, rows, result):
        new.meta = {key: kept for key, kept in node.meta.items() if key not in _OWN and key != "val"}
    result.meta[STANDS_FOR_KEY] = node.name
    if "val" in node.meta:
        result.meta["val"] = node.meta["val"]
    runs_at: dict[str, str] = {}
    for stands in _results(node):
        place = convolution if stands is node else stands
        pattern = cast(str, stands.meta[KERNEL_KEY]).partition(" → ")[0]
        place.meta[KERNEL_KEY] = f"{pattern} → {_KERNEL}"
        runs_at[stands.name] = place.name
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    return runs_at


def _line_of(packed: Node, depth: int) -> list[int] | None:
    """The shape of the image, as a hint to packing; None where the run tells it."""
    shape = cast("list[int] | None", packed.args[1])
    return None if shape is None else [1, depth, 1, torch.Size(shape[:-1]).numel()]


def _results(node: Node) -> Iterator[Node]:
    """The nodes that are the result of a kernel which ``node`` is part of: itself, or the first behind it."""
    if KERNEL_KEY in node.meta:
        yield node
    else:
        for user in node.users:
            yield from _results(user)


class _Filters:
    """Weights of linears as those of convolutions: once for a layer that is called several times."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._names = FreeNames(gm)
        self._constant = constants(gm.graph)
        self._stored: dict[str, str] = {}
        self._packed: dict[Hashable, Node] = {}

    def can_have(self, packed: Node) -> bool:
        """Whether ``packed`` packs a constant weight, rather than to be packed already."""
        return packed.target is QLINEAR_PREPACK and packed.args[0] in self._constant

    def shape(self, weight: Node) -> torch.Size:
        """Output and input features."""
        return get_tensor(self._gm, str(weight.target)).shape

    def packed(self, linear: _Linear, geometry: list[Any], image: list[int] | None) -> Node:
        """The call that packs the weight of ``linear`` for images of the shape ``image``."""
        # All that packing takes from scale and zero point of the activation is whether the latter is 0.
        scale, zero_point = 1.0, int(linear.x_zero_point != 0)
        key = (str(linear.weight.target), str(linear.scales.target), zero_point, str(image))
        if key not in self._packed:
            arguments = (self._filter(linear.weight), linear.scales, scale, zero_point, *geometry, image)
            self._packed[key] = linear.node.graph.call_function(QCONV_PREPACK, arguments)
            self._packed[key].meta = dict(linear.packed.meta)
        return self._packed[key]

    def _filter(self, weight: Node) -> Node:
        """A node that reads ``weight``, of shape (out, in), as (out, in, 1, 1)."""
        target = str(weight.target)
        taps = get_tensor(self._gm, target)[:, :, None, None].detach()
        if target not in self._stored:
            self._stored[target] = self._names.fresh(f"{target}_filter")
            set_tensor(self._gm, self._stored[target], taps)
        return constant_like(weight.graph, self._stored[target], taps, weight)
