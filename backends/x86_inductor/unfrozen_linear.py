"""Compiling ``onednn.qlinear_pointwise`` without freezing.

Inductor's lowering of the operator asks for a weight that freezing made a constant of the compiled graph, and
stops with an assertion on any other. Nothing behind it needs that but autotuning, so for weights that are
inputs of the graph the same extern kernel is built here. This is the one module that uses Inductor's lowering
table and its oneDNN nodes; ``tests/backends/x86_inductor/test_unfrozen_linear.py`` says when they move.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

__all__ = ["register_lowering"]


@functools.cache
def register_lowering() -> None:
    """Let Inductor lower the operator for weights that are not constants; once in a process."""
    # Inductor takes a second to import, which only those who lower pay.
    from torch._inductor import lowering
    from torch._inductor.ir import TensorBox
    from torch._inductor.mkldnn_ir import QLinearPointwisePT2E
    from torch._inductor.virtualized import V

    op = torch.ops.onednn.qlinear_pointwise.default
    stock = lowering.lowerings[op]
    view: Any = lowering.view

    def constant(value: Any, dtype: torch.dtype) -> Any:
        return V.graph.add_tensor_constant(torch.tensor(value, dtype=dtype))

    def qlinear(x: Any, x_scale: Any, x_zero_point: Any, weight: Any, *rest: Any) -> Any:
        is_constant = weight.get_name() in V.graph.constants
        if is_constant or not isinstance(x_scale, float) or not isinstance(x_zero_point, int):
            return stock(x, x_scale, x_zero_point, weight, *rest)
        shape = list(x.get_size())
        rows = x if len(shape) == 2 else view(x, [-1, shape[-1]])
        scale, zero_point = constant(x_scale, torch.float32), constant(x_zero_point, torch.int32)
        result: Any = TensorBox.create(QLinearPointwisePT2E.create(rows, scale, zero_point, weight, *rest))
        if len(shape) == 2:
            return result
        return view(result, [*shape[:-1], result.get_size()[-1]])

    lowering.register_lowering(op, type_promotion_kind=None)(qlinear)
