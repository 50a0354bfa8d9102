"""``insert-fake-quantizers``: what ``insert-observers`` does, for training."""

from __future__ import annotations

from typing import ClassVar

import attrs
from torch.fx import GraphModule

from ..ir.meta import QAT_KEY
from ..ir.observers import create_fake_quantize
from ..ir.stages import Stage
from .base import PassContext
from .contracts import EXACT, Contract
from .insert_observers import insert
from .registry import register_pass

__all__ = ["InsertFakeQuantizers"]


@register_pass
@attrs.frozen
class InsertFakeQuantizers:
    """Inserts fake quantizers where :class:`~lowbit.passes.InsertObservers` would insert observers.

    Specs say by their constructor what is inserted: a spec that names an observer gets that, and is not
    rounded in training. Weights are observed whenever training has changed them.
    """

    name: ClassVar[str] = "insert-fake-quantizers"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.ANNOTATED})
    ensures: ClassVar[Stage | None] = Stage.OBSERVED
    contract: ClassVar[Contract | None] = EXACT

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Insert fake quantizers into ``gm``.

        Raises:
            SharingError, AnnotationError, UnsupportedError: as of ``insert-observers``.
        """
        gm.meta[QAT_KEY] = True
        return insert(gm, context, create_fake_quantize)
