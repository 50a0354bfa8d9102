"""``annotate``: let the quantizer say which tensors are quantized and how."""

from __future__ import annotations

import warnings
from typing import ClassVar

import attrs
from torch.fx import GraphModule

from ..errors import AnnotationError, NothingQuantizedWarning, PipelineError
from ..ir.attributes import nested_graph_modules
from ..ir.bodies import is_body
from ..ir.ledger import Ledger
from ..ir.points import annotated_points
from ..ir.quantizer import Quantizer
from ..ir.settle import settle
from ..ir.stages import Stage
from .base import PassContext
from .contracts import EXACT, Contract
from .registry import register_pass

__all__ = ["Annotate"]


@register_pass
@attrs.frozen
class Annotate:
    """Runs ``transform_for_annotation``, ``annotate`` and ``validate`` of the context's quantizer.

    Afterwards the ledger has one decision for every float operator, whatever the quantizer wrote there
    (:mod:`lowbit.ir.settle`).

    A quantizer annotates each body of ``cond``, ``while_loop``, ``scan`` and ``map`` as it does a model.

    Args:
        bodies: whether it does. Training stays out of them.

    Warns with NothingQuantizedWarning when the quantizer annotated no tensor at all.
    """

    name: ClassVar[str] = "annotate"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = Stage.ANNOTATED
    contract: ClassVar[Contract | None] = EXACT
    bodies: bool = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Annotate ``gm`` with ``context.quantizer``."""
        quantizer = context.quantizer
        if quantizer is None:
            raise PipelineError(
                "the annotate pass needs a quantizer and the run has none",
                hint="pass PassContext(quantizer=…) to the manager, or use prepare_pt2e(model, quantizer)",
            )
        quantizer.bind_ledger(context.ledger)
        try:
            _annotate(gm, quantizer)
        finally:
            # The ledger goes with this model; what the quantizer does afterwards is of another.
            quantizer.bind_ledger(Ledger())
        # Bodies are annotated before the model they are of.
        points = [annotated_points(module.graph) for module in (gm, *nested_graph_modules(gm))]
        settle(gm, context.ledger)
        if not is_body(gm) and not any(points):
            warnings.warn(
                NothingQuantizedWarning(
                    f"{type(quantizer).__name__} annotated no tensor: the model stays float. Is a "
                    "configuration set (set_global), and does the model have operators that the backend "
                    "quantizes?"
                ),
                stacklevel=2,
            )
        return True


def _annotate(gm: GraphModule, quantizer: Quantizer) -> None:
    for step in (quantizer.transform_for_annotation, quantizer.annotate):
        returned = step(gm)
        # Older quantizers return nothing from annotate; the graph they were handed is what counts.
        if returned is not gm and returned is not None:
            raise AnnotationError(
                f"{type(quantizer).__name__}.{step.__name__} returned another module than it was handed",
                hint="change the module in place and return it: it is a working copy already",
            )
    quantizer.validate(gm)
