"""A model with every operator pattern of a backend in it, made from the declarations.

Each pattern is a branch of its own, with inputs of its own, whose result is read in low precision. Where that
makes a difference there is a second one, whose result is read in float. What moves values has low precision
on both sides. So has an operator that no pattern is about, which is to be left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ...ir.annotation import QuantizationAnnotation, set_annotation
from ...ir.location import module_stack
from ...ir.quantizer import Quantizer
from ...ir.schema import OpOverload, operator_name
from ...ir.specs import QuantizationSpec
from ...matchers.operator_pattern import OperatorPattern, Role, Sharing

__all__ = ["Branch", "ReaderQuantizer", "Zoo", "is_read_by_reader", "zoo_of"]

_PARAMETERS = (Role.WEIGHT, Role.BIAS)
_STRANGERS = (torch.sin, torch.erf, torch.sinh, torch.atan, torch.expm1)
"""What an operator that no pattern is about is taken from: few backends have one of them."""


class Reader(nn.Module):
    """Stands for an operator of another quantizer that reads its input in low precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Anything that is not part of a pattern."""
        return x.neg()


class BranchModule(nn.Module):
    """Calls the function of a pattern on its inputs and on parameters of its own."""

    def __init__(self, pattern: OperatorPattern, inputs: Sequence[Tensor], *, is_read: bool) -> None:
        super().__init__()
        self.pattern = pattern
        self.reader = Reader() if is_read else None
        for name, role, value in zip(pattern.parameters, pattern.roles, inputs, strict=True):
            if role in _PARAMETERS:
                self.register_parameter(name, nn.Parameter(value))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The result, or what readers make of it and of the activations that only moved."""
        rest = iter(inputs)
        arguments = [
            self.get_parameter(name) if role in _PARAMETERS else next(rest)
            for name, role in zip(self.pattern.parameters, self.pattern.roles, strict=True)
        ]
        result = self.pattern.function(*arguments)
        if self.reader is None:
            return (result,)
        moved = inputs if self.pattern.sharing is Sharing.SAME_AS_INPUT else ()
        return (self.reader(result), *map(self.reader, moved))


@attrs.frozen(eq=False)
class Branch:
    """A branch of a zoo.

    Args:
        pattern: what it is made from.
        is_read: whether its result is read in low precision.
        module: it, in float.
        inputs: what of the zoo's inputs are its own.
        path: dotted path of its module.
    """

    pattern: OperatorPattern
    is_read: bool
    module: BranchModule
    inputs: tuple[Tensor, ...]
    path: str


class Stranger(nn.Module):
    """Calls an operator that is in no pattern; low precision is read on both sides of it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.reader = Reader()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """What readers make of the input and of the result."""
        return self.reader(x), self.reader(self.function(x))


class _ZooModule(nn.Module):
    def __init__(self, modules: Sequence[BranchModule], counts: Sequence[int], stranger: Stranger) -> None:
        super().__init__()
        self.branches = nn.ModuleList(modules)
        self.counts = tuple(counts)
        self.stranger = stranger

    def forward(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        rest = iter(inputs)
        results: list[tuple[Tensor, ...]] = []
        for branch, count in zip(self.branches, self.counts, strict=True):
            results.append(branch(*[next(rest) for _ in range(count)]))
        return (*results, self.stranger(next(rest)))


@attrs.frozen(eq=False)
class Zoo:
    """The model and its branches, in the order of its results; that of the stranger is the last."""

    model: nn.Module
    branches: tuple[Branch, ...]
    stranger_input: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs of the model."""
        return (*(x for branch in self.branches for x in branch.inputs), self.stranger_input)

    def export(self, dtype: torch.dtype = torch.float32) -> GraphModule:
        """The exported model, its floats of another ``dtype``."""
        inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in self.inputs)
        exported = torch.export.export(self.model.to(dtype), inputs).module()
        self.model.to(torch.float32)
        assert isinstance(exported, GraphModule)
        return exported


def zoo_of(patterns: Sequence[OperatorPattern]) -> Zoo:
    """The zoo of ``patterns``; its tensors are random, and the same at every call."""
    generator = torch.Generator().manual_seed(0)
    branches: list[Branch] = []
    for pattern in patterns:
        # What writes low precision whoever reads it, or only with its reader, has one form.
        alone = pattern.sharing is Sharing.INDEPENDENT and not pattern.quantizes_output
        for is_read in (True, False) if alone else (True,):
            tensors = [_filled(example, generator) for example in pattern.example_inputs()]
            module = BranchModule(pattern, tensors, is_read=is_read)
            pairs = zip(tensors, pattern.roles, strict=True)
            own = tuple(x for x, role in pairs if role not in _PARAMETERS)
            branches.append(Branch(pattern, is_read, module, own, f"branches.{len(branches)}"))
    counts = [len(branch.inputs) for branch in branches]
    stranger = Stranger(_stranger(patterns))
    model = _ZooModule([branch.module for branch in branches], counts, stranger)
    return Zoo(model, tuple(branches), torch.randn(4, 4, generator=generator))


def _stranger(patterns: Sequence[OperatorPattern]) -> Callable[[Tensor], Tensor]:
    """A function whose operator is in none of ``patterns``."""
    known = {
        operator_name(node.target)[1]
        for p in patterns
        for node in p.captured.graph.nodes
        if isinstance(node.target, OpOverload)
    }
    return next(function for function in _STRANGERS if function.__name__ not in known)


def _filled(example: Tensor, generator: torch.Generator) -> Tensor:
    # Integers are indices, of which only the example knows what they may be.
    return torch.randn(example.shape, generator=generator) if example.is_floating_point() else example


def is_read_by_reader(node: Node) -> bool:
    """Whether ``node`` is what a reader does with its input."""
    kind = f"{Reader.__module__}.{Reader.__qualname__}"
    return node.op == "call_function" and any(call.kind == kind for call in module_stack(node.meta))


class ReaderQuantizer(Quantizer):
    """Annotates the inputs of readers with ``spec``; None leaves them float."""

    def __init__(self, spec: QuantizationSpec | None) -> None:
        self.spec = spec

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate and claim the readers."""
        for node in model.graph.nodes:
            if is_read_by_reader(node):
                specs = {} if self.spec is None else {node.all_input_nodes[0]: self.spec}
                set_annotation(node, QuantizationAnnotation({**specs}, _annotated=True))
        return model
