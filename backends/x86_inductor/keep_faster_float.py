"""``keep-faster-float``: leave operators float where int8 is slower on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import attrs
import torch
from torch.fx import GraphModule, Node

from ...ir import quantized_decomposed as qd
from ...ir.attributes import FreeNames, delete_unused, get_tensor, is_constant, set_tensor
from ...ir.clone import clone_graph_module, own_tensors
from ...ir.meta import ID_KEY
from ...ir.stages import Stage
from ...ir.sweep import erase_unread
from ...passes import EmitInductor, PackWeights, PassContext, PassManager, Pipeline, register_pass
from ...passes.contracts import REAL, Contract
from .measured_costs import LoopTimes, example_inputs, measure_loops, measure_nodes
from .placement import Link, Times, cheapest_floats

__all__ = ["KeepFasterFloat"]


@register_pass
@attrs.frozen
class KeepFasterFloat:
    """Makes the weights of operators float again whose kernels would cost more than they save.

    A copy of the model is lowered, and each kernel timed, as is the float operator that it stands for, and
    the loops that convert between the two. Which operators are float then is the cheapest choice for all of
    them together (:mod:`.placement`). What is measured differs from run to run, and so may the choice.

    Numbers stay what they are, but for a rounding of the weights to float32: activations around a float
    operator are rounded as before, which the compiler does in the loops before and behind it. Only operators
    with a constant weight of int8 and activations of fixed scales are asked about. Bodies of ``cond`` and of
    loops stay as they are.
    """

    name: ClassVar[str] = "keep-faster-float"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = REAL

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Make weights float in place."""
        loops = measure_loops()
        regions = measured_regions(gm, context, loops)
        floats = cheapest_floats(*costs(regions, loops))
        made = _FloatWeights(gm)
        left = [each for each in regions if each.name in floats and context.allows("keep", each.operator)]
        for region in left:
            for weight in region.weights:
                region.operator.replace_input_with(weight, made.of(weight))
            int8, float32 = (f"{1e6 * seconds:.0f}" for seconds in attrs.astuple(region.times))
            detail = f"int8 takes {int8} µs here and float {float32}, without the loops around them"
            for node in region.nodes:
                context.ledger.missed("faster-in-float", node, detail)
        if left:
            erase_unread(gm.graph)
            delete_unused(gm)
        return bool(left)


@attrs.frozen(eq=False)
class Region:
    """The operators that one kernel takes.

    Args:
        name: of the call of the kernel.
        operator: the operator that reads the weight.
        nodes: all operators of the region, in graph order.
        weights: the dequantize operators of the weight.
        times: of the kernel and of ``operator``, in seconds.
    """

    name: str
    operator: Node
    nodes: tuple[Node, ...]
    weights: tuple[Node, ...]
    times: Times


def measured_regions(gm: GraphModule, context: PassContext, loops: LoopTimes) -> tuple[Region, ...]:
    """What ``gm`` lowers to, timed; operators that may as well be float."""
    inputs = example_inputs(gm)
    work = clone_graph_module(gm)
    own_tensors(work)  # what the model writes into is the user's
    trial_context = attrs.evolve(context, ledger=context.ledger.copy(), gate=None)
    trial = PassManager(()).run(work, Pipeline((EmitInductor(), PackWeights())), trial_context)
    operators: dict[str, list[str]] = {}
    for decision in trial_context.ledger.decisions:
        if decision.status == "quantized" and decision.runs_at:
            operators.setdefault(decision.runs_at, []).append(decision.node)
    nodes = {node.name: node for node in gm.graph.nodes}
    found = [
        (name, region)
        for name, members in operators.items()
        if (region := _region([nodes[member] for member in members if member in nodes])) is not None
    ]
    if not found:
        return ()
    int8, float32 = measure_nodes(trial, inputs), measure_nodes(work, inputs)
    last = {name: members[-1] for name, (_, members, _) in found}
    taken = _seconds_of_kernels(trial, last, int8, loops)
    return tuple(
        Region(name, operator, members, weights, Times(taken[name], float32[operator.name]))
        for name, (operator, members, weights) in found
    )


def _region(members: Sequence[Node]) -> tuple[Node, tuple[Node, ...], tuple[Node, ...]] | None:
    """Operator, all nodes and weights, or None where there is no weight or a scale is found at run time."""
    read = [source for node in members for source in node.all_input_nodes if qd.is_dequantize(source)]
    weights = tuple(node for node in read if all(map(is_constant, node.all_input_nodes)))
    others = [node for node in read if node not in weights]
    if not weights or not others or any(node.target is not qd.DEQUANTIZE_PER_TENSOR for node in others):
        return None
    operator = next(node for node in members if weights[0] in node.all_input_nodes)
    return operator, tuple(members), weights


def _seconds_of_kernels(
    trial: GraphModule, last: Mapping[str, Node], seconds: Mapping[str, float], loops: LoopTimes
) -> dict[str, float]:
    """Seconds of each kernel, and of the compiler's loop behind it where that does what the kernel cannot.

    Args:
        trial: the lowered model.
        last: the last node that each kernel takes, by the name of the node that the kernel's result is.
        seconds: of each node of ``trial``.
        loops: of the compiler.
    """
    by_name = {node.name: node for node in trial.graph.nodes}
    taken: dict[str, float] = {}
    for name, node in last.items():
        result = kernel = by_name[name]
        while kernel.target.namespace != "onednn":
            kernel = kernel.all_input_nodes[0]
        taken[name] = seconds[kernel.name]
        if result is not kernel and qd.is_quantize(result):
            taken[name] += _elements(node) * loops.quantizing
        elif result.target is _CLAMP:
            taken[name] += _elements(node) * loops.dequantizing  # it reads integers, which is what takes time
    return taken


_CLAMP: Final = torch.ops.aten.clamp.default


_MARGIN: Final = 1.1


def costs(regions: Sequence[Region], loops: LoopTimes) -> tuple[dict[str, Times], list[Link]]:
    """What the choice is made by: times of operators, with the loops that each has anyway, and links."""
    region_of = {node: region for region in regions for node in region.nodes}
    # Float has to be faster by more than what a measurement may be off.
    times = {r.name: attrs.evolve(r.times, float32=_MARGIN * r.times.float32) for r in regions}
    links: list[Link] = []

    def add(name: str, *, int8: float = 0.0, float32: float = 0.0) -> None:
        times[name] = Times(times[name].int8 + int8, times[name].float32 + float32)

    for region in regions:
        for tensor, quantize in _read(region):
            size = _elements(tensor)
            source = region_of.get(_maker(quantize))
            if source is None:
                # Some loop makes it, and rounds it as well.
                add(region.name, int8=size * (loops.quantizing - loops.plain))
                add(region.name, float32=size * (loops.rounding - loops.plain))
            else:
                links.append(
                    Link(
                        source.name,
                        region.name,
                        to_float=size * loops.dequantizing,
                        to_int8=size * loops.quantizing,
                        in_float=size * loops.rounding,
                    )
                )
        for size in _read_by_loops(region, region_of):
            add(region.name, int8=size * (loops.dequantizing - loops.plain))
            add(region.name, float32=size * (loops.rounding - loops.plain))
    return times, links


def _read(region: Region) -> Iterator[tuple[Node, Node]]:
    """The activations that a region reads in low precision, and what quantizes each."""
    for node in region.nodes:
        for source in node.all_input_nodes:
            if qd.is_dequantize(source) and source not in region.weights:
                quantize = source.args[0]
                assert isinstance(quantize, Node)
                yield source, quantize


def _maker(quantize: Node) -> Node:
    """What computed the tensor that ``quantize`` reads, past what only moves its values in low precision."""
    node = quantize
    while qd.is_quantize(node) or qd.is_dequantize(node) or _moves(node):
        (node, *_) = node.all_input_nodes
    return node


def _moves(node: Node) -> bool:
    """Whether ``node`` reads one tensor in low precision and returns its values as they are."""
    sources = node.all_input_nodes
    between = len(sources) == 1 and qd.is_dequantize(sources[0]) and all(map(qd.is_quantize, node.users))
    return between and len({n.args[1:] for n in (*sources, *node.users)}) == 1


def _read_by_loops(region: Region, region_of: Mapping[Node, Region]) -> Iterator[int]:
    """The sizes of what others than regions read of what the region writes in low precision."""
    for quantize in region.nodes[-1].users:
        for dequantize in quantize.users if qd.is_quantize(quantize) else ():
            for reader in dequantize.users:
                if reader not in region_of and not _moves(reader) and reader.op != "output":
                    yield _elements(dequantize)


def _elements(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, torch.Tensor) else 0


class _FloatWeights:
    """What dequantize operators of constants give: computed once, also where several operators read it."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._names = FreeNames(gm)
        self._made: dict[Node, str] = {}

    def of(self, weight: Node) -> Node:
        """A node that reads the value of the dequantize operator ``weight``, in its place."""
        if weight not in self._made:
            self._made[weight] = self._store(weight)
        with self._gm.graph.inserting_before(weight):
            constant = self._gm.graph.get_attr(self._made[weight])
        constant.meta = {key: value for key, value in weight.meta.items() if key != ID_KEY}
        return constant

    def _store(self, weight: Node) -> str:
        def value(argument: Any) -> Any:
            is_node = isinstance(argument, Node)
            return get_tensor(self._gm, str(argument.target)).detach() if is_node else argument

        source = weight.args[0]
        assert isinstance(source, Node)
        assert callable(weight.target)
        with torch.no_grad():
            tensor = weight.target(*map(value, weight.args), **weight.kwargs)
        target = self._names.fresh(f"{source.target}_float")
        set_tensor(self._gm, target, tensor)
        return target
