"""``propagate-bf16`` in bodies of control flow: the rules of a model, between operands and results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowbit
import pytest
import torch
from lowbit.backends import get_backend
from lowbit.backends.x86_inductor import X86InductorQuantizer, get_default_x86_inductor_quantization_config
from lowbit.ir.control_flow import bodies
from lowbit.ir.meta import KERNEL_KEY
from lowbit.passes import Normalize, PassContext, PassManager, Pipeline, PropagateBf16
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.fx import GraphModule, Node

aten = torch.ops.aten
PIPELINE = Pipeline((Normalize(), PropagateBf16()))
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


class Layers(nn.Module):
    """Two linears, and what the forward does with them."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.body = nn.Linear(4, 4), nn.Linear(4, 4), forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.body(self, *inputs)


def branches(m: Any, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda y: m.b(y).relu(), lambda y: m.a(y) - 1, (m.a(x),))


def nested(m: Any, x: Tensor) -> Tensor:
    def inner(y: Tensor) -> Tensor:
        return torch.cond(y.mean() > 0, m.b, lambda y: m.b(-y), (y,))

    return torch.cond(x.sum() > 0, inner, m.a, (x,))


def looped(m: Any, x: Tensor) -> Tensor:
    return while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, m.a(y).tanh()), (torch.tensor(0), x))[1]


def scanned(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    def combine(carry: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        y = m.a(carry).tanh()
        return y + step, y.clone()

    return scan(combine, x, torch.stack([x, 2 * x, x - 1]), dim=0)


def mapped(m: Any, x: Tensor) -> Tensor:
    return map_over(lambda row: m.a(row).relu(), x)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
MODELS = (branches, nested, looped, scanned, mapped)


def floats(model: nn.Module) -> GraphModule:
    return torch.export.export(model.eval(), (X,)).module()  # pyright: ignore[reportReturnType]


def dtype(node: Node) -> torch.dtype:
    return node.meta["val"].dtype


def leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


@pytest.mark.parametrize("forward", MODELS, ids=lambda forward: forward.__name__)
def test_products_in_bodies_compute_in_bfloat16(forward: Callable[..., Any]) -> None:
    gm, context = floats(Layers(forward)), PassContext()
    new = PassManager().run(gm, PIPELINE, context)
    inside = [body.module for body in bodies(new)]
    linears = [n for m in inside for n in m.graph.find_nodes(op="call_function", target=aten.linear.default)]
    assert linears
    assert all(dtype(node) is BFLOAT16 for node in linears)
    assert all({dtype(read) for read in node.all_input_nodes} == {BFLOAT16} for node in linears)
    # Weights were cast when the pass ran, and not at each step.
    for module, body in zip(inside, bodies(PassManager().run(gm, Pipeline((Normalize(),)))), strict=True):
        for new_output, old in zip(
            module.graph.output_node().all_input_nodes,
            body.module.graph.output_node().all_input_nodes,
            strict=True,
        ):
            assert dtype(new_output) is dtype(old)
        casts = module.graph.find_nodes(op="call_function", target=aten.to.dtype)
        assert not [n for n in casts if "weight" in n.all_input_nodes[0].name]
    assert {name.removesuffix("_bfloat16") for name in read(new)} == read(gm)
    assert all(name.endswith("_bfloat16") for name in read(new))
    assert not {name for name in gm.state_dict() if name in read(gm)} & set(new.state_dict())
    assert not [d for d in context.ledger.decisions if d.reason == "stays-float32"]
    with torch.no_grad():
        for x in (X, X.abs(), -X.abs()):
            for wanted, found in zip(leaves(gm(x)), leaves(new(x)), strict=True):
                assert found.dtype is FLOAT32
                assert not torch.equal(wanted, found)
                torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)


def read(gm: GraphModule) -> set[str]:
    """The tensors that ``gm`` reads, for its bodies too."""
    names = {str(node.target) for node in gm.graph.find_nodes(op="get_attr") if node.users}
    return {name for name in names if name[:2] in ("a.", "b.")}


def calls(gm: GraphModule) -> list[list[object]]:
    """What ``gm`` and its bodies call, in order: names of weights that are handed in change in closing."""
    graphs = (gm.graph, *(body.module.graph for body in bodies(gm)))
    return [[n.target for n in g.nodes if n.op == "call_function"] for g in graphs]


@pytest.mark.parametrize("forward", MODELS, ids=lambda forward: forward.__name__)
def test_running_it_again_changes_nothing(forward: Callable[..., Any]) -> None:
    once = PassManager().run(floats(Layers(forward)), PIPELINE)
    twice = PassManager().run(once, Pipeline((PropagateBf16(),)))
    assert calls(once) == calls(twice)
    assert read(once) == read(twice)


@pytest.mark.parametrize("forward", MODELS, ids=lambda forward: forward.__name__)
def test_the_result_can_be_exported_and_checked_in_float64(forward: Callable[..., Any]) -> None:
    gm = floats(Layers(forward))
    numeric = lowbit.passes.instruments.VerifyNumeric((X,))
    new = PassManager((numeric,)).run(gm, PIPELINE)
    again = torch.export.export(new, (X,)).module()
    with torch.no_grad():
        for wanted, found in zip(leaves(new(X)), leaves(again(X)), strict=True):
            assert torch.equal(wanted, found)


def test_a_body_that_is_run_from_several_places_is_left() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, m.a, m.b, (x,))

    gm = floats(Layers(forward))
    (call,) = gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
    call.update_arg(2, call.args[1])
    gm.recompile()
    context = PassContext()
    new = PassManager().run(gm, Pipeline((PropagateBf16(),)), context)
    assert [(d.node, d.reason) for d in context.ledger.decisions] == [("cond", "stays-float32")]
    assert torch.equal(new(X), gm(X))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_gives_the_bits_of_autocast(sign: int) -> None:
    model = Layers(branches).eval()
    new, x = PassManager().run(floats(model), PIPELINE), sign * X.abs()
    with torch.no_grad():
        found = new(x)
        with torch.autocast("cpu", dtype=BFLOAT16):
            y = model.a(x)
            wanted = model.b(y).relu() if sign > 0 else model.a(y) - 1
    assert torch.equal(found, wanted.float())


def test_outputs_in_bfloat16_are_those_of_the_model_alone() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.cond(x.sum() > 0, m.b, m.a, (x,))
        return m.a(inside), inside

    pipeline = Pipeline((Normalize(), PropagateBf16(keep_output_dtype=False)))
    new = PassManager().run(floats(Layers(forward)), pipeline)
    assert [dtype(node) for node in new.graph.output_node().all_input_nodes] == [BFLOAT16, FLOAT32]
    for body in bodies(new):
        assert body.module.graph.find_nodes(op="call_function", target=aten.to.dtype)
        assert {dtype(node) for node in body.module.graph.output_node().all_input_nodes} == {FLOAT32}
    with torch.no_grad():
        assert [value.dtype for value in new(X)] == [BFLOAT16, FLOAT32]


def test_a_condition_without_products_is_nothing_to_speak_of() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        start = (torch.tensor(0), x)
        return while_loop(lambda i, y: (i < 3) & (y.abs().max() > 1e-6), lambda i, y: (i + 1, m.a(y)), start)[
            1
        ]

    context = PassContext()
    PassManager().run(floats(Layers(forward)), PIPELINE, context)
    assert not context.ledger.decisions


def test_products_in_a_condition_stay_and_that_is_said() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        start = (torch.tensor(0), x)
        return while_loop(lambda i, y: i < 3 + m.b(y).sum().sign(), lambda i, y: (i + 1, m.a(y)), start)[1]

    context = PassContext()
    new = PassManager().run(floats(Layers(forward)), PIPELINE, context)
    condition, body = (
        each.module.graph.find_nodes(op="call_function", target=aten.linear.default) for each in bodies(new)
    )
    assert [dtype(node) for node in (*condition, *body)] == [FLOAT32, BFLOAT16]
    assert [(d.node, d.reason) for d in context.ledger.decisions] == [("while_loop", "stays-float32")]


def test_what_is_quantized_in_a_body_gives_bfloat16() -> None:
    gm = floats(Layers(branches))
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = lowbit.prepare_pt2e(gm, X86InductorQuantizer().set_global(config))
    with torch.no_grad():
        for x in (X.abs(), -X.abs()):
            prepared(x)
        pipeline = get_backend("x86_inductor").lower
        assert pipeline is not None
        converted = lowbit.convert_pt2e(prepared)
        plain = lowbit.lower_pt2e(converted)
        lowered = lowbit.lower_pt2e(converted, pipeline=pipeline.before("emit-inductor", PropagateBf16()))
        kernels = [
            node for body in bodies(lowered) for node in body.module.graph.nodes if KERNEL_KEY in node.meta
        ]
        assert len(kernels) == 2
        assert {dtype(node) for node in kernels} == {BFLOAT16}
        for x in (X.abs(), -X.abs()):
            torch.testing.assert_close(lowered(x), plain(x), rtol=0.03, atol=0.03)
