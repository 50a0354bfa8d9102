"""Laws of graphs that are trained: what they write, and what ``train`` and ``eval`` leave of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ...errors import ContractError, StageError
from ...ir.clone import clone_graph_module
from ...ir.graph_module import ExportedGraphModule
from ...ir.meta import QAT_KEY
from ...ir.oracle import run_exactly, written_targets
from ...ir.stages import Stage, get_stage
from ...passes.contracts import REAL
from ...passes.equivalence import check_contract
from .canonical import canonical
from .run import LawBroken, Run

__all__ = ["copies_are_alike", "modes_return", "state_kept"]

_TRAINED = (Stage.FLOAT, Stage.ANNOTATED, Stage.OBSERVED)


def state_kept(run: Run) -> None:
    """What a graph in training writes into its buffers (running statistics, say) is what it was."""
    if get_stage(run.before) in _TRAINED[:2] and get_stage(run.after) in _TRAINED and run.change.changed:
        _compare_states(_state(run.before, run.inputs), _state(run.after, run.inputs), "the pass")


def _state(gm: GraphModule, inputs: tuple[Any, ...]) -> dict[str, torch.Tensor]:
    """What is in the tensors that ``gm`` writes to, after a run in float64."""
    written = written_targets(gm.graph)
    state: dict[str, torch.Tensor] = {}

    def watch(node: Node, value: Any) -> Any:
        if node.op == "get_attr" and node.target in written and isinstance(value, torch.Tensor):
            state[str(node.target)] = value
        return value

    if written:
        run_exactly(gm, *inputs, watch=watch)
    return state


def _compare_states(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], who: str) -> None:
    if before.keys() != after.keys():
        raise LawBroken(f"{sorted(before)} were written to before {who}, {sorted(after)} are now")
    for name, want in before.items():
        if not want.numel():
            continue
        apart = float((after[name].double() - want.double()).abs().max())
        # Sums in another order; a constant that was rounded to float32 would show.
        if apart > 2.0**-30 * (1.0 + float(want.double().abs().max())):
            raise LawBroken(f"{name} is {apart:.3g} off after a run, from what it was before {who}")


def modes_return(run: Run) -> None:
    """Switched to evaluation and back to training, a graph means what it did, and writes what it did."""
    gm = run.after
    if get_stage(gm) is not Stage.OBSERVED or not gm.meta.get(QAT_KEY):
        return
    returned = clone_graph_module(gm)
    returned.eval()
    returned.train()
    # Fake quantizers only look on: as they quantize, both would be switched to evaluation.
    try:
        check_contract(_without_stage(gm), _without_stage(returned), run.inputs, REAL)
    except ContractError as error:
        raise LawBroken(f"after eval() and train(): {error}") from error
    _compare_states(_state(gm, run.inputs), _state(returned, run.inputs), "eval() and train()")


def _without_stage(gm: GraphModule) -> GraphModule:
    """``gm``, whose observers are taken to look on."""
    gm = clone_graph_module(gm)
    gm.meta.clear()
    return gm


def copies_are_alike(run: Run) -> None:
    """A deep copy is the same graph, and ``train`` and ``eval`` do to it what they do to the original.

    What cannot be trained (a graph that is calibrated or converted) refuses, and so does its copy.
    """
    gm = run.after
    if not isinstance(gm, ExportedGraphModule):
        raise LawBroken(f"it is a {type(gm).__name__}, whose train() and eval() do not switch its graph")
    try:
        other = copy.deepcopy(gm)
    except NotImplementedError:
        return  # weights packed for a kernel cannot be copied
    # FX copies metadata as it is, so annotations are about the nodes of the original.
    if canonical(other, annotations=False) != canonical(gm, annotations=False):
        raise LawBroken("its deep copy is another graph")
    trains = get_stage(gm) in _TRAINED[:2] or bool(gm.meta.get(QAT_KEY))
    for which, each in (("it", clone_graph_module(gm)), ("its deep copy", other)):
        try:
            each.train()
        except StageError:
            if trains:
                raise LawBroken(f"{which} cannot be trained") from None
        else:
            if not trains:
                raise LawBroken(f"{which} can be trained, as which it means nothing")
