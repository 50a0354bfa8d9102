"""Laws of meaning: a pass leaves what a graph computes as it was, and the graph runs."""

from __future__ import annotations

import copy
from typing import Any, Final

import torch
from torch.fx import GraphModule, Interpreter, Node

from ...errors import ContractError
from ...ir.aliasing import is_write
from ...ir.attributes import nested_graph_modules
from ...ir.clone import clone_graph_module
from ...ir.schema import argument
from ...ir.stages import Stage, get_stage
from ...ir.train_eval import switch_to_evaluation
from ...passes.contracts import contract_of
from ...passes.equivalence import check_contract
from .run import LawBroken, Run

__all__ = ["as_under_autocast", "meaning_kept", "meaning_kept_in_evaluation", "runs"]


def meaning_kept(run: Run) -> None:
    """In float64, the graph computes what it computed, as far as the pass's contract says."""
    _check_meaning(run, run.before, run.after)


def meaning_kept_in_evaluation(run: Run) -> None:
    """So it does where graphs in training are switched to evaluation."""
    if any(argument(node, "training") is True for node in run.before.graph.find_nodes(**_BATCH_NORMS)):
        graphs = [clone_graph_module(gm) for gm in (run.before, run.after)]
        for gm in graphs:
            switch_to_evaluation(gm)
        _check_meaning(run, *graphs)


_BATCH_NORMS: Final[dict[str, Any]] = {
    "op": "call_function",
    "target": torch.ops.aten.batch_norm.default,
}


def _check_meaning(run: Run, before: GraphModule, after: GraphModule) -> None:
    contract = contract_of(run.pass_)
    if contract is None or not (run.change.changed or run.before.meta.keys() != run.after.meta.keys()):
        return
    try:
        check_contract(before, after, run.inputs, contract)
    except ContractError as error:
        raise LawBroken(str(error)) from error


def runs(run: Run) -> None:
    """The graph runs, returns tensors of the shapes and dtypes it returned, and its metadata says what is."""
    if not run.change.changed and not _describes_anew(run):
        return
    want = _forms(_results(run.before, run.inputs, checks_metadata=False))
    try:
        got = _forms(_results(run.after, run.inputs, checks_metadata=True))
    except LawBroken:
        raise
    except Exception as error:
        raise LawBroken(f"it does not run: {type(error).__name__}: {error}") from error
    if want != got:
        raise LawBroken(f"it returns {got} in place of {want}")


def _describes_anew(run: Run) -> bool:
    values = ([n.meta.get("val") for n in gm.graph.nodes] for gm in (run.before, run.after))
    return any(old is not new for old, new in zip(*values, strict=False))


_Form = tuple[tuple[int, ...], torch.dtype]


def _forms(results: tuple[torch.Tensor, ...]) -> list[_Form]:
    return [_form(r) for r in results]


def _form(value: torch.Tensor) -> _Form:
    return tuple(value.shape), value.dtype


class _Runner(Interpreter):
    """Runs a graph node by node, on copies of what it writes to."""

    def __init__(self, gm: GraphModule, checks_metadata: bool) -> None:
        if any(map(is_write, gm.graph.nodes)):
            gm = clone_graph_module(gm)
            for body in nested_graph_modules(gm):
                body.recompile()
        super().__init__(gm)
        self.checks_metadata = checks_metadata

    def run_node(self, n: Node) -> Any:
        value, said = super().run_node(n), n.meta.get("val")
        if self.checks_metadata and isinstance(value, torch.Tensor) and isinstance(said, torch.Tensor):
            is_so, is_said = _form(value), _form(said)
            if is_so != is_said:
                raise LawBroken(f"%{n.name} says it is {is_said}, and is {is_so}")
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Observers take notice of what they see.
        return copy.deepcopy(self.fetch_attr(target))(*args, **kwargs)


def _results(gm: GraphModule, inputs: tuple[Any, ...], *, checks_metadata: bool) -> Any:
    with torch.no_grad():
        return _Runner(gm, checks_metadata).run(*(x.clone() for x in inputs))


def as_under_autocast(run: Run) -> None:
    """What a pass computes in a narrower dtype is what ``torch.autocast`` to it computes, bit for bit."""
    contract, writes = contract_of(run.pass_), any(map(is_write, run.before.graph.nodes))
    if (
        contract is None
        or contract.dtype not in _AUTOCAST
        or get_stage(run.before) is not Stage.FLOAT
        or writes
    ):
        return
    try:
        with torch.autocast("cpu", dtype=contract.dtype):
            want = _results(run.before, run.inputs, checks_metadata=False)
    except RuntimeError:
        return  # torch refuses the mix of dtypes that autocast makes
    got = _results(run.after, run.inputs, checks_metadata=False)
    for index, (one, other) in enumerate(zip(want, got, strict=True)):
        if not torch.allclose(one.to(other.dtype), other, rtol=0, atol=0, equal_nan=True):
            raise LawBroken(f"result {index} is not what autocast to {contract.dtype} computes")


_AUTOCAST: Final = (torch.bfloat16, torch.float16)
