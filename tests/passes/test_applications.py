"""What passes do when only some of their rule applications are allowed: the graph still runs."""

from __future__ import annotations

from random import Random

import attrs
import pytest
import torch
from lowbit import X86InductorQuantizer, calibrate, convert_pt2e, lower_pt2e, prepare_pt2e
from lowbit.backends.registry import get_backend
from lowbit.backends.x86_inductor import get_default_x86_inductor_quantization_config
from lowbit.errors import LowbitError
from lowbit.passes import Pass, PassContext, PassManager, Pipeline, PropagateBf16, pass_class
from lowbit.passes.instruments import Applications
from lowbit.tools.testing.generate import draw_subject
from lowbit.tools.testing.subjects import bring, place_of
from torch.fx import GraphModule

pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.LowbitWarning")

TRAINING = ("fuse-conv-bn-qat", "insert-fake-quantizers", "fold-conv-bn-qat")
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
)
"""The passes that rewrite at many places, but for those that lower."""
ENOUGH = 6
"""Applications of a pass."""


def run(gm: GraphModule, pass_: Pass, context: PassContext, seen: Applications) -> GraphModule:
    return PassManager((seen,)).run(
        gm, Pipeline((pass_,)), attrs.evolve(context, ledger=context.ledger.copy(), gate=seen.allows)
    )


def results(gm: GraphModule, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        got = gm(*inputs[: len(gm.graph.find_nodes(op="placeholder"))])
    return [got] if isinstance(got, torch.Tensor) else list(got)


@pytest.mark.parametrize("name", ASKING)
def test_graphs_run_whatever_is_left_out(name: str) -> None:
    pass_ = pass_class(name)()
    is_training = name in TRAINING
    place = place_of(pass_, is_training=is_training, backend=None)
    asked = seed = 0
    while asked < ENOUGH:
        seed += 1
        assert seed < 200
        subject = draw_subject(Random(f"{name} {seed}"), max_steps=5, is_training=is_training)
        context = subject.context()
        try:
            gm, _ = bring(subject, place)
            everything = Applications()
            run(gm, pass_, context, everything)
        except LowbitError:
            continue  # refused, for a reason that the laws look into
        asked += len(everything.applied)
        keeps_values = not is_training or name == "fuse-conv-bn-qat"
        check_limits(gm, pass_, context, everything, subject.inputs, keeps_values=keeps_values)


def test_graphs_run_whatever_is_not_lowered(tiny: GraphModule) -> None:
    backend = get_backend("x86_inductor")
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(tiny, X86InductorQuantizer().set_global(config))
    x = torch.randn(1, 3, 8, 8)
    converted = convert_pt2e(calibrate(prepared, [x], progress=False))
    lowered = lower_pt2e(converted, pack_weights=False)
    context = PassContext(patterns=backend.patterns)
    for name, gm in (("emit-inductor", converted), ("pack-weights", lowered)):
        everything = Applications()
        pass_ = pass_class(name)()
        run(gm, pass_, context, everything)
        assert len(everything.applied) == 2
        check_limits(gm, pass_, context, everything, (x,), keeps_values=True)


def check_limits(
    gm: GraphModule,
    pass_: Pass,
    context: PassContext,
    everything: Applications,
    inputs: tuple[torch.Tensor, ...],
    *,
    keeps_values: bool,
) -> None:
    """With some of the applications the graph runs; with none of them it computes what it did."""
    total = len(everything.applied)
    for limit in sorted({0, total // 2, total - 1} & set(range(total))):
        seen = Applications(limit)
        partial = run(gm, pass_, context, seen)
        assert seen.applied == everything.applied[:limit]
        got = results(partial, inputs)
        if limit == 0 and keeps_values:
            for one, other in zip(got, results(gm, inputs), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


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


class Narrowed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.narrow(dim=1, start=1, length=2).multiply(2).mT


def test_what_is_denied_is_not_done() -> None:
    """Also a rewrite that keeps every value, and so does not show in the results."""
    exported = torch.export.export(Narrowed(), (torch.randn(2, 3, 4),)).module()
    targets = [node.target for node in exported.graph.nodes]
    seen = Applications(limit=0)
    result = run(exported, pass_class("normalize")(), PassContext(gate=seen.allows), seen)
    assert [node.target for node in result.graph.nodes if node.op == "call_function"] == [
        target for target in targets if not isinstance(target, str)
    ]
    everything = Applications()
    run(exported, pass_class("normalize")(), PassContext(gate=everything.allows), everything)
    assert [each.rule for each in everything.applied].count("canonical-operator") == 3
