"""What programs compute with: one function an operator, which writes its nodes or finds that it does not fit.

Among them are the structures that rewrites look for (convolution → BatchNorm → activation), and what tends to
break them: constants read twice, writes in place, integers, scalars, tuples, values that are read again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import torch
from torch.fx import Graph, Node

from ...ir.aliasing import find_aliases

__all__ = ["ACTIVATIONS", "OPERATORS", "QUANTIZABLE", "Registers"]

_aten = torch.ops.aten


class Registers(Protocol):
    """What an operator writes with."""

    graph: Graph
    is_training: bool

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of ``target``."""
        ...

    def constant(self, name: str, value: torch.Tensor, *, is_parameter: bool = False) -> Node:
        """A parameter or buffer of the module of this step."""
        ...

    def read_again(self, constant: Node) -> Node:
        """Another read of a constant."""
        ...

    def region(self, x: Node, emit: Emit, option: int) -> Node | None:
        """The result of what ``emit`` writes of ``x``, in a graph of its own that runs without gradients."""
        ...

    def random(self, *shape: int) -> torch.Tensor:
        """Normal numbers."""
        ...


Emit: TypeAlias = Callable[[Registers, Node, Node, int], "Node | Sequence[Node] | None"]


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _is_float(*nodes: Node) -> bool:
    return all(node.meta["val"].is_floating_point() for node in nodes)


ACTIVATIONS: Final[tuple[tuple[Any, ...], ...]] = (
    (_aten.relu.default,),
    (_aten.hardtanh.default, -1.0, 1.0),
    (_aten.relu6.default,),
    # Ranges that are as wide on both sides of zero show a bound that is forgotten on one.
    (_aten.hardtanh.default, -1.0, 0.25),
    (_aten.clamp.default, -0.25, 1.0),
    (_aten.relu.default,),
)
"""Clamps, which backends fuse into what is before them, and their bounds."""


def _unary(*variants: tuple[Any, ...]) -> Emit:
    def emit(to: Registers, x: Node, _: Node, option: int) -> Node | None:
        target, *arguments = variants[option % len(variants)]
        return to.call(target, x, *arguments) if _is_float(x) else None

    return emit


_REDUCTIONS: Final[tuple[tuple[Any, ...], ...]] = (
    # torch multiplies in float32 where the model is to compute in bfloat16.
    (_aten.prod.dim_int, -1, True),
    (_aten.mean.dim, [-1], True),
    (_aten.prod.dim_int, 0, True),
)


def _reduce(to: Registers, x: Node, _: Node, option: int) -> Node | None:
    target, *arguments = _REDUCTIONS[option % len(_REDUCTIONS)]
    if not _is_float(x) or (target is _aten.mean.dim and 0 in _shape(x)[-1:]):
        return None  # the mean of nothing is no number
    return to.call(target, x, *arguments)


def _binary(*targets: Any) -> Emit:
    def emit(to: Registers, x: Node, y: Node, option: int) -> Node | None:
        # Of other shape it is the first twice, which rewrites have to see through as well.
        y = y if _shape(x) == _shape(y) else x
        return to.call(targets[option % len(targets)], x, y) if _is_float(x, y) else None

    return emit


def _identity(to: Registers, x: Node, _: Node, option: int) -> Node | None:
    if not _is_float(x):
        return None
    if option % 2 == 0:
        return to.call(_aten.dropout.default, x, (0.5, 0.1, 0.3)[option % 3], to.is_training)
    return to.call((_aten.detach, _aten.alias, _aten.clone, _aten.contiguous)[option // 2 % 4].default, x)


def _scalar(to: Registers, x: Node, _: Node, option: int) -> Node:
    target, value = ((_aten.add.Tensor, 2), (_aten.mul.Tensor, 3), (_aten.add.Tensor, 0.5))[option % 3]
    return to.call(target, x, value)


def _in_place(to: Registers, x: Node, y: Node, option: int) -> Node | None:
    if not _is_float(x, y) or x.op != "call_function":
        return None
    if option % 2 and len(_shape(x)) > 1:
        x = to.call(_aten.transpose.int, x, 0, 1)  # what is written to is a view of what others may read
    # torch refuses to write to what it reads through another view; inputs are no views of each other.
    if option % 3 == 2 and _shape(x) == _shape(y) and y.op == "placeholder" and not _share_memory(x, y):
        return to.call(_aten.add_.Tensor, x, y)
    return to.call(_aten.relu_.default, x) if option % 3 == 1 else to.call(_aten.mul_.Tensor, x, 3)


def _share_memory(x: Node, y: Node) -> bool:
    aliases = find_aliases(x.graph)
    return aliases.group(x) is aliases.group(y)


def _to_integers(to: Registers, x: Node, _: Node, option: int) -> Node:
    integers = to.call(_aten.to.dtype, x, (torch.int32, torch.int64)[option % 2])
    if option % 5 == 4:
        return to.call(_aten.mul.Tensor, integers, integers)
    # With an integer added they are integers still.
    return to.call(_aten.add.Tensor, integers, 2) if option % 3 else integers


def _weighted(to: Registers, weight: torch.Tensor, option: int) -> tuple[Node, Node | None]:
    """Weight and bias; in some variants without bias."""
    bias = to.constant("bias", to.random(weight.shape[0]), is_parameter=True) if option % 3 else None
    return to.constant("weight", weight, is_parameter=True), bias


def _linear(to: Registers, x: Node, _: Node, option: int) -> Node | None:
    if not _is_float(x) or not _shape(x) or not _shape(x)[-1]:
        return None
    weight, bias = _weighted(to, to.random(1 + option % 4, _shape(x)[-1]), option)
    if option % 7 == 6:
        return to.call(_aten.linear.default, x, weight=weight, bias=bias)
    return to.call(_aten.linear.default, x, weight, bias)


_CONVOLUTIONS: Final = {
    3: (_aten.conv1d.default, _aten.conv1d.padding),
    4: (_aten.conv2d.default, _aten.conv2d.padding),
}


def _convolution(to: Registers, x: Node, _: Node, option: int) -> Node | None:
    shape = _shape(x)
    if not _is_float(x) or len(shape) not in _CONVOLUTIONS or not shape[1]:
        return None
    window = len(shape) - 2
    kernel = 1 + option % 3
    groups = shape[1] if option % 3 == 1 else 1
    if min(shape[2:]) < kernel:
        return None
    outputs = groups * (1 + option % 2)
    weight, bias = _weighted(to, to.random(outputs, shape[1] // groups, *[kernel] * window), option)
    plain, padded = _CONVOLUTIONS[len(shape)]
    if option % 4 == 3:
        return to.call(padded, x, weight, bias, [1] * window, "same", [1] * window, groups)
    stride, padding = [1 + option % 2] * window, [option % 2] * window
    # Export leaves out what is at its default.
    last = (groups,) if groups > 1 else ()
    return to.call(plain, x, weight, bias, stride, padding, *([[1] * window, *last] if last else []))


def _convolution_again(to: Registers, x: Node, y: Node, option: int) -> Sequence[Node] | None:
    """The last convolution or linear once more, with the same weight and bias: a module called twice.

    It reads ``x`` if that fits, else what it read before; a first call is made where there is none. Behind
    the second may be a BatchNorm of its own, or else what adds the two, as branches of one model often are.
    """
    made: list[Node] = []
    first = next((n for n in reversed(to.graph.nodes) if n.target in QUANTIZABLE), None)
    if first is None:
        first = _convolution(to, x, y, option) or _linear(to, x, y, option)
        if first is None:
            return None
        made.append((_batch_norm(to, first, y, option + 1) or first) if option % 4 == 1 else first)
    given: tuple[Any, ...] = (*first.args, *first.kwargs.values())
    source, weight, bias, *rest = given
    bias = bias if bias is None or option % 2 else to.read_again(bias)
    source = x if _shape(source) == _shape(x) and _is_float(x) else source
    again = to.call(first.target, source, to.read_again(weight), bias, *rest)
    if option % 3:
        return [*made, _batch_norm(to, again, y, option) or again]
    last = made[-1] if made else first
    both = to.call(_aten.add.Tensor, last, again) if _shape(last) == _shape(again) else again
    return [*made, both]


def _batch_norm(to: Registers, x: Node, _: Node, option: int) -> Node | None:
    shape = _shape(x)
    if not _is_float(x) or len(shape) < 2 or not shape[1]:
        return None
    if to.is_training and math.prod(shape) <= shape[1]:
        return None  # torch refuses one value a channel
    channels = shape[1]
    gamma, beta = (to.random(channels) for _ in range(2))
    if option % 3 == 2 and channels > 1:
        gamma[0] = 0.0  # a channel that is off, as torchvision begins with
    affine = [to.constant(n, v, is_parameter=True) for n, v in (("gamma", gamma), ("beta", beta))]
    mean = to.constant("running_mean", to.random(channels))
    variance = to.constant("running_var", to.random(channels).abs() + 0.1)
    eps, momentum = (1e-5, 1e-3, 0.1)[option % 3], (0.1, 0.3, 0.03, 0.1)[option % 4]
    affine = [None, None] if option % 5 == 4 else affine
    # Some are frozen while the others train.
    training = to.is_training and option % 4 != 1
    statistics = [mean, variance]
    if option % 11 == 10 and math.prod(shape) > channels:
        statistics, training = [None, None], True  # those of the batch, always
    return to.call(_aten.batch_norm.default, x, *affine, *statistics, training, momentum, eps, True)


def _block(to: Registers, x: Node, y: Node, option: int) -> Sequence[Node] | None:
    """A convolution (or linear), a BatchNorm behind it, and mostly an activation.

    In some variants the convolution may be read by others as well.
    """
    first, second = (_linear, _convolution) if option % 5 == 0 else (_convolution, _linear)
    convolution = first(to, x, y, option) or second(to, x, y, option)
    if convolution is None:
        return None
    last = _batch_norm(to, convolution, y, option) or convolution
    if option % 4 != 3:
        target, *bounds = ACTIVATIONS[option // 60 % len(ACTIVATIONS)]
        last = to.call(target, last, *bounds)
    return [convolution, last] if option % 3 == 2 else [last]


def _gated(to: Registers, x: Node, y: Node, option: int) -> Node | None:
    """Two linears of one tensor, one of which lets the other pass: one layer of many that read one input."""
    value, gate = _linear(to, x, y, option), _linear(to, x, y, option)
    if value is None or gate is None:
        return None
    opened = to.call((_aten.sigmoid.default, _aten.relu.default)[option // 7 % 2], gate)
    return to.call(_aten.mul.Tensor, value, opened)


def _region(to: Registers, x: Node, _: Node, option: int) -> Node | None:
    """A convolution, linear or activation in a region without gradients, as export writes those."""
    return to.region(x, (_convolution, _linear, OPERATORS["relu"])[option % 3], option)


def _pool(to: Registers, x: Node, _: Node, option: int) -> Node | None:
    shape = _shape(x)
    if not _is_float(x) or len(shape) != 4 or min(shape[1:]) < 2:
        return None
    if option % 3 == 2:
        return to.call(_aten.adaptive_avg_pool2d.default, x, [1, 1])
    target = (_aten.max_pool2d.default, _aten.avg_pool2d.default)[option % 3]
    return to.call(target, x, [2, 2], [1 + option % 2] * 2)


def _join(to: Registers, x: Node, y: Node, option: int) -> Node | None:
    if not _is_float(x, y) or not _shape(x):
        return None
    y = y if _shape(x) == _shape(y) else x
    return to.call(_aten.cat.default, [x, y, x][: 2 + option % 2], option % len(_shape(x)))


def _split(to: Registers, x: Node, _: Node, option: int) -> Sequence[Node] | None:
    if not _is_float(x) or not _shape(x) or _shape(x)[-1] < 2:
        return None
    parts = to.call(_aten.chunk.default, x, 2, -1)
    return [to.call(operator.getitem, parts, i) for i in range(2)]


def _move(to: Registers, x: Node, _: Node, option: int) -> Node | None:
    rank = len(_shape(x))
    if rank < 2:
        return None
    match option % 5:
        case 0:
            return to.call(_aten.flatten.using_ints, x, 1)
        case 1:
            return to.call(_aten.transpose.int, x, 0, rank - 1)
        case 2:
            return to.call(_aten.reshape.default, x, [_shape(x)[0], math.prod(_shape(x)[1:])])
        case 3:
            return to.call(_aten.slice.Tensor, x, rank - 1, 0, 1)
        case _:
            return to.call(_aten.unsqueeze.default, x, 0) if rank < 4 else None


QUANTIZABLE: Final = (
    _aten.linear.default,
    *(target for targets in _CONVOLUTIONS.values() for target in targets),
)
"""The operators that read a weight."""

OPERATORS: Final[dict[str, Emit]] = {
    "relu": _unary(*ACTIVATIONS),
    "unary": _unary(
        (_aten.sigmoid.default,),
        (_aten.tanh.default,),
        (_aten.gelu.default,),
        (_aten.hardswish.default,),
        (_aten.softmax.int, -1),
    ),
    "reduce": _reduce,
    "identity": _identity,
    "binary": _binary(_aten.add.Tensor, _aten.mul.Tensor, _aten.sub.Tensor),
    "scalar": _scalar,
    "in_place": _in_place,
    "to_integers": _to_integers,
    "linear": _linear,
    "convolution": _convolution,
    "again": _convolution_again,
    "batch_norm": _batch_norm,
    "block": _block,
    "gated": _gated,
    "region": _region,
    "pool": _pool,
    "join": _join,
    "split": _split,
    "move": _move,
}
