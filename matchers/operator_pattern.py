"""Operator patterns: what a backend can run in low precision, declared once.

From one declaration come the annotation rule, the Inductor pattern and its replacement, the row of the
capability table, and generated tests.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import PatternError
from .capture import capture
from .match import Match
from .subgraph import SubgraphMatcherWithNameNodeMap

__all__ = [
    "Guard",
    "Kernel",
    "KernelCall",
    "Mode",
    "Occurrence",
    "OperatorPattern",
    "OutputQuantization",
    "QuantizedOperand",
    "Refusal",
    "Role",
    "Sharing",
]


class Role(enum.Enum):
    """What a tensor is to an operator, which decides the spec it gets."""

    ACTIVATION = "activation"
    WEIGHT = "weight"
    BIAS = "bias"
    ADDEND = "addend"
    """Added to the result in float: a residual."""
    INDEX = "index"
    """Integers that say which values are taken: the rows of an embedding."""


class Mode(enum.Enum):
    """What of an operator is in low precision, and when its parameters are found."""

    STATIC = "static"
    """Activations and weight; ranges are found beforehand."""
    DYNAMIC = "dynamic"
    """Activations and weight; ranges of activations are found at run time."""
    WEIGHT_ONLY = "weight-only"
    """An integer weight; activations are float."""
    HALF_WEIGHT = "half-weight"
    """A float16 weight; activations are float."""


class Sharing(enum.Enum):
    """How the output's scale and zero point relate to the inputs'."""

    INDEPENDENT = "independent"
    """The operator computes new values; its output is quantized by whoever reads it in low precision."""
    SAME_AS_INPUT = "same as input"
    """All inputs and the output have one scale and zero point: the operator moves or picks values."""


@attrs.frozen(eq=False)
class Occurrence:
    """Where a pattern was found: in a float graph, or between dequantize and quantize.

    Args:
        inputs: what stands for each parameter of the pattern's function; None for an absent tensor.
            All are float but weights: those are the constant that is stored, whatever its dtype.
        output: the last operator, whose result is float.
    """

    inputs: Sequence[Node | None]
    output: Node


Guard = Callable[[Occurrence], "str | None"]
"""Looks at an occurrence; returns None when it may run in low precision, else a reason code for the ledger.

Guards are asked twice: before an occurrence is annotated, and before it is lowered, since others than the
backend's quantizer may have annotated it.
"""


@attrs.frozen(eq=False)
class QuantizedOperand:
    """A tensor of a matched pattern in its quantized form.

    Args:
        node: the integer tensor.
        scale: a number; for per-channel tensors the node of the scales, float32 ``[C]``; for tensors whose
            range is found at run time the node of the scale, ``[1]`` or a scalar.
        zero_point: likewise.
        axis: channel axis of a per-channel tensor, None for per-tensor ones.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        dtype: integer dtype.
    """

    node: Node
    scale: Any
    zero_point: Any
    axis: int | None
    quant_min: int
    quant_max: int
    dtype: torch.dtype


@attrs.frozen
class OutputQuantization:
    """How the result of a matched pattern is quantized, per tensor; the fields as in QuantizedOperand."""

    scale: float
    zero_point: int
    quant_min: int
    quant_max: int
    dtype: torch.dtype


@attrs.frozen(eq=False)
class KernelCall:
    """A place in a Q/DQ graph where a pattern was found, ready to be replaced by a kernel.

    Args:
        gm: the graph module.
        operands: quantized operands, float tensors, or None, in order: by parameter name of the pattern's
            function, or where all share one scale by name of their dequantize. Of a float16 weight it is the
            constant, in float16 or still in float32.
        nodes: the float operators, in graph order.
        output: the quantize node behind the operators, or the last operator where its output stays float.
        quantization: how the output is quantized; None where it stays float.
        mode: what of it is in low precision.
    """

    gm: GraphModule
    operands: dict[str, QuantizedOperand | Node | None]
    nodes: tuple[Node, ...]
    output: Node
    quantization: OutputQuantization | None
    mode: Mode = Mode.STATIC

    @property
    def graph(self) -> Graph:
        """The graph that the kernel's nodes go into."""
        return self.gm.graph

    def quantized(self, name: str) -> QuantizedOperand:
        """The operand ``name``, which is an activation or a weight."""
        operand = self.operands[name]
        assert isinstance(operand, QuantizedOperand)
        return operand

    def float(self, name: str) -> Node | None:
        """The operand ``name``, which is a float tensor or was left out."""
        operand = self.operands[name]
        assert not isinstance(operand, QuantizedOperand)
        return operand

    def node_calling(self, *targets: Any) -> Node:
        """The float operator of the match that calls one of ``targets``."""
        return next(node for node in self.nodes if node.target in targets)


@attrs.frozen
class Refusal:
    """Why a kernel does not take a place.

    Args:
        reason: a reason code for the ledger.
        detail: more for people, such as the way out; may be empty.
    """

    reason: str
    detail: str = ""


class Kernel(Protocol):
    """What a backend runs in place of dequantize → operators → quantize."""

    @property
    def name(self) -> str:
        """The name shown in reports: that of the operator called."""
        ...

    def refuses(self, call: KernelCall) -> Refusal | None:
        """None when the kernel computes what ``call`` means, else why it does not."""
        ...

    def emit(self, call: KernelCall) -> Node:
        """Insert the kernel before ``call.output`` and return the node that takes its place."""
        ...


@attrs.frozen(eq=False)
class OperatorPattern:
    """One thing a backend can run in low precision.

    Args:
        name: kebab-case, unique in the backend.
        function: the torch-level function; takes the tensors, returns the result.
        example_inputs: makes inputs to capture it with.
        roles: the role of each parameter of ``function``, in order.
        kernel: what it lowers to; None leaves it to the compiler, which fuses dequantize → op → quantize.
        sharing: how the output's parameters relate to the inputs'.
        guards: conditions on a match beyond its structure.
        modes: what of it may be in low precision.
        quantizes_output: the kernel writes low precision only, so its output is quantized whoever reads it.
        weight_axis: the axis of the weight's output channels, which per-channel specs follow.
    """

    name: str
    function: Callable[..., Any]
    example_inputs: Callable[[], tuple[Any, ...]]
    roles: tuple[Role, ...] = attrs.field(converter=tuple)
    kernel: Kernel | None = None
    sharing: Sharing = Sharing.INDEPENDENT
    guards: tuple[Guard, ...] = ()
    modes: tuple[Mode, ...] = (Mode.STATIC,)
    quantizes_output: bool = False
    weight_axis: int = 0

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """The parameter names of the function."""
        names = tuple(inspect.signature(self.function).parameters)
        if len(names) != len(self.roles):
            raise PatternError(
                f"operator pattern {self.name!r} gives {len(self.roles)} roles to {len(names)} parameters",
                hint="name the role of every parameter of the function, in order",
            )
        return names

    @functools.cached_property
    def captured(self) -> GraphModule:
        """The function as a canonical ATen graph; exported once in a process."""
        return capture(self.function, self.example_inputs())

    @functools.cached_property
    def matcher(self) -> SubgraphMatcherWithNameNodeMap:
        """Finds the pattern in float graphs."""
        return SubgraphMatcherWithNameNodeMap(self.captured)

    @functools.cached_property
    def anchor(self) -> Any:
        """The ATen operator that the pattern ends with."""
        return self.captured.graph.output_node().all_input_nodes[0].target

    @functools.cached_property
    def operator(self) -> Any:
        """The ATen operator that reads the inputs; the anchor may be what picks one of its results."""
        first = next(node for node in self.captured.graph.nodes if node.op == "call_function")
        return first.target

    @functools.cached_property
    def size(self) -> int:
        """The number of operators; larger patterns are tried first."""
        return sum(node.op == "call_function" for node in self.captured.graph.nodes)

    def refusal(self, occurrence: Occurrence) -> str | None:
        """The reason code of the first guard that says no, or None."""
        return next((reason for guard in self.guards if (reason := guard(occurrence)) is not None), None)

    def match_refusal(self, match: Match) -> str | None:
        """Why a match in a float graph does not mean what the pattern means, or None.

        Positional literals (a stride) adjust an operator; keyword-only ones (the alpha of an addition, the
        approximation of gelu) choose another function, so they must be those of the pattern.
        """
        for wanted, found in match.nodes_map.items():
            if wanted.op == "call_function" and found is not None and wanted.kwargs != found.kwargs:
                return "different-literal"
        return self.refusal(Occurrence(match.placeholder_nodes, match.anchor))
