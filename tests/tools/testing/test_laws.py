"""Every pass that comes with lowbit, under the laws of the testing kit."""

from __future__ import annotations

import functools
import os
import time
import zlib
from typing import Any

import pytest
from lowbit import Pass, Stage
from lowbit.backends.registry import get_backend
from lowbit.backends.x86_inductor import (
    KeepFasterFloat,
    LinearsToConvolutions,
    MergeParallelLinears,
    keep_faster_float,
    regions,
)
from lowbit.backends.x86_inductor.measured_costs import LoopTimes
from lowbit.passes import (
    Annotate,
    DuplicateDequantize,
    EmitInductor,
    FoldBatchNorm,
    FoldConvBnQat,
    FoldQuantize,
    FuseConvBnQat,
    InsertFakeQuantizers,
    InsertObservers,
    Normalize,
    ObserversToQdq,
    PackWeights,
    PropagateBf16,
    PropagateMetadata,
    ReferenceRepresentation,
    ResolveSharing,
    pass_names,
)
from lowbit.tools.testing import Choices, Program, Step, Subject, check_on, laws
from torch.fx import GraphModule

# What a pass does to graphs that it refuses, for the ranges this CPU's kernels saturate with, say, is no law.
pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.LowbitWarning")

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
EXAMPLES = int(os.environ.get("LOWBIT_LAW_EXAMPLES", "10000" if NIGHTLY else "200"))
"""Graphs a pass."""
AT_ONCE = min(EXAMPLES, 200)
"""Graphs that all passes are tried on, one after the other: what was brought to one pass need only be brought
on to the next."""
SEED = 1000 * int(os.environ.get("LOWBIT_LAW_SEED", time.time() if NIGHTLY else 0))
"""Other graphs every night, or those of the night that the variable says; a failure prints the code."""
CHEAP = tuple(law for law in laws.LAWS if law not in laws.COSTLY)

TRAINING = {"is_training": True}
LOWERING = {"backend": "x86_inductor"}
X86, XNNPACK = {"quantizer": "x86_inductor"}, {"quantizer": "xnnpack"}
PASSES: tuple[tuple[Pass, dict[str, Any]], ...] = (
    (Normalize(), {}),
    (FoldBatchNorm(), {}),
    (Annotate(), {}),
    (Annotate(), X86),
    (Annotate(), XNNPACK),
    (ResolveSharing(), {}),
    (InsertObservers(), {}),
    (ObserversToQdq(), {}),
    (DuplicateDequantize(), {}),
    (FoldQuantize(), {}),
    (PropagateMetadata(), {}),
    (ReferenceRepresentation(), {}),
    (PropagateBf16(), {}),
    (PropagateBf16(), {"stage": Stage.QDQ}),
    (PropagateBf16(), {"stage": Stage.QDQ, **X86}),
    (Normalize(keep_gradients=True), TRAINING),
    (FuseConvBnQat(), TRAINING),
    (InsertFakeQuantizers(), TRAINING),
    (FoldConvBnQat(), TRAINING),
    (EmitInductor(), LOWERING),
    (EmitInductor(), {**LOWERING, **X86}),
    (MergeParallelLinears(), LOWERING | X86),
    (LinearsToConvolutions(), LOWERING | X86),
    (PackWeights(), LOWERING),
    (KeepFasterFloat(), {**LOWERING, **X86, "stage": Stage.QDQ}),
)


@pytest.fixture(autouse=True)
def _nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured would differ from run to run: times by what is called."""

    def seconds(gm: GraphModule, inputs: object) -> dict[str, float]:
        called = ((node.name, f"{node.target} {len(node.args)}") for node in gm.graph.nodes)
        return {name: 1e-6 * (zlib.crc32(what.encode()) % 11) for name, what in called}

    loops = LoopTimes(plain=1e-9, quantizing=2e-9, dequantizing=4e-9, rounding=3e-9)
    monkeypatch.setattr(regions, "measure_nodes", seconds)
    monkeypatch.setattr(keep_faster_float, "measure_loops", lambda: loops)


@functools.cache
def quantizer_of(name: str) -> Any:
    """The quantizer of a backend; with 7 bits where some CPUs have kernels for no more."""
    backend = get_backend(name)
    presets = {preset.name: preset for preset in backend.presets}
    quantizer: Any = backend.quantizer()
    return quantizer.set_global(presets.get("static-7-bit", presets["static"]).config())


MAKERS = {"backend": get_backend, "quantizer": quantizer_of}


def options(given: dict[str, Any], lot: int) -> dict[str, Any]:
    made = {key: MAKERS.get(key, lambda value: value)(value) for key, value in given.items()}
    return {**made, "max_steps": 8 if NIGHTLY else 4, "seed": SEED + lot}


each_pass = pytest.mark.parametrize(
    ("pass_", "given"),
    PASSES,
    ids=["-".join(str(x) for x in (p.name, *given.values())) for p, given in PASSES],
)
each_lot = pytest.mark.parametrize("lot", range(EXAMPLES // AT_ONCE))


@each_pass
@each_lot
def test_the_laws_hold(pass_: Pass, given: dict[str, Any], lot: int) -> None:
    # In a night there are enough; otherwise, a graph that is only float costs a third of the others.
    is_float = Stage.FLOAT in pass_.requires and not {"stage", "quantizer"} & given.keys()
    examples = AT_ONCE * 3 if is_float and not NIGHTLY else AT_ONCE
    laws.check(pass_, examples=examples, laws=CHEAP, **options(given, lot))


@each_pass
@each_lot
def test_the_laws_hold_that_cost_more(pass_: Pass, given: dict[str, Any], lot: int) -> None:
    laws.check(pass_, examples=max(1, AT_ONCE // 20), laws=laws.COSTLY, **options(given, lot))


# Packed weights are in a graph that writes in place, of which no value is known to be the one before.
PACKED_BESIDE_WRITES = Subject(
    Program((2, 3), (Step("gated"), Step("linear"), Step("in_place", option=1)), results=1, seed=0)
)

FOUND: tuple[tuple[Pass, Subject], ...] = (
    # What reads a folded convolution read the BatchNorm; a product of its elements multiplies roundings.
    (
        FoldBatchNorm(),
        Subject(
            Program(
                (1, 4, 5, 5),
                (
                    Step("reduce", 1, option=2),
                    Step("again", option=220),
                    Step("convolution"),
                    Step("reduce", 1),
                ),
                results=0,
                seed=52,
            )
        ),
    ),
    # Little is left of a folded bias, which is rounded as what it was computed of.
    (
        FoldConvBnQat(),
        Subject(
            Program((2, 3), (Step("block", option=1), Step("block")), results=0, seed=66, is_training=True)
        ),
    ),
    # What reads an alias may itself be read by nobody.
    (
        Normalize(),
        Subject(
            Program(
                (2, 2, 4, 4),
                (Step("convolution"), Step("in_place", option=1), *[Step("convolution", 1)] * 2),
            )
        ),
    ),
    # So may a write.
    (
        Normalize(),
        Subject(
            Program(
                (2, 3),
                (
                    *[Step("scalar")] * 2,
                    Step("in_place", 1, option=1),
                    Step("in_place", 2),
                    Step("scalar", 2),
                ),
            )
        ),
    ),
    # A folded weight that float32 takes to the other side of half a step.
    (
        FoldConvBnQat(),
        Subject(
            Program((2, 3), (Step("block", option=177),), seed=23, is_training=True), (Choices(weight=1),)
        ),
    ),
)
"""What ``make nightly`` found."""


@pytest.mark.parametrize(("pass_", "subject"), FOUND)
def test_what_was_found_is_mended(pass_: Pass, subject: Subject) -> None:
    assert check_on(subject, pass_)


def test_what_is_left_in_int8_is_measured_again() -> None:
    options = {key: MAKERS[key]("x86_inductor") for key in MAKERS}
    subject = Subject(Program((1,), (Step("again"), Step("linear"))))
    assert check_on(subject, KeepFasterFloat(), stage=Stage.QDQ, **options)


def test_packed_weights_are_not_looked_into() -> None:
    options = {key: MAKERS[key]("x86_inductor") for key in MAKERS}
    assert check_on(PACKED_BESIDE_WRITES, MergeParallelLinears(), **options)


def test_no_pass_is_forgotten() -> None:
    shipped = {name for name in pass_names() if _is_ours(name)}
    assert {pass_.name for pass_, _ in PASSES} == shipped


def test_each_pass_says_how_far_numbers_may_be_off() -> None:
    assert [pass_.name for pass_, _ in PASSES if not hasattr(type(pass_), "contract")] == []


def _is_ours(name: str) -> bool:
    from lowbit.passes import pass_class

    return pass_class(name).__module__.startswith("lowbit.")
