"""Graphs as programs of a register machine: every list of steps is a graph, and fewer steps a smaller one.

A step reads registers (counted back from the newest, so that they stay valid when steps before it go) and
appends what it computes. Where an operator does not fit the tensors it finds, the step computes nothing. So
all programs are valid, shrinking deletes steps, and what is left when a law fails is small.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import attrs
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from .operators import OPERATORS, Emit, Registers

__all__ = ["Program", "Step", "build", "example_inputs"]


@attrs.frozen
class Step:
    """One operator of a program.

    Args:
        operator: a name in :data:`~lowbit.tools.testing.operators.OPERATORS`.
        first: the register it reads, 0 for the newest; counted modulo their number.
        second: the other one of operators that read two.
        option: which of the operator's variants; any number.
    """

    operator: str
    first: int = 0
    second: int = 0
    option: int = 0


@attrs.frozen
class Program:
    """A float graph, written as a program.

    Args:
        shape: of the first input; the second, if one is read, has it too.
        steps: what is computed.
        results: how many of the newest registers are returned, next to the newest.
        seed: of weights and inputs.
        is_training: whether BatchNorms are in training.
    """

    shape: tuple[int, ...] = (1,)
    steps: tuple[Step, ...] = attrs.field(default=(), converter=tuple)
    results: int = 0
    seed: int = 0
    is_training: bool = False


def example_inputs(program: Program, index: int = 0) -> tuple[torch.Tensor, ...]:
    """Inputs of the graph of ``program``; others for another ``index``."""
    generator = torch.Generator().manual_seed(1000 * program.seed + index)
    return tuple(torch.randn(program.shape, generator=generator) for _ in range(2))


def build(program: Program) -> GraphModule:
    """The graph of ``program`` as ``torch.export`` would write it: ATen, a fake ``val`` at every node."""
    writer = _Writer(program.seed, program.is_training)
    registers = [writer.placeholder(name, program.shape) for name in ("x", "y")]
    for index, step in enumerate(program.steps):
        chosen = [registers[-1 - back % len(registers)] for back in (step.first, step.second)]
        writer.enter(f"step_{index}")
        new = OPERATORS[step.operator](writer, *chosen, step.option)
        registers += [new] if isinstance(new, Node) else new or []
    newest = registers[: -2 - program.results : -1] if program.steps else registers[-1:]
    writer.graph.output(tuple(reversed(newest)))
    return GraphModule(writer.root, writer.graph)


@functools.cache
def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode()


@functools.cache
def _fake(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    with _fake_mode():
        return torch.empty_strided(shape, stride, dtype=dtype)


def _as_fake(value: torch.Tensor) -> torch.Tensor:
    return _fake(tuple(value.shape), value.stride(), value.dtype)


class _Writer(Registers):
    """Writes a graph and computes what its nodes are; tensors are so small that fake ones take longer."""

    def __init__(self, seed: int, is_training: bool) -> None:
        self.root, self.graph = nn.Module(), Graph()
        self.is_training = is_training
        self.generator = torch.Generator().manual_seed(seed)
        self._values: dict[Node, Any] = {}
        self._path = ""

    def enter(self, path: str) -> None:
        """From here on, nodes are of the module ``path``."""
        self._path = path

    def placeholder(self, name: str, shape: tuple[int, ...]) -> Node:
        """An input of the graph."""
        return self._described(self.graph.placeholder(name), torch.ones(shape))

    def constant(self, name: str, value: torch.Tensor, *, is_parameter: bool = False) -> Node:
        module = self.root.get_submodule(self._path) if hasattr(self.root, self._path) else nn.Module()
        self.root.add_module(self._path, module)
        others = sum(
            known.rstrip("_") == name for known in vars(module)["_parameters"] | vars(module)["_buffers"]
        )
        name += "_" * others  # a step may have two of a kind
        stored = nn.Parameter(value, value.is_floating_point()) if is_parameter else nn.Buffer(value)
        setattr(module, name, stored)
        return self._described(self.graph.get_attr(f"{self._path}.{name}"), value.clone())

    def read_again(self, constant: Node) -> Node:
        node = self.graph.get_attr(str(constant.target))
        node.meta = dict(constant.meta)
        self._values[node] = self._values[constant]
        return node

    def region(self, x: Node, emit: Emit, option: int) -> Node | None:
        inner = _Writer(0, self.is_training)
        inner.generator = self.generator
        inner.enter("inside")
        source = inner._described(inner.graph.placeholder("x"), self._values[x])
        result = emit(inner, source, source, option)
        if not isinstance(result, Node):
            return None
        inner.graph.output((result,))
        name = f"{self._path}_region_{len(self.graph.nodes)}"
        self.root.add_module(name, GraphModule(inner.root, inner.graph))
        body = self.graph.get_attr(name)
        call = self.graph.call_function(torch.ops.higher_order.wrap_with_set_grad_enabled, (False, body, x))
        self._described(call, (inner._values[result],))
        return self.call(operator.getitem, call, 0)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = self.graph.call_function(target, args, kwargs)
        read = self._values.__getitem__
        with torch.no_grad():
            value = target(*map_arg(args, read), **map_arg(kwargs, read))
        return self._described(node, value)

    def _described(self, node: Node, value: Any) -> Node:
        self._values[node] = value
        node.meta["val"] = pytree.tree_map_only(torch.Tensor, _as_fake, value)
        node.meta["nn_module_stack"] = {"": ("", "Program")}
        if self._path:
            node.meta["nn_module_stack"][self._path] = (self._path, "Step")
        return node
