"""How the suite runs property tests, and the law of the ledger, which tests of all floors ask for."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings
from lowbit import Stage, decisions, get_stage
from lowbit.backends.x86_inductor import linears_to_convolutions
from lowbit.ir.control_flow import bodies
from lowbit.ir.meta import KERNEL_KEY, ORIGIN_KEY
from lowbit.ir.operators import is_float_operator
from lowbit.ir.reasons import REASONS
from torch.fx import GraphModule

# The same examples in every run: a change is judged by what it changes. `make nightly` looks for new ones.
settings.register_profile("default-suite", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("nightly", derandomize=False, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default-suite"))


@pytest.fixture
def linears_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linears have the kernel of linears on every CPU (see ``linears-to-convolutions``)."""
    monkeypatch.setattr(linears_to_convolutions, "convolves_faster", lambda: False)


@pytest.fixture(scope="session")
def undecided() -> Callable[[GraphModule], list[str]]:
    """``undecided(model)``: what of the ledger of a model is not as it must be; [] if nothing."""
    return _undecided


def _undecided(model: GraphModule) -> list[str]:
    found = decisions(model)
    names = [decision.node for decision in found]
    # What a pass made belongs to an operator that was there before.
    own = [
        n for n in model.graph.nodes if is_float_operator(n) and not {KERNEL_KEY, ORIGIN_KEY} & n.meta.keys()
    ]
    inside = [
        f"{body.name}.{n.name}"
        for body in bodies(model)
        for n in body.module.graph.nodes
        if is_float_operator(n)
    ]
    wanted = [*(node.name for node in own), *inside]
    problems = [f"{name} is undecided" for name in wanted if name not in names]
    problems += [f"{name} is decided twice" for name in set(names) if names.count(name) > 1]
    if get_stage(model) in {Stage.ANNOTATED, Stage.OBSERVED}:
        problems += [f"{name} is not there" for name in names if name not in wanted]
    for decision in found:
        if decision.status == "float":
            problems += [f"{decision}: unknown code"] * (decision.reason not in REASONS)
        elif decision.status != "quantized" or not decision.reason:
            problems.append(f"{decision}: no status")
        elif get_stage(model) is Stage.LOWERED and decision.reason != "batch-norm" and not decision.kernel:
            problems.append(f"{decision}: no kernel")
    return problems
