"""What a quantizer is: the base class that users subclass, as in PyTorch's tutorials."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch.fx import GraphModule

from .ledger import Ledger

__all__ = ["Quantizer"]


class Quantizer(ABC):
    """Says which tensors of a model are quantized and how, by annotating its nodes.

    Subclass it and write :meth:`annotate`; ``prepare_pt2e`` calls ``transform_for_annotation``, ``annotate``
    and ``validate``, in this order. The model handed in is a working copy: the caller's is never touched.
    """

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Rewrite the float model before it is annotated. The default changes nothing."""
        return model

    @abstractmethod
    def annotate(self, model: GraphModule) -> GraphModule:
        """Put a ``QuantizationAnnotation`` into ``node.meta["quantization_annotation"]`` of nodes.

        Returns:
            ``model``, annotated in place.
        """

    def validate(self, model: GraphModule) -> None:  # noqa: B027  (optional to override, as in the tutorials)
        """Check the annotated model against what the backend can run; raise on what it cannot."""

    def bind_ledger(self, ledger: Ledger) -> None:  # noqa: B027  (a quantizer that says nothing is fine)
        """Receive the ledger that decisions of the next :meth:`annotate` are written to."""
