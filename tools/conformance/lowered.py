"""Properties of the lowered form of a pattern: its kernels, or why not, and the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from ...matchers.operator_pattern import OperatorPattern
from .expect import expect, expect_equal
from .flow import Flows, Run
from .reading import largest, quantizes, supported_runs
from .zoo import Branch

__all__ = ["PROPERTIES"]


def is_lowered_or_says_why_not(flows: Flows, pattern: OperatorPattern) -> None:
    """Its operators run as the table says, or have the reason why not here.

    Where the result is read in float, what they run as may be the kernel of a part of the pattern.
    """
    kernels = {p.kernel.name for p in flows.backend.patterns if p.kernel is not None}
    for run, branch in supported_runs(flows, pattern):
        if run.lowered is None:
            continue
        for decision in run.decisions(branch, "lowered"):
            place = f"{run.preset.name}: %{decision.node}"
            if decision.status == "float":
                expect(bool(decision.reason), f"{place} is left float without a reason")
                matched = decision.reason != "no-kernel" or not branch.is_read
                expect(matched, f"{place} was tried by no kernel")
            elif pattern.kernel is None:
                expect(decision.detail.startswith("left to the compiler"), f"{place}: {decision.detail}")
            else:
                # Not its own in every case: a pass may put another one in its place where that is faster.
                told = any(decision.detail.startswith(f"runs as {name}") for name in kernels)
                expect(told, f"{place} is said to be {decision.detail!r}, not of {sorted(kernels)}")
                matched = decision.reason == pattern.name or not branch.is_read
                expect(matched, f"{place} was lowered as {decision.reason}")


def runs_on_its_kernel_under_some_preset(flows: Flows, pattern: OperatorPattern) -> None:
    """Under one at least of the presets with activations in low precision, its kernel takes its example.

    Whether a kernel for weights alone is worth calling may be a matter of the machine.
    """
    if pattern.kernel is None:
        return
    tried = [
        decision
        for run, branch in supported_runs(flows, pattern)
        if run.lowered is not None and run.config.input_activation is not None and branch.is_read
        for decision in run.decisions(branch, "lowered")
    ]
    runs = any(made.reason == pattern.name and made.kernel for made in tried)
    said = "; ".join(made.detail or made.reason for made in tried)
    expect(runs or not tried, f"its kernel takes its example under no preset: {said}")


def computes_the_same_lowered(flows: Flows, pattern: OperatorPattern) -> None:
    """Lowered results are the converted ones, up to one rounding the other way, where they run here."""
    for run in flows.runs:
        if run.lowered_results is None:
            continue
        for i, branch in flows.branches(pattern):
            step = max(_steps(run, branch), default=0.0)
            for found, wanted in zip(run.lowered_results[i], run.converted_results[i], strict=True):
                expect_equal((found.shape, found.dtype), (wanted.shape, wanted.dtype), "a lowered result")
                off = largest(found - wanted)
                allowed = 1.001 * step + 1e-4 * largest(wanted)
                expect(off <= allowed, f"{run.preset.name}: off by {off}, more than {allowed}")


PROPERTIES = (
    is_lowered_or_says_why_not,
    runs_on_its_kernel_under_some_preset,
    computes_the_same_lowered,
)


def _steps(run: Run, branch: Branch) -> Iterator[float]:
    """The scales of what the branch writes."""
    for node in run.operators(branch):
        for user in node.users:
            if quantizes(user, node) and isinstance(user.args[1], float):
                yield user.args[1]
