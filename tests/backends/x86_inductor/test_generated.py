"""More than two thousand generated calls: lowered kernels against dequantize → operators → quantize.

Each operator pattern is written as the Q/DQ graph that it stands for, with shapes, arguments and memory
layouts drawn from a seed; many calls are branches of one graph. Results must agree to one step of their
scale. All of it is eager: that compiled kernels give the same is for test_compile, and that models become
such graphs for test_numerics.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import torch
from lowbit import Stage, lower_pt2e
from lowbit.backends.x86_inductor import has_vnni
from lowbit.backends.x86_inductor.patterns import PATTERNS
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.meta import KERNEL_KEY
from lowbit.ir.stages import set_stage
from lowbit.matchers.operator_pattern import Mode, OperatorPattern, Role, Sharing
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten
UINT8 = (0, 255 if has_vnni() else 127, torch.uint8)
INT8 = (-128, 127, torch.int8)

Parameters = tuple[float, int]
"""Scale and zero point."""
Draw = Callable[[random.Random], tuple[Any, ...]]


@attrs.define
class Calls:
    """A Q/DQ graph of independent calls, and the inputs to run it on."""

    graph: Graph = attrs.Factory(Graph)
    root: torch.nn.Module = attrs.Factory(torch.nn.Module)
    inputs: list[Tensor] = attrs.Factory(list)
    results: list[Node] = attrs.Factory(list)
    kernels: Counter[str] = attrs.Factory(Counter)
    """What they are to be lowered to."""
    constants: int = 0

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A node, which computes right away: graphs that were exported know their shapes and dtypes too."""
        node = self.graph.call_function(target, args, kwargs)
        values = map_arg((args, kwargs), lambda n: n.meta["val"])
        node.meta["val"] = target(*values[0], **values[1])
        return node

    def float_input(self, value: Tensor) -> Node:
        first = next(iter(self.graph.nodes), None)
        node = self.graph.placeholder(f"x{len(self.inputs)}")
        if first is not None:
            first.prepend(node)
        self.inputs.insert(0, value)
        node.meta["val"] = value
        return node

    def constant(self, value: Tensor) -> Node:
        self.constants += 1
        self.root.register_buffer(f"c{self.constants}", value)
        node = self.graph.get_attr(f"c{self.constants}")
        node.meta["val"] = value
        return node

    def quantized(self, node: Node, parameters: Parameters) -> Node:
        values = self.call(qd.QUANTIZE_PER_TENSOR, node, *parameters, *UINT8)
        return self.call(qd.DEQUANTIZE_PER_TENSOR, values, *parameters, *UINT8)

    def quantized_as_it_runs(self, node: Node) -> Node:
        chosen = self.call(qd.CHOOSE_QPARAMS, node, *UINT8[:2], 2**-12, UINT8[2])
        parameters = [self.call(_pick, chosen, i) for i in (0, 1)]
        values = self.call(qd.QUANTIZE_PER_TENSOR_DYNAMIC, node, *parameters, *UINT8)
        return self.call(qd.DEQUANTIZE_PER_TENSOR_DYNAMIC, values, *parameters, *UINT8)

    def weight(self, shape: Sequence[int], *, per_channel: bool) -> Node:
        weight = self.constant(torch.randint(-128, 128, tuple(shape), dtype=torch.int8))
        if not per_channel:
            return self.call(qd.DEQUANTIZE_PER_TENSOR, weight, 0.01, 0, *INT8)
        scales = self.constant(torch.rand(shape[0]) * 0.02 + 1e-4)
        zero_points = self.constant(torch.zeros(shape[0], dtype=torch.int64))
        return self.call(qd.DEQUANTIZE_PER_CHANNEL, weight, scales, zero_points, 0, *INT8)

    def operators(
        self, pattern: OperatorPattern, tensors: Sequence[Node | None], arguments: Sequence[Draw]
    ) -> Node:
        """The operators of ``pattern``; ``arguments`` are those behind the tensors, for each operator."""
        graph = pattern.captured.graph
        made: dict[Node, Any] = dict(zip(graph.find_nodes(op="placeholder"), tensors, strict=True))
        operators = [node for node in graph.nodes if node.op == "call_function"]
        for operator, drawn in zip(operators, arguments, strict=True):
            count = sum(isinstance(a, (Node, list, tuple)) and a != [] for a in operator.args)
            reads = operator.args[: 1 if isinstance(operator.args[0], (list, tuple)) else count]
            raise NotImplementedError(reads, drawn)
        return made[operators[-1]]


def _pick(values: Any, index: int) -> Any:
    return values[index]
