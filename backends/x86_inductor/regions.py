"""What each kernel of a model takes, and how long it and the float operators in its place run here."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final

import attrs
import torch
from torch.fx import GraphModule, Node

from ...ir import quantized_decomposed as qd
from ...ir.attributes import constants
from ...ir.clone import own_tensors
from ...passes import EmitInductor, PackWeights, PassContext, PassManager, Pipeline
from .linears_to_convolutions import LinearsToConvolutions
from .measured_costs import LoopTimes, example_inputs, measure_nodes
from .merge_parallel_linears import MergeParallelLinears
from .placement import Times

__all__ = ["Region", "elements", "measured_regions"]


_NOT_KNOWN: Final = Times(0.0, 0.0)


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
    times: Times = _NOT_KNOWN

    @property
    def names(self) -> tuple[str, ...]:
        """Of its operators, which are the same in the next copy of the model."""
        return tuple(node.name for node in self.nodes)


def measured_regions(
    gm: GraphModule,
    context: PassContext,
    loops: Callable[[], LoopTimes],
    times: dict[tuple[str, ...], Times],
) -> list[Region]:
    """What ``gm`` lowers to, timed: operators that may as well be float.

    Args:
        gm: a converted model.
        context: of the pass.
        loops: measures what the compiler's loops take, if there are such operators.
        times: known of regions, by the names of their operators. Those of others are measured and put there;
            none is measured twice, as what is measured often is slow sometimes.
    """
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
    constant = constants(gm.graph)
    regions: list[Region] = []
    for name, operators in members.items():
        nodes = sorted((now[operator] for operator in operators if operator in now), key=order.__getitem__)
        weights = tuple((node, weight) for node in nodes for weight in _weights(node, constant))
        if weights and _scales_are_fixed(nodes, {weight for _, weight in weights}):
            regions.append(Region(name, tuple(nodes), weights))
    unknown = [region for region in regions if region.names not in times]
    if unknown:
        inputs = example_inputs(gm)
        int8, float32 = measure_nodes(trial, inputs), measure_nodes(work, inputs)
        kernels = {node.name: node for node in trial.graph.nodes}
        for region in unknown:
            in_int8 = _seconds_of_kernel(kernels[region.name], region.nodes[-1], now, int8, loops())
            in_float = sum(float32[node.name] for node, _ in region.weights)
            times[region.names] = Times(in_int8, in_float)
    return [attrs.evolve(region, times=times[region.names]) for region in regions]


# Without packing nothing would be known of a kernel's time: it would pack at every call.
_TRIAL: Final = Pipeline((EmitInductor(), MergeParallelLinears(), LinearsToConvolutions(), PackWeights()))


def _weights(node: Node, constant: frozenset[Node]) -> list[Node]:
    """The dequantize operators of constants that ``node`` reads."""
    read = [source for source in node.all_input_nodes if qd.is_dequantize(source)]
    return [source for source in read if constant.issuperset(source.all_input_nodes)]


def _scales_are_fixed(nodes: Sequence[Node], weights: Container[Node]) -> bool:
    """Whether ``nodes`` read activations in low precision, of scales that are known before the model runs."""
    read = [source for node in nodes for source in node.all_input_nodes if qd.is_dequantize(source)]
    others = [source for source in read if source not in weights]
    return bool(others) and all(node.target is qd.DEQUANTIZE_PER_TENSOR for node in others)


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
        taken += elements(last) * loops.quantizing
    elif result.target is _CLAMP:
        taken += elements(last) * loops.dequantizing  # it reads integers, which is what takes time
    return taken


_CLAMP: Final = torch.ops.aten.clamp.default
_COPIES: Final = frozenset({torch.ops.aten.clone.default, torch.ops.aten.contiguous.default})


def elements(node: Node) -> int:
    """How many numbers there are in the tensor that ``node`` gives; 0 if it gives none."""
    value = node.meta.get("val")
    return value.numel() if isinstance(value, torch.Tensor) else 0
