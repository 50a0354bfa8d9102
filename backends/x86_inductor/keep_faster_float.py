"""``keep-faster-float``: leave operators float where int8 is slower on this machine."""

from __future__ import annotations

import functools
from typing import ClassVar

import attrs
import torch
from torch.fx import GraphModule, Node

from ...ir.attributes import FreeNames, delete_unused, evaluate, set_tensor
from ...ir.meta import ID_KEY
from ...ir.operators import is_precision_change
from ...ir.stages import Stage
from ...ir.sweep import erase_unread
from ...passes import PassContext, register_pass
from ...passes.contracts import REAL, Contract
from .measured_costs import measure_loops
from .placement import Times, cheapest_floats
from .region_costs import costs
from .regions import Region, measured_regions

__all__ = ["KeepFasterFloat"]


@register_pass
@attrs.frozen
class KeepFasterFloat:
    """Makes the weights of operators float again whose kernels would cost more than they save.

    A copy of the model is lowered, and each kernel timed, as is the float operator that it stands for, and
    the loops that convert between the two. Which operators are float then is the cheapest choice for all of
    them together (:mod:`.placement`). What is left may get other kernels then, as an addition is part of
    either operand's: these are timed too, and the choice is made again, until nothing changes. Times differ
    from run to run, and so may the choice.

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
        weights = _FloatWeights(gm)
        loops = functools.cache(measure_loops)
        times: dict[tuple[str, ...], Times] = {}
        changed = False
        while True:
            with torch.random.fork_rng(devices=[]):
                regions = measured_regions(gm, context, loops, times)
            floats = cheapest_floats(*costs(regions, loops())) if regions else frozenset[str]()
            left = [each for each in regions if each.name in floats and context.allows("keep", each.nodes[0])]
            if not left:
                return changed
            changed = True
            for region in left:
                _leave_float(region, weights, context)
            erase_unread(gm.graph)
            delete_unused(gm)


def _leave_float(region: Region, weights: _FloatWeights, context: PassContext) -> None:
    int8, float32 = (f"{1e6 * seconds:.0f}" for seconds in attrs.astuple(region.times))
    detail = f"int8 takes {int8} µs here and float {float32}, without the loops around them"
    for node in region.nodes:
        intended = any(map(is_precision_change, node.all_input_nodes))
        context.ledger.missed("faster-in-float", node, detail, intended=intended)
    for operator, weight in region.weights:
        operator.replace_input_with(weight, weights.of(weight))


class _FloatWeights:
    """What dequantize operators of constants give: computed once, also where several operators read it."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm
        self._names = FreeNames(gm)
        self._made: dict[tuple[object, ...], str] = {}

    def of(self, weight: Node) -> Node:
        """A node that reads the value of the dequantize operator ``weight``, in its place."""
        # A layer that is called several times has a dequantize operator a call.
        key = (weight.target, weight.args, *weight.kwargs.items())
        if key not in self._made:
            self._made[key] = self._store(weight)
        with self._gm.graph.inserting_before(weight):
            constant = self._gm.graph.get_attr(self._made[key])
        constant.meta = {key: value for key, value in weight.meta.items() if key != ID_KEY}
        return constant

    def _store(self, weight: Node) -> str:
        source = weight.args[0]
        assert isinstance(source, Node)
        target = self._names.fresh(f"{source.target}_float")
        set_tensor(self._gm, target, evaluate(self._gm, weight))
        return target
