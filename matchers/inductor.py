"""Operator patterns as patterns of Inductor's matcher, over dequantize → operators → quantize.

This is the one module that uses ``torch._inductor.pattern_matcher``. It builds pattern expressions from what
an operator pattern captured, so the graph is matched before decomposition: ``gelu`` is one node, and one rule
serves where tables of decomposed forms would spell out many. ``tests/matchers/test_inductor.py`` says when
the API moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
from torch._inductor.pattern_matcher import (
    CallFunction,
    Ignored,
    KeywordArg,
    ListOf,
    PatternMatcherPass,
    register_graph_pattern,
)
from torch._inductor.pattern_matcher import Match as InductorMatch
from torch.fx import GraphModule, Node

from ..ir import quantized_decomposed as qd
from ..ir.aliasing import is_write
from ..ir.meta import STANDS_FOR_KEY
from .operands import COMMUTATIVE
from .operator_pattern import (
    KernelCall,
    Occurrence,
    OperatorPattern,
    OutputQuantization,
    QuantizedOperand,
    Refusal,
    Role,
    Sharing,
)

__all__ = ["Lowered", "Refused", "replace_with_kernels"]

Lowered = Callable[[OperatorPattern, KernelCall, Node], None]
"""Called for each replacement: the pattern, the place, the new node."""
Refused = Callable[[OperatorPattern, KernelCall, Refusal], None]
"""Called where a guard or a kernel refuses a place: the pattern, the place, and why."""

_QPARAMS = ("scale", "zero_point", "quant_min", "quant_max", "dtype")
_OUTPUT = "output"


def replace_with_kernels(
    gm: GraphModule, patterns: tuple[OperatorPattern, ...], lowered: Lowered, refused: Refused
) -> None:
    """Replace every occurrence of ``patterns`` in the Q/DQ graph ``gm`` by its kernel.

    Larger patterns are tried first, and with the quantize behind them before without it.
    """
    written_later: list[tuple[Node, Any]] = []
    _matcher_pass(patterns, lowered, refused, written_later).apply(gm)
    for node, target in written_later:
        node.target = target
    for node in gm.graph.nodes:
        # Inductor's own note, which it would take for current the next time.
        node.meta.pop("mutation_region_id", None)


def _matcher_pass(
    patterns: tuple[OperatorPattern, ...],
    lowered: Lowered,
    refused: Refused,
    written_later: list[tuple[Node, Any]],
) -> PatternMatcherPass:
    matcher_pass = PatternMatcherPass(pass_name="lowbit_emit")
    ordered = sorted(patterns, key=lambda p: -p.size)
    for with_quantize in (True, False):
        for pattern in ordered:
            if pattern.kernel is None or (pattern.sharing is Sharing.SAME_AS_INPUT and not with_quantize):
                continue
            for expression in _expressions(pattern, with_quantize):
                accepts, replace = _rule(pattern, with_quantize, lowered, refused, written_later)
                register = register_graph_pattern(expression, extra_check=accepts, pass_dict=matcher_pass)  # pyright: ignore[reportArgumentType]  (the alias of pass_dict is not exported)
                register(replace)
    return matcher_pass


def _written_later(*arguments: object) -> None:
    """Stands for an operator that writes into memory while patterns are being replaced.

    Inductor numbers the regions between such operators, which it does not match across, and numbers the whole
    graph anew for each that is made: quadratic work on a residual network. Kernels that accumulate in place
    see to it themselves that nothing reads what they overwrite.
    """
    raise AssertionError


def _rule(
    pattern: OperatorPattern,
    with_quantize: bool,
    lowered: Lowered,
    refused: Refused,
    written_later: list[tuple[Node, Any]],
) -> tuple[Callable[[InductorMatch], bool], Callable[..., None]]:
    """What accepts a match of ``pattern``, and what replaces it."""
    assert pattern.kernel is not None
    kernel = pattern.kernel

    def accepts(match: InductorMatch) -> bool:
        call = _kernel_call(pattern, match, with_quantize)
        reason = pattern.refusal(_occurrence(pattern, call, match))
        refusal = kernel.refuses(call) if reason is None else Refusal(reason)
        if refusal is not None:
            refused(pattern, call, refusal)
        return refusal is None

    def replace(match: InductorMatch, *args: Any, **kwargs: Any) -> None:
        call = _kernel_call(pattern, match, with_quantize)
        before = call.output.prev
        with call.graph.inserting_before(call.output):
            new = kernel.emit(call)
        node = before.next
        while node is not call.output:
            if is_write(node):
                written_later.append((node, node.target))
                node.target = _written_later
            node = node.next
        new.meta = {**call.output.meta, **new.meta, STANDS_FOR_KEY: call.output.name}
        call.output.replace_all_uses_with(new)
        lowered(pattern, call, new)
        match.erase_nodes()

    return accepts, replace


def _kernel_call(pattern: OperatorPattern, match: InductorMatch, with_quantize: bool) -> KernelCall:
    gm = match.graph.owning_module
    assert isinstance(gm, GraphModule)
    nodes = sorted(node for node in match.nodes if not qd.is_quantize(node) and not qd.is_dequantize(node))
    kwargs = match.kwargs
    if pattern.sharing is Sharing.SAME_AS_INPUT:
        (operator,) = nodes
        scale, zero_point, *tail = (kwargs[f"{_OUTPUT}_{name}"] for name in _QPARAMS)
        operands: dict[str, QuantizedOperand | Node | None] = {
            node.name: QuantizedOperand(_integer(node), scale, zero_point, None, *tail)
            for node in operator.all_input_nodes
            if qd.is_dequantize(node)
        }
    else:
        operands = {
            name: _operand(name, role, kwargs)
            for name, role in zip(pattern.parameters, pattern.roles, strict=True)
        }
    return KernelCall(
        gm=gm,
        operands=operands,
        nodes=tuple(nodes),
        output=match.output_node(),
        quantization=(
            OutputQuantization(*(kwargs[f"{_OUTPUT}_{name}"] for name in _QPARAMS)) if with_quantize else None
        ),
    )


def _occurrence(pattern: OperatorPattern, call: KernelCall, match: InductorMatch) -> Occurrence:
    dequantized = {_integer(node): node for node in match.nodes if qd.is_dequantize(node)}

    def stands_for(operand: QuantizedOperand | Node | None, role: Role) -> Node | None:
        if not isinstance(operand, QuantizedOperand):
            return operand
        return operand.node if role is Role.WEIGHT else dequantized[operand.node]

    inputs = [stands_for(*pair) for pair in zip(call.operands.values(), pattern.roles, strict=False)]
    return Occurrence(inputs, call.nodes[-1])


def _integer(dequantize: Node) -> Node:
    node = dequantize.args[0]
    assert isinstance(node, Node)
    return node


def _operand(name: str, role: Role, kwargs: dict[str, Any]) -> QuantizedOperand | Node | None:
    if role is Role.BIAS:
        return kwargs[name]
    scale, zero_point, quant_min, quant_max, dtype = (kwargs[f"{name}_{q}"] for q in _QPARAMS)
    return QuantizedOperand(
        kwargs[name], scale, zero_point, kwargs.get(f"{name}_axis"), quant_min, quant_max, dtype
    )


def _expressions(pattern: OperatorPattern, with_quantize: bool) -> Iterator[CallFunction]:
    """The pattern expressions of a pattern: one for each order of the operands of commutative operators."""
    if pattern.sharing is Sharing.SAME_AS_INPUT:
        yield from _same_parameters(pattern)
        return
    output = pattern.captured.graph.output_node().all_input_nodes[0]
    commutative = [node for node in pattern.captured.graph.nodes if node.target in COMMUTATIVE]
    for swaps in itertools.product((False, True), repeat=len(commutative)):
        swapped = {node for node, swap in zip(commutative, swaps, strict=True) if swap}
        expression = _Builder(pattern, swapped).expression(output)
        if with_quantize:
            expression = CallFunction(qd.QUANTIZE_PER_TENSOR, expression, *_names(_OUTPUT))
        yield expression


def _names(tensor: str) -> list[KeywordArg]:
    return [KeywordArg(f"{tensor}_{name}") for name in _QPARAMS]


@attrs.frozen
class _Builder:
    """Writes the captured graph of a pattern as a pattern expression, tensors dequantized by their role."""

    pattern: OperatorPattern
    swapped: set[Node]

    def expression(self, node: Node) -> CallFunction:
        args = list(node.args)
        if node in self.swapped:
            args[0], args[1] = args[1], args[0]
        arguments = [self._argument(node, i, a) for i, a in enumerate(args)]
        # Keyword-only arguments are part of the meaning: alpha of an add, the approximation of gelu.
        kwargs: dict[str, Any] = dict(node.kwargs)
        return CallFunction(node.target, *arguments, **kwargs)

    def _argument(self, node: Node, position: int, argument: Any) -> Any:
        if not isinstance(argument, Node):
            return KeywordArg(f"{node.name}.{position}")
        if argument.op != "placeholder":
            return self.expression(argument)
        placeholders = self.pattern.captured.graph.find_nodes(op="placeholder")
        i = placeholders.index(argument)
        name, role = self.pattern.parameters[i], self.pattern.roles[i]
        if role is Role.BIAS:
            return KeywordArg(name)
        scale, zero_point, *tail = _names(name)
        if role is Role.WEIGHT:
            return CallFunction(
                qd.DEQUANTIZE_PER_CHANNEL,
                KeywordArg(name),
                scale,
                zero_point,
                KeywordArg(f"{name}_axis"),
                *tail,
            )
        return CallFunction(qd.DEQUANTIZE_PER_TENSOR, KeywordArg(name), scale, zero_point, *tail)


def _same_parameters(pattern: OperatorPattern) -> Iterator[CallFunction]:
    """Quantize(op(dequantize(…))) with one set of parameters throughout.

    Inductor's matcher binds a name to one value, so equal names demand equal parameters.
    """
    operator = pattern.captured.graph.output_node().all_input_nodes[0]
    dequantized = CallFunction(qd.DEQUANTIZE_PER_TENSOR, Ignored(), *_names(_OUTPUT))
    arguments = [
        dequantized if isinstance(a, Node) else ListOf(dequantized) if _holds_nodes(a) else Ignored()
        for a in operator.args
    ]
    kwargs: dict[str, Any] = {k: Ignored() for k in operator.kwargs}
    yield CallFunction(
        qd.QUANTIZE_PER_TENSOR, CallFunction(operator.target, *arguments, **kwargs), *_names(_OUTPUT)
    )


def _holds_nodes(argument: Any) -> bool:
    return isinstance(argument, (list, tuple)) and any(isinstance(a, Node) for a in argument)
