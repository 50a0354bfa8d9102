"""Operator patterns as patterns of Inductor's matcher, over dequantize → operators → quantize.

This is the one module that uses ``torch._inductor.pattern_matcher``. It builds pattern expressions from what
an operator pattern captured, so the graph is matched before decomposition: ``gelu`` is one node, and one rule
serves where tables of decomposed forms would spell out many. An expression has the operators only; what a
tensor is — dequantized, with a range of which kind, cast, or float — is read from the node that it is bound
to. ``tests/matchers/test_inductor.py`` says when the API moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs
import torch
from torch._inductor.pattern_matcher import (
    MULTIPLE,
    CallFunction,
    Ignored,
    KeywordArg,
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
    Mode,
    Occurrence,
    OperatorPattern,
    OutputQuantization,
    QuantizedOperand,
    Refusal,
    Role,
    Sharing,
)

__all__ = ["Allows", "Lowered", "Refused", "replace_with_kernels"]

Allows = Callable[[OperatorPattern, KernelCall], bool]
"""Called before each replacement, with the pattern and the place: whether it may be made."""
Lowered = Callable[[OperatorPattern, KernelCall, Node], None]
"""Called for each replacement: the pattern, the place, the new node."""
Refused = Callable[[OperatorPattern, KernelCall, Refusal], None]
"""Called where a guard or a kernel refuses a place: the pattern, the place, and why."""


@attrs.frozen
class _Caller:
    """What is asked, and told, whoever has the kernels put in place."""

    lowered: Lowered
    refused: Refused
    allows: Allows


_MODES: Final[Mapping[tuple[Any, Any], Mode]] = {
    (qd.DEQUANTIZE_PER_TENSOR, qd.DEQUANTIZE_PER_CHANNEL): Mode.STATIC,
    (qd.DEQUANTIZE_PER_TENSOR, qd.DEQUANTIZE_PER_TENSOR): Mode.STATIC,
    (qd.DEQUANTIZE_PER_TENSOR_DYNAMIC, qd.DEQUANTIZE_PER_CHANNEL): Mode.DYNAMIC,
    (qd.DEQUANTIZE_PER_TENSOR_DYNAMIC, qd.DEQUANTIZE_PER_TENSOR): Mode.DYNAMIC,
    (None, qd.DEQUANTIZE_PER_CHANNEL): Mode.WEIGHT_ONLY,
    (None, qd.DEQUANTIZE_PER_TENSOR): Mode.WEIGHT_ONLY,
    (None, qd.CONVERT_ELEMENT_TYPE): Mode.HALF_WEIGHT,
}
"""The mode by what activations and weight come out of; None for float tensors."""
_FLOAT_RESULT: Final = (Mode.WEIGHT_ONLY, Mode.HALF_WEIGHT)
"""Modes of float activations, whose kernels have a float result; a quantize behind them stays."""
_MODES_WITHOUT_WEIGHT: Final[Mapping[Any, Mode]] = {
    qd.DEQUANTIZE_PER_TENSOR: Mode.STATIC,
    qd.DEQUANTIZE_PER_TENSOR_DYNAMIC: Mode.DYNAMIC,
}


def replace_with_kernels(
    gm: GraphModule,
    patterns: tuple[OperatorPattern, ...],
    lowered: Lowered,
    refused: Refused,
    allows: Allows,
) -> None:
    """Replace every occurrence of ``patterns`` in the Q/DQ graph ``gm`` by its kernel.

    Larger patterns are tried first, and with the quantize behind them before without it.
    """
    written_later: list[tuple[Node, Any]] = []
    # The matcher tries every pattern at every node that one may end with: leave out those that cannot be.
    present = {node.target for node in gm.graph.nodes}
    possible = tuple(pattern for pattern in patterns if _operators(pattern) <= present)
    _matcher_pass(possible, _Caller(lowered, refused, allows), written_later).apply(gm)
    for node, target in written_later:
        node.target = target
    for node in gm.graph.nodes:
        # Inductor's own note, which it would take for current the next time.
        node.meta.pop("mutation_region_id", None)


def _operators(pattern: OperatorPattern) -> set[Any]:
    return {node.target for node in pattern.captured.graph.nodes if node.op == "call_function"}


def _matcher_pass(
    patterns: tuple[OperatorPattern, ...],
    caller: _Caller,
    written_later: list[tuple[Node, Any]],
) -> PatternMatcherPass:
    matcher_pass = PatternMatcherPass(pass_name="lowbit_emit")
    ordered = sorted(patterns, key=lambda p: -p.size)
    for with_quantize in (True, False):
        for pattern in ordered:
            if pattern.kernel is None or (pattern.sharing is Sharing.SAME_AS_INPUT and not with_quantize):
                continue
            for expression in _expressions(pattern, with_quantize):
                accepts, replace = _rule(pattern, with_quantize, caller, written_later)
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
    caller: _Caller,
    written_later: list[tuple[Node, Any]],
) -> tuple[Callable[[InductorMatch], bool], Callable[..., None]]:
    """What accepts a match of ``pattern``, and what replaces it."""
    assert pattern.kernel is not None
    kernel = pattern.kernel

    def accepts(match: InductorMatch) -> bool:
        call = _kernel_call(pattern, match, with_quantize)
        if call is None:
            return False
        reason = pattern.refusal(_occurrence(pattern, call, match))
        refusal = kernel.refuses(call) if reason is None else Refusal(reason)
        if refusal is not None:
            caller.refused(pattern, call, refusal)
        return refusal is None and caller.allows(pattern, call)

    def replace(match: InductorMatch, *args: Any, **kwargs: Any) -> None:
        call = _kernel_call(pattern, match, with_quantize)
        assert call is not None
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
        caller.lowered(pattern, call, new)
        match.erase_nodes()

    return accepts, replace


def _kernel_call(pattern: OperatorPattern, match: InductorMatch, with_quantize: bool) -> KernelCall | None:
    """The place that ``match`` found; None where its tensors are not in a form that ``pattern`` is for."""
    gm = match.graph.owning_module
    assert isinstance(gm, GraphModule)
    output = match.output_node()
    quantization = OutputQuantization(*output.args[1:]) if with_quantize else None  # pyright: ignore[reportArgumentType]  (literals of the schema's types)
    nodes = tuple(sorted(node for node in match.nodes if not qd.is_quantize(node)))
    if pattern.sharing is Sharing.SAME_AS_INPUT:
        operands = _operands_sharing_parameters(nodes[0], output)
        return None if operands is None else KernelCall(gm, operands, nodes, output, quantization)
    bound = {name: match.kwargs[name] for name in pattern.parameters}
    mode = _mode(pattern, bound)
    if mode not in pattern.modes or any(node in match.nodes for node in bound.values()):
        return None
    if with_quantize and mode in _FLOAT_RESULT:
        return None
    operands = {
        name: _operand(node, role) for (name, node), role in zip(bound.items(), pattern.roles, strict=True)
    }
    return KernelCall(gm, operands, nodes, output, quantization, mode)


def _mode(pattern: OperatorPattern, bound: Mapping[str, Any]) -> Mode | None:
    """What of the operator is in low precision; None where that is nothing that has a name."""
    sources: dict[Role, set[Any]] = {role: set() for role in Role}
    for role, node in zip(pattern.roles, bound.values(), strict=True):
        if not isinstance(node, Node) and role is not Role.BIAS:
            return None
        sources[role].add(_source(node))
    activations, weights = sources[Role.ACTIVATION], sources[Role.WEIGHT]
    if len(activations) > 1 or len(weights) > 1:
        return None
    if not weights:
        return _MODES_WITHOUT_WEIGHT.get(*activations)
    return _MODES.get((next(iter(activations), None), *weights))


def _source(node: object) -> Any:
    """The operator that ``node`` comes out of, if it is one of those that low precision is written with."""
    if qd.is_dequantize(node) or _is_cast_from_half(node):
        assert isinstance(node, Node)
        return node.target
    return None


def _is_cast_from_half(node: object) -> bool:
    if not isinstance(node, Node) or node.target is not qd.CONVERT_ELEMENT_TYPE:
        return False
    half = node.args[0]
    assert isinstance(half, Node)
    value = half.meta.get("val")
    is_cast = half.target is qd.CONVERT_ELEMENT_TYPE and half.args[1] is torch.float16
    return is_cast or (isinstance(value, torch.Tensor) and value.dtype is torch.float16)


def _operand(node: Any, role: Role) -> QuantizedOperand | Node | None:
    if role in (Role.BIAS, Role.ADDEND, Role.INDEX) or not isinstance(node, Node):
        return node
    if qd.is_dequantize(node):
        return _quantized(node)
    if role is Role.WEIGHT:
        while node.target is qd.CONVERT_ELEMENT_TYPE:
            (node,) = node.all_input_nodes
    return node


def _quantized(dequantize: Node) -> QuantizedOperand:
    source, scale, zero_point, *rest = dequantize.args
    assert isinstance(source, Node)
    axis = rest.pop(0) if dequantize.target is qd.DEQUANTIZE_PER_CHANNEL else None
    return QuantizedOperand(source, scale, zero_point, axis, *rest)  # pyright: ignore[reportArgumentType]  (literals of the schema's types)


def _operands_sharing_parameters(
    operator: Node, quantize: Node
) -> dict[str, QuantizedOperand | Node | None] | None:
    """The inputs of an operator that moves values, by name of their dequantize.

    None where they, or the result, have parameters of their own.
    """
    tensors = [node for node in operator.all_input_nodes if not _is_size(node)]
    equal = all(
        node.target is qd.DEQUANTIZE_PER_TENSOR and node.args[1:] == quantize.args[1:] for node in tensors
    )
    return {node.name: _quantized(node) for node in tensors} if tensors and equal else None


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _occurrence(pattern: OperatorPattern, call: KernelCall, match: InductorMatch) -> Occurrence:
    if pattern.sharing is Sharing.SAME_AS_INPUT:
        return Occurrence(tuple(call.nodes[0].all_input_nodes), call.nodes[-1])

    def stands_for(name: str, role: Role) -> Node | None:
        operand = call.operands[name]
        if role is Role.WEIGHT and isinstance(operand, QuantizedOperand):
            return operand.node
        return operand if role is Role.WEIGHT else match.kwargs[name]  # pyright: ignore[reportReturnType]

    inputs = [stands_for(*pair) for pair in zip(pattern.parameters, pattern.roles, strict=True)]
    return Occurrence(inputs, call.nodes[-1])


def _expressions(pattern: OperatorPattern, with_quantize: bool) -> Iterator[CallFunction]:
    """The pattern expressions of a pattern: one for each order of the operands of commutative operators."""
    output = pattern.captured.graph.output_node().all_input_nodes[0]
    if pattern.sharing is Sharing.SAME_AS_INPUT:
        yield _quantized_result(_any_call(output))
        return
    commutative = [node for node in pattern.captured.graph.nodes if node.target in COMMUTATIVE]
    for swaps in itertools.product((False, True), repeat=len(commutative)):
        swapped = {node for node, swap in zip(commutative, swaps, strict=True) if swap}
        expression = _Builder(pattern, swapped).expression(output)
        yield _quantized_result(expression) if with_quantize else expression


def _quantized_result(expression: CallFunction) -> CallFunction:
    parameters = [Ignored() for _ in range(5)]  # scale, zero point, smallest, largest, dtype
    return CallFunction(qd.QUANTIZE_PER_TENSOR, expression, *parameters)


def _any_call(node: Node, users: Any = 1) -> CallFunction:
    """A call of the operator of ``node`` with whatever arguments, and the one that picks of its results."""
    # Of several results each is picked by a call of its own.
    arguments = [
        _any_call(a, MULTIPLE) if isinstance(a, Node) and a.op == "call_function" else Ignored()
        for a in node.args
    ]
    return CallFunction(node.target, *arguments, _users=users, **{k: Ignored() for k in node.kwargs})


@attrs.frozen
class _Builder:
    """Writes the captured graph of a pattern as a pattern expression."""

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
        return KeywordArg(self.pattern.parameters[placeholders.index(argument)])
