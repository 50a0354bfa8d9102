"""The graph modules that lowbit returns: ``train()`` and ``eval()`` switch the graph, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch.fx import GraphModule
from torch.fx.graph import PythonCode

from ..errors import StageError
from .meta import QAT_KEY
from .points import remap_annotations
from .stages import Stage, get_stage
from .train_eval import to_evaluation, to_training

__all__ = ["ExportedGraphModule", "check_trainable", "let_train_and_eval_switch"]


class ExportedGraphModule(GraphModule):
    """A graph module whose ``train`` and ``eval`` do what they say, also after ``copy.deepcopy``.

    ``pickle`` and ``torch.save`` keep it whole, at every stage: see :mod:`lowbit.ir.text.pickling`.
    """

    reduce: ClassVar[Callable[[GraphModule], tuple[Any, ...]]]
    """What pickles such a module; put here by :mod:`lowbit.ir.text.pickling`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ExportedGraphModule.reduce(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        new = super().__deepcopy__(memo)
        # FX copies metadata as it is, and annotations name nodes.
        nodes = dict(zip(self.graph.nodes, new.graph.nodes, strict=True))
        remap_annotations(new.graph, nodes)
        return new

    def train(self, mode: bool = True) -> Self:
        """Switch the graph to training or evaluation, and with it the fake quantizers.

        Raises:
            StageError: the graph cannot be trained: it was prepared for post-training quantization, or
                converted.
        """
        if mode:
            check_trainable(self)
            to_training(self)
        else:
            to_evaluation(self)
        return self

    def recompile(self) -> PythonCode:
        """Generate the code of the graph anew, after it was edited."""
        for node in self.graph.nodes:
            # The tutorials freeze BatchNorm with ``node.args = new_args``, a list, which FX then cannot copy.
            if not isinstance(node.args, tuple):
                node.args = tuple(node.args)
        return super().recompile()


def check_trainable(gm: GraphModule) -> None:
    """See that ``gm`` is a float model, or one prepared for quantization-aware training.

    Raises:
        StageError: it is neither.
    """
    stage = get_stage(gm)
    if stage in (Stage.FLOAT, Stage.ANNOTATED) or (stage is Stage.OBSERVED and gm.meta.get(QAT_KEY)):
        return
    if stage is Stage.OBSERVED:
        found, hint = (
            "prepared for post-training quantization",
            "calibrate it, or use prepare_qat_pt2e to train",
        )
    else:
        found, hint = (
            "converted: its weights are integers",
            "train what prepare_qat_pt2e returned, then convert",
        )
    raise StageError(f"the model cannot be trained, it is {found}", hint=hint)


def let_train_and_eval_switch(gm: GraphModule) -> None:
    """Give ``gm``, of whatever kind, the ``train`` and ``eval`` of :class:`ExportedGraphModule`, in place."""
    if isinstance(gm, ExportedGraphModule):
        return
    # torch.export hides both behind functions on the instance, which a deep copy loses and then forgets to
    # refuse.
    for name in ("train", "eval"):
        gm.__dict__.pop(name, None)
    # The code of a graph module is on a class of its own, by this name; recompile writes it there.
    gm.__class__ = type("GraphModuleImpl", (ExportedGraphModule,), {})
    gm.recompile()
