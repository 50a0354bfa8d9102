"""Inductor's lowerings of oneDNN's int8 operators, without freezing and in bodies of control flow too.

Inductor's lowerings of the operator ask for a weight that freezing made a constant of the compiled graph, and
stop with an assertion on any other. Nothing behind them needs that but autotuning, so for weights that are
inputs of the graph the same extern kernels are built here. What bodies of ``cond`` and the like ask of
lowerings besides is added to those of all of these operators, and what convolutions write: int8, and channels
last, where Inductor takes it to be otherwise.

This is the one module that uses Inductor's lowering table and its oneDNN nodes;
``tests/backends/x86_inductor/test_inductor_lowerings.py`` says when they move.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ...ir.schema import schema_of

__all__ = ["register_lowerings"]

_qlinear = torch.ops.onednn.qlinear_pointwise
_QCONVS = (
    torch.ops.onednn.qconv_pointwise.default,
    torch.ops.onednn.qconv_pointwise.tensor,
    torch.ops.onednn.qconv2d_pointwise.binary,
)


@functools.cache
def register_lowerings() -> None:
    """Let Inductor lower the operator for weights that are not constants; once in a process."""
    # Inductor takes a second to import, which only those who lower pay.
    from torch._inductor.mkldnn_ir import QLinearPointwiseBinaryPT2E, QLinearPointwisePT2E

    for op in (torch.ops.onednn.qconv_pointwise.default, torch.ops.onednn.qconv_pointwise.tensor):
        _tell_layout(op)
    _register(_qlinear.default, QLinearPointwisePT2E.create, rows=1)
    _register(_qlinear.tensor, QLinearPointwisePT2E.create, rows=1)
    _register(_qlinear.binary, QLinearPointwiseBinaryPT2E.create, rows=2)
    for op in (_qlinear.default, _qlinear.tensor, _qlinear.binary, *_QCONVS):
        _lower_in_bodies(op)


def _tell_layout(op: Any) -> None:
    """Let the layout of what the convolution ``op`` writes be known.

    Inductor takes its result to be of the dtype of its input, uint8, but for floats. Then what reads the
    result as uint8 is handed int8. And of images of one channel, if sizes are dynamic, it takes the result to
    lie as they do; with a packed weight it lies channels-last, always.
    """
    from torch._inductor import lowering

    lower = lowering.lowerings[op]
    names = [argument.name for argument in schema_of(op).arguments]

    def lower_here(*arguments: Any, **named: Any) -> Any:
        result = lower(*arguments, **named)
        layout = result.get_layout()
        if (dict(zip(names, arguments, strict=False)) | named)["output_dtype"] is torch.int8:
            layout.dtype = torch.int8
        layout.stride = _channels_last(layout.size)
        return result

    lowering.lowerings[op] = lower_here


def _channels_last(sizes: list[Any]) -> list[Any]:
    """The strides of sizes that may be symbolic, channels in dimension 1."""
    strides: list[Any] = [1] * len(sizes)
    inner: Any = sizes[1]
    for dim in (*range(len(sizes) - 1, 1, -1), 0):
        strides[dim] = inner
        inner = inner * sizes[dim]
    return strides


def _lower_in_bodies(op: Any) -> None:
    """Let ``op`` be lowered in bodies of ``cond`` and the like too.

    There Inductor replaces the calls of ``op`` by its lowering first, and then runs the body on fake tensors
    once more. And constants of a body, as lowerings make of the activation's scale and zero point, have no
    value when it runs: there these are computed.
    """
    from torch._inductor import lowering
    from torch._inductor.graph import SubgraphLowering
    from torch._inductor.virtualized import V

    lower = lowering.lowerings[op]

    def computed(value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, (float, int)):
            return value
        tensor: Any = lowering.full([], value, dtype=dtype, device=torch.device("cpu"))
        tensor.realize()
        return tensor

    def lower_here(x: Any, x_scale: Any, x_zero_point: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return op(x, x_scale, x_zero_point, *rest, **named)
        if isinstance(V.graph, SubgraphLowering):
            x_scale, x_zero_point = computed(x_scale, torch.float32), computed(x_zero_point, torch.int32)
        return lower(x, x_scale, x_zero_point, *rest, **named)

    lowering.lowerings[op] = lower_here


def _register(op: Any, create: Callable[..., Any], rows: int) -> None:
    """Lower ``op`` by ``create``, which takes the same, in two dimensions and with scales as tensors.

    ``rows`` is the number of tensors with the rows of the result: the activation, and with it what is added.
    """
    from torch._inductor import lowering
    from torch._inductor.ir import TensorBox
    from torch._inductor.virtualized import V

    stock = lowering.lowerings[op]
    view: Any = lowering.view

    def scalar(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, (float, int)):
            return V.graph.add_tensor_constant(torch.tensor(value, dtype=dtype))
        value.realize()
        return value

    def qlinear(x: Any, x_scale: Any, x_zero_point: Any, weight: Any, *rest: Any) -> Any:
        if weight.get_name() in V.graph.constants:
            return stock(x, x_scale, x_zero_point, weight, *rest)
        batch = list(x.get_size())[:-1]

        def flat(tensor: Any) -> Any:
            return tensor if len(batch) == 1 else view(tensor, [-1, list(tensor.get_size())[-1]])

        scale, zero_point = scalar(x_scale, torch.float32), scalar(x_zero_point, torch.int32)
        w_scale, w_zero_point, *others = rest
        added = [flat(other) for other in others[: rows - 1]]
        created = create(
            flat(x), scale, zero_point, weight, w_scale, w_zero_point, *added, *others[rows - 1 :]
        )
        result: Any = TensorBox.create(created)
        return result if len(batch) == 1 else view(result, [*batch, list(result.get_size())[-1]])

    lowering.register_lowering(op, type_promotion_kind=None)(qlinear)
