"""``keep-faster-float``: leave operators float where int8 is slower on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import attrs
import torch
from torch.fx import GraphModule, Node

from ...ir import quantized_decomposed as qd
from ...ir.attributes import FreeNames, delete_unused, get_tensor, is_constant, set_tensor
from ...ir.clone import own_tensors
from ...ir.meta import ID_KEY
from ...ir.operators import is_precision_change
from ...ir.stages import Stage
from ...ir.sweep import erase_unread
from ...passes import EmitInductor, PackWeights, PassContext, PassManager, Pipeline, register_pass
from ...passes.contracts import REAL, Contract
from .measured_costs import LoopTimes, example_inputs, measure_loops, measure_nodes
from .merge_parallel_linears import MergeParallelLinears
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
        """Make weights float in place.

        Raises:
            UnsupportedError: the model cannot be run on inputs that are made up from its graph.
        """
        with torch.random.fork_rng(devices=[]):
            regions, loops = measured_regions(gm, context)
        floats = cheapest_floats(*costs(regions, loops)) if loops is not None else frozenset[str]()
        made = _FloatWeights(gm)
        left = [each for each in regions if each.name in floats and context.allows("keep", each.nodes[0])]
        for region in left:
            int8, float32 = (f"{1e6 * seconds:.0f}" for seconds in attrs.astuple(region.times))
            detail = f"int8 takes {int8} µs here and float {float32}, without the loops around them"
            for node in region.nodes:
                intended = any(map(is_precision_change, node.all_input_nodes))
                context.ledger.missed("faster-in-float", node, detail, intended=intended)
            for operator, weight in region.weights:
                operator.replace_input_with(weight, made.of(weight))
        if left:
            erase_unread(gm.graph)
            delete_unused(gm)
        return bool(left)


@attrs.frozen(eq=False)
class Region:
    """The operators that one kernel takes.

    Args:
        name: of the node that the kernel's result is.
        nodes: all operators of the region, in graph order.
        weights: operators that read a weight, several where kernels were merged, each with the dequantize
            operator of its weight.
        times: of the kernel, and of those operators, in seconds.
    """

    name: str
    nodes: tuple[Node, ...]
    weights: tuple[tuple[Node, Node], ...]
    times: Times


def measured_regions(gm: GraphModule, context: PassContext) -> tuple[list[Region], LoopTimes | None]:
    """What ``gm`` lowers to, timed: operators that may as well be float; and the loops, if there are any."""
    work = PassManager(()).run(gm, Pipeline(()))
    own_tensors(work)  # what the model writes into is the user's
    trial_context = attrs.evolve(context, ledger=context.ledger.copy(), gate=None)
    trial = PassManager(()).run(work, _TRIAL, trial_context)
    members: dict[str, list[str]] = {}
    for decision in trial_context.ledger.decisions:
        if decision.status == "quantized" and decision.kernel.startswith("onednn."):
            members.setdefault(decision.runs_at, []).append(decision.node)
    now = {node.name: node for node in gm.graph.nodes}
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    found: dict[str, tuple[Node, ...]] = {}
    for name, operators in members.items():
        nodes = sorted((now[operator] for operator in operators if operator in now), key=order.__getitem__)
        if _may_be_float(nodes):
            found[name] = tuple(nodes)
    if not found:
        return [], None
    inputs = example_inputs(gm)
    int8, float32 = measure_nodes(trial, inputs), measure_nodes(work, inputs)
    loops = measure_loops()
    kernels = {node.name: node for node in trial.graph.nodes}
    regions: list[Region] = []
    for name, nodes in found.items():
        weights = tuple((node, weight) for node in nodes for weight in _weights(node))
        in_int8 = _seconds_of_kernel(kernels[name], nodes[-1], now, int8, loops)
        in_float = sum(float32[node.name] for node, _ in weights)
        regions.append(Region(name, nodes, weights, Times(in_int8, in_float)))
    return regions, loops


# Without packing nothing would be known of a kernel's time: it would pack at every call.
_TRIAL: Final = Pipeline((EmitInductor(), MergeParallelLinears(), PackWeights()))


def _weights(node: Node) -> list[Node]:
    """The dequantize operators of constants that ``node`` reads."""
    read = [source for source in node.all_input_nodes if qd.is_dequantize(source)]
    return [source for source in read if all(map(is_constant, source.all_input_nodes))]


def _may_be_float(nodes: Sequence[Node]) -> bool:
    """Whether there is a weight, and activations have scales that are known."""
    read = [source for node in nodes for source in node.all_input_nodes if qd.is_dequantize(source)]
    weights = {weight for node in nodes for weight in _weights(node)}
    others = [source for source in read if source not in weights]
    return bool(weights and others) and all(node.target is qd.DEQUANTIZE_PER_TENSOR for node in others)


def _seconds_of_kernel(
    result: Node, last: Node, known: Mapping[str, Node], seconds: Mapping[str, float], loops: LoopTimes
) -> float:
    """Seconds of a kernel, of what brings its inputs into form, and of the loop behind it, if it needs one.

    Args:
        result: the node that the kernel's result is, in the lowered model.
        last: the last operator that it takes.
        known: the nodes of the model before, by name; others were put there by lowering.
        seconds: of each node of the lowered model.
        loops: of the compiler: what a kernel cannot do of itself is one.
    """
    kernel: Any = result
    while kernel.target.namespace != "onednn":
        kernel = kernel.all_input_nodes[0]
    copies = (n for n in kernel.all_input_nodes if n.target in _COPIES and n.name not in known)
    taken = seconds[kernel.name] + sum(seconds[n.name] for n in copies)
    if result is not kernel and qd.is_quantize(result):
        taken += _elements(last) * loops.quantizing
    elif result.target is _CLAMP:
        taken += _elements(last) * loops.dequantizing  # it reads integers, which is what takes time
    return taken


_CLAMP: Final = torch.ops.aten.clamp.default
_COPIES: Final = frozenset({torch.ops.aten.clone.default, torch.ops.aten.contiguous.default})


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
        for quantize in _read(region):
            for maker in _makers(quantize):
                size = _elements(maker)
                source = region_of.get(maker)
                if source is None:
                    # Some loop makes it, and rounds it as well.
                    add(region.name, int8=size * (loops.quantizing - loops.plain))
                    add(region.name, float32=size * (loops.rounding - loops.plain))
                elif source is not region:
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


def _read(region: Region) -> list[Node]:
    """What quantizes the activations that a region reads in low precision, each once."""
    weights = {weight for _, weight in region.weights}
    read = [source for node in region.nodes for source in node.all_input_nodes if qd.is_dequantize(source)]
    found = [source.args[0] for source in read if source not in weights]
    return list(dict.fromkeys(node for node in found if isinstance(node, Node)))


def _makers(quantize: Node) -> Iterator[Node]:
    """What computed the tensors that ``quantize`` reads, past what only moves values in low precision."""
    if qd.is_quantize(quantize) or qd.is_dequantize(quantize) or _moves(quantize):
        for source in quantize.all_input_nodes:
            if isinstance(source.meta.get("val"), torch.Tensor) and source.op != "get_attr":
                yield from _makers(source)
    else:
        yield quantize


def _moves(node: Node) -> bool:
    """Whether ``node`` reads tensors of one scale in low precision and returns their values as they are."""
    sources = node.all_input_nodes
    if not sources or not all(map(qd.is_dequantize, sources)) or not all(map(qd.is_quantize, node.users)):
        return False
    return len({n.args[1:] for n in (*sources, *node.users)}) == 1


def _read_by_loops(region: Region, region_of: Mapping[Node, Region]) -> Iterator[int]:
    """The sizes of what others than regions read of what the region writes in low precision."""
    for quantize in dict.fromkeys(user for node in region.nodes for user in node.users):
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
