"""What passes do when only some of their rule applications are allowed: the graph still runs."""

from __future__ import annotations

from random import Random
from typing import Any

import attrs
import pytest
import torch
from lowbit.backends.registry import get_backend
from lowbit.errors import LowbitError
from lowbit.passes import Pass, PassContext, PassManager, Pipeline, PropagateBf16, pass_class
from lowbit.passes.instruments import Applications
from lowbit.tools.testing.generate import draw_subject
from lowbit.tools.testing.subjects import Subject, bring, place_of
from torch.fx import GraphModule

pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.LowbitWarning")

TRAINING = ("fuse-conv-bn-qat", "insert-fake-quantizers", "fold-conv-bn-qat")
LOWERING = ("emit-inductor", "pack-weights")
ASKING = (
    "normalize",
    "fold-batch-norm",
    "insert-observers",
    "observers-to-qdq",
    "duplicate-dequantize",
    "fold-quantize",
    "propagate-bf16",
    "reference-representation",
    *TRAINING,
    *LOWERING,
)
"""The passes that rewrite at many places."""
EXAMPLES = 12


def run(gm: GraphModule, pass_: Pass, context: PassContext, seen: Applications) -> GraphModule:
    return PassManager((seen,)).run(
        gm, Pipeline((pass_,)), attrs.evolve(context, ledger=context.ledger.copy(), gate=seen.allows)
    )


def results(gm: GraphModule, subject: Subject) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return list(gm(*subject.inputs[: len(gm.graph.find_nodes(op="placeholder"))]))


@pytest.mark.parametrize("name", ASKING)
def test_graphs_run_whatever_is_left_out(name: str) -> None:
    pass_ = pass_class(name)()
    is_training = name in TRAINING
    backend: Any = get_backend("x86_inductor") if name in LOWERING else None
    place = place_of(pass_, is_training=is_training, backend=backend)
    asked = 0
    for seed in range(EXAMPLES):
        subject = draw_subject(Random(f"{name} {seed}"), max_steps=5, is_training=is_training)
        context = subject.context(backend)
        try:
            gm = bring(subject, place, backend)
            everything = Applications()
            run(gm, pass_, context, everything)
        except LowbitError:
            continue  # refused, for a reason that the laws look into
        total = len(everything.applied)
        asked += total
        for limit in sorted({0, total // 2, total - 1} & set(range(total))):
            seen = Applications(limit)
            partial = run(gm, pass_, context, seen)
            assert seen.applied == everything.applied[:limit]
            got = results(partial, subject)
            if limit == 0 and not (is_training and name != "fuse-conv-bn-qat"):
                for one, other in zip(got, results(gm, subject), strict=True):
                    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert asked > 0


def test_once_denied_means_denied(tiny: GraphModule) -> None:
    seen = Applications(1)
    PassManager((seen,)).run(tiny, Pipeline((pass_class("normalize")(),)), PassContext(gate=seen.allows))
    assert len(seen.applied) == 1
    assert seen.denied


def test_an_application_says_where_it_was(tiny: GraphModule) -> None:
    seen = Applications()
    PassManager((seen,)).run(tiny, Pipeline((pass_class("normalize")(),)), PassContext(gate=seen.allows))
    first = seen.applied[0]
    assert (first.pass_name, first.rule, first.target) == (
        "normalize",
        "complete-arguments",
        "aten.conv2d.default",
    )
    assert first.module == "conv"
    assert "self.conv(x)" in first.source
    assert str(first).startswith(f"normalize: complete-arguments at %{first.node} = aten.conv2d.default %")


def test_nothing_is_asked_without_a_gate(tiny: GraphModule) -> None:
    assert all(PassContext().allows("anything", node) for node in tiny.graph.nodes)


def test_bfloat16_casts_back_what_is_left(tiny: GraphModule) -> None:
    seen = Applications(1)
    x = torch.randn(1, 3, 8, 8)
    pipeline = Pipeline((pass_class("normalize")(),))
    normal = PassManager().run(tiny, pipeline)
    partial = PassManager((seen,)).run(normal, Pipeline((PropagateBf16(),)), PassContext(gate=seen.allows))
    assert [application.rule for application in seen.applied] == ["change-dtype"]
    assert seen.denied
    assert partial(x).dtype is torch.float32


@pytest.fixture
def tiny() -> GraphModule:
    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.last = torch.nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.last(torch.relu_(y))

    return torch.export.export(Tiny().eval(), (torch.randn(1, 3, 8, 8),)).module()
