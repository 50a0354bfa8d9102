"""Operators in bodies of control flow are quantized as any other, each body by itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest
import torch
from lowbit import (
    convert_pt2e,
    decisions,
    explain,
    lower_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends.x86_inductor import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
    get_x86_inductor_linear_weight_only_config,
)
from lowbit.errors import NotCalibratedError, PassFailedError, UncalibratedBodyWarning, UnknownNameError
from lowbit.ir import aliasing
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.attributes import get_tensor, nested_graph_modules
from lowbit.ir.bodies import is_body
from lowbit.ir.clone import clone_graph_module
from lowbit.ir.close_bodies import close_bodies
from lowbit.ir.control_flow import bodies
from lowbit.ir.ledger import Decision
from lowbit.ir.open_bodies import open_bodies
from lowbit.ir.snapshot import take_snapshot
from lowbit.ir.stages import Stage, get_stage
from lowbit.ir.text import parse, to_tensors, to_text
from lowbit.passes import PassContext, PassManager, Pipeline
from lowbit.passes.contracts import Contract
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

aten = torch.ops.aten
# 7 bits, which the kernels take on every CPU.
CONFIG = get_default_x86_inductor_quantization_config(reduce_range=True)
EXPORTS = pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = random(3, 4)
STEPS = random(5, 3, 4, seed=1)


class Layers(nn.Module):
    """Some layers, and what the forward does with them."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            self.add_module(name, layer)
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, *inputs: Tensor) -> Any:
        return self.body(self, *inputs)


def branches(m: Any, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: m.norm(m.a(x)).relu(), m.b, (x,))


def cond() -> Layers:
    model = Layers(branches, a=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), b=nn.Linear(4, 4))
    model.get_submodule("norm").running_mean.normal_()
    return model.eval()


def cond_behind_linear() -> Layers:
    layers = {"a": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4), "b": nn.Linear(4, 4)}
    return Layers(lambda m, x: branches(m, m.a(x)), **layers).eval()


def step(m: Any, x: Tensor) -> Tensor:
    return m.a(x).relu()


def looped(m: Any, x: Tensor) -> Tensor:
    return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, step(m, y)), (torch.tensor(0), x))[1]


def scanned(m: Any, x: Tensor, steps: Tensor) -> Tensor:
    def combine(carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y = step(m, carry)
        return y + x, y.clone()

    return scan(combine, x, steps, dim=0)


def mapped(m: Any, steps: Tensor) -> Tensor:
    return map_over(lambda x: step(m, x), steps)


def by_hand_scanned(m: Any, x: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    results: list[Tensor] = []
    for one in steps:
        results.append(m(x))
        x = results[-1] + one
    return x, torch.stack(results)


LOOPS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], Callable[..., Any]]] = {
    "while_loop": (looped, (X,), lambda m, x: m(m(m(x)))),
    "scan": (scanned, (X, STEPS), by_hand_scanned),
    "map": (mapped, (STEPS,), lambda m, steps: torch.stack([m(x) for x in steps])),
}


def exported(model: nn.Module, *inputs: Tensor, strict: bool = False) -> GraphModule:
    gm = torch.export.export(model, inputs, strict=strict).module()
    assert isinstance(gm, GraphModule)
    return gm


def prepared(model: nn.Module, *inputs: Tensor, strict: bool = False, config: Any = CONFIG) -> GraphModule:
    return prepare_pt2e(exported(model, *inputs, strict=strict), X86InductorQuantizer().set_global(config))


def converted(model: nn.Module, *batches: tuple[Tensor, ...], strict: bool = False) -> GraphModule:
    """Calibrated with gradients on, as the tutorials do."""
    observed = prepared(model.eval(), *batches[0], strict=strict)
    for batch in batches:
        observed(*batch)
    return convert_pt2e(observed)


def equal(one: Any, other: Any) -> bool:
    return all(map(torch.equal, pytree.tree_leaves(one), pytree.tree_leaves(other)))


def quantizations(gm: GraphModule) -> list[tuple[Any, ...]]:
    """The literal parameters of all that is quantized, in bodies too."""
    graphs = [module.graph for module in (gm, *nested_graph_modules(gm))]
    found = [n for g in graphs for n in g.find_nodes(op="call_function", target=qd.QUANTIZE_PER_TENSOR)]
    return [node.args[1:] for node in found]


def decided(gm: GraphModule, body: str) -> dict[str, Decision]:
    """The decisions about a body, by the operator: "linear"."""
    inside = [d for d in decisions(gm) if d.node.rpartition(".")[0] == body]
    made = {d.target.removeprefix("aten.").split(".")[0]: d for d in inside}
    assert len(made) == len(inside)
    return made


def kernels(gm: GraphModule) -> list[str]:
    return [d.kernel for d in decisions(gm) if "." in d.node and d.status == "quantized"]


@pytest.fixture(scope="module")
def both_taken() -> GraphModule:
    return converted(cond(), (X.abs(),), (-X.abs(),))


# Against the same layers outside of control flow.


def test_each_branch_is_quantized_as_its_layers_are_outside(both_taken: GraphModule) -> None:
    model = cond()
    taken = Layers(lambda m, x: m.norm(m.a(x)).relu(), a=nn.Linear(4, 4), norm=nn.BatchNorm1d(4))
    other = Layers(lambda m, x: m.b(x), b=nn.Linear(4, 4))
    for alone in (taken, other):
        alone.load_state_dict(model.state_dict(), strict=False)
    apart = [converted(taken, (X.abs(),)), converted(other, (-X.abs(),))]
    assert quantizations(both_taken) == [q for gm in apart for q in quantizations(gm)]
    assert len(quantizations(both_taken)) == 2
    for gm in apart:
        for name, tensor in gm.state_dict().items():
            assert torch.equal(get_tensor(both_taken, name), tensor), name
    for x, alone in ((X.abs(), apart[0]), (-X.abs(), apart[1])):
        assert torch.equal(both_taken(x), alone(x))
        assert torch.equal(lower_pt2e(both_taken)(x), lower_pt2e(alone)(x))
        assert not torch.equal(both_taken(x), model(x))


@pytest.mark.usefixtures("linears_stay")
@EXPORTS
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_is_quantized_by_what_all_steps_saw(loop: str, strict: bool) -> None:
    body, inputs, by_hand = LOOPS[loop]
    model, alone = Layers(body, a=nn.Linear(4, 4)), Layers(step, a=nn.Linear(4, 4))
    gm = converted(model, inputs, strict=strict)
    observed = prepared(alone.eval(), X)
    by_hand(observed, *inputs)
    apart = convert_pt2e(observed)
    assert quantizations(gm) == quantizations(apart) != []
    assert equal(gm(*inputs), by_hand(apart, *inputs))
    lowered = lower_pt2e(gm)
    assert kernels(lowered) == ["onednn.qlinear_pointwise"] * 2
    assert equal(lowered(*inputs), by_hand(lower_pt2e(apart), *inputs))


def test_what_stands_around_is_quantized_as_before() -> None:
    model = cond_behind_linear()
    lowered = lower_pt2e(converted(model, (X,), (-X,), (5 * X,), (-5 * X,)))
    outside = {d.node: d.reason for d in decisions(lowered) if "." not in d.node and d.status == "quantized"}
    assert outside == {"linear": "linear"}
    assert len(kernels(lowered)) == 3


def test_batch_norm_in_a_branch_is_folded(both_taken: GraphModule) -> None:
    targets = {node.target for module in nested_graph_modules(both_taken) for node in module.graph.nodes}
    assert aten.batch_norm.default not in targets
    assert not any(name.startswith("norm") for name in both_taken.state_dict())
    assert both_taken.get_parameter("a.bias").shape == (4,)


def test_a_weight_read_in_a_body_and_outside_is_stored_once() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, m.a, lambda x: m.a(x) * 2, (m.a(x),))

    model = Layers(forward, a=nn.Linear(4, 4))
    gm = converted(model, (X,), (-X,))
    assert sorted(gm.state_dict()) == ["a.bias", "a.weight_int8", "a.weight_scale", "a.weight_zero_point"]
    low = [d.node.split(".")[0] for d in decisions(gm) if d.status == "quantized"]
    assert low == ["linear", "true_graph_0", "false_graph_0"]
    for x in (X, -X):
        assert (lower_pt2e(gm)(x) - model(x)).abs().max() < 0.5


@pytest.mark.usefixtures("linears_stay")
def test_a_branch_in_a_branch() -> None:
    def inner(m: Any, x: Tensor) -> Tensor:
        return torch.cond(x.max() > 2, m.a, m.b, (x,))

    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: inner(m, m.a(x)), torch.sin, (x,))

    model = Layers(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    batches = [X.abs(), -model.a(X.abs()).detach(), X.abs() / 50, -X.abs()]
    gm = converted(model, *((x,) for x in batches))
    lowered = lower_pt2e(gm)
    assert [body.name for body in bodies(gm)] == [
        *("true_graph_0", "true_graph_0.true_graph_0", "true_graph_0.false_graph_0", "false_graph_0"),
    ]
    for body in ("true_graph_0", "true_graph_0.true_graph_0", "true_graph_0.false_graph_0"):
        assert decided(lowered, body)["linear"].kernel == "onednn.qlinear_pointwise"
    assert decided(lowered, "false_graph_0")["sin"].status == "float"
    for x in batches:
        assert torch.allclose(lowered(x), gm(x), atol=1e-5)
        assert (gm(x) - model(x)).abs().max() < 0.5


# What stays float, and says so.


def test_a_branch_that_calibration_never_took_stays_float() -> None:
    model, x = cond(), -X.abs()
    with pytest.warns(UncalibratedBodyWarning, match=r"false_graph_0\.linear stay float"):
        gm = converted(model, (X.abs(),))
    left = decided(gm, "false_graph_0")
    assert {(d.status, d.reason) for d in left.values()} == {("float", "body-not-calibrated")}
    assert decided(gm, "true_graph_0")["linear"].status == "quantized"
    assert torch.equal(gm(x), model(x))
    assert torch.equal(lower_pt2e(gm)(x), model(x))
    assert not any("activation_post_process" in name for name, _ in gm.named_modules())


def test_a_model_that_saw_no_data_is_an_error_all_the_same() -> None:
    observed = prepared(cond_behind_linear(), X)
    with pytest.warns(UncalibratedBodyWarning), pytest.raises(NotCalibratedError):
        convert_pt2e(observed)


def test_what_decides_how_often_a_loop_runs_stays_float() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return while_loop(lambda y: m.a(y).sum() < 9, lambda y: (m.a(y).abs() + 1,), (x,))[0]

    gm = converted(Layers(forward, a=nn.Linear(4, 4)), (X.abs() / 9,))
    decision = decided(gm, "while_loop_cond_graph_0")["linear"]
    assert (decision.status, decision.reason) == ("float", "control-flow-body")
    assert decision.detail.endswith("it decides how often the loop runs")
    assert decided(gm, "while_loop_body_graph_0")["linear"].status == "quantized"
    # It reads the float weight; the loop an int8 one.
    assert {"a.weight", "a.weight_int8"} <= gm.state_dict().keys()


def test_a_body_that_two_calls_run_stays_float() -> None:
    gm = exported(cond(), X)
    (call,) = gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
    call.update_arg(2, call.args[1])
    gm.recompile()
    with pytest.warns(Warning, match="annotated no tensor"):
        observed = prepare_pt2e(gm, X86InductorQuantizer().set_global(CONFIG))
    made = decided(observed, "true_graph_0")
    assert {d.reason for d in made.values()} == {"control-flow-body"}
    assert "several places" in made["linear"].detail


def trained_beside_bodies(instruments: Any = ()) -> GraphModule:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, m.a, m.b, (m.c(x).detach(),))

    model = Layers(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4))
    qat = get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=True)
    quantizer = X86InductorQuantizer().set_global(qat)
    trained = prepare_qat_pt2e(exported(model.train(), X), quantizer, instruments=instruments)
    trained(X).sum().backward()
    return trained


def test_training_opens_no_body() -> None:
    class Open:
        seen: ClassVar[list[str]] = []

        def before(self, pass_: Any, graph: GraphModule) -> None: ...

        def after(self, pass_: Any, graph: GraphModule, change: Any) -> None:
            self.seen += [pass_.name for module in nested_graph_modules(graph) if is_body(module)]

    trained_beside_bodies([Open()])
    assert Open.seen == []


def test_what_the_user_detached_in_training_stays_detached() -> None:
    """Also where a pass goes into the bodies of what was prepared already."""
    trained = PassManager().run(trained_beside_bodies(), Pipeline((LookIntoBodies(),)))
    trained.zero_grad()
    trained(X).sum().backward()
    assert trained.get_parameter("b.weight").grad is not None
    assert trained.get_parameter("c.weight").grad is None


@attrs.frozen
class LookIntoBodies:
    """A pass that goes into bodies, and does nothing there."""

    name: ClassVar[str] = "look-into-bodies"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.OBSERVED})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract | None] = None
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        return False


def test_training_stays_out_of_bodies() -> None:
    trained = trained_beside_bodies()
    assert trained.get_parameter("b.weight").grad is not None
    assert trained.get_parameter("c.weight").grad is None
    gm = convert_pt2e(trained)
    for made in (trained, gm, lower_pt2e(gm)):
        inside = [d for d in decisions(made) if "." in d.node]
        assert [(d.status, d.reason) for d in inside] == [("float", "control-flow-body")] * 2
        assert "training" in inside[0].detail


def test_a_weight_that_is_computed_is_no_weight() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        operands = (m.a(x), m.a.weight * 2)
        return torch.cond(x.sum() > 0, lambda x, w: nn.functional.linear(x, w) + 0, torch.add, operands)

    observed = prepared(Layers(forward, a=nn.Linear(4, 4)).eval(), random(4, 4))
    assert decided(observed, "true_graph_0")["linear"].reason == "weight-not-constant"


# Settings.


@EXPORTS
def test_settings_are_about_bodies_too(strict: bool) -> None:
    quantizer = X86InductorQuantizer().set_global(CONFIG).set_module_name_qconfig("a", None)
    observed = prepare_pt2e(exported(cond(), X, strict=strict), quantizer)
    assert decided(observed, "true_graph_0")["linear"].reason == "not-configured"
    assert decided(observed, "false_graph_0")["linear"].status == "quantized"
    with pytest.raises(UnknownNameError, match="selects no operator"):
        prepare_pt2e(exported(cond(), X), X86InductorQuantizer().set_module_name_qconfig("c", CONFIG))


OTHER_MODES = {
    "dynamic": get_default_x86_inductor_quantization_config(is_dynamic=True, reduce_range=True),
    "fp16": get_x86_inductor_linear_dynamic_fp16_config(),
    "weight-only": get_x86_inductor_linear_weight_only_config(),
}


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_modes_without_calibration(mode: str) -> None:
    model = cond()
    gm = convert_pt2e(prepared(model, X, config=OTHER_MODES[mode]))
    for body in ("true_graph_0", "false_graph_0"):
        assert decided(gm, body)["linear"].status == "quantized"
    for x in (X.abs(), -X.abs()):
        assert (gm(x) - model(x)).abs().max() < 0.2
        assert torch.allclose(lower_pt2e(gm)(x), gm(x), atol=0.02)


# What leaves a verb.


def test_between_verbs_weights_are_where_the_checkpoint_has_them() -> None:
    model = cond()
    observed = prepared(model, X)
    assert {n for n in observed.state_dict() if "activation_post_process" not in n} == {
        *("a.weight", "a.bias", "b.weight", "b.bias"),
    }
    assert all(dict(module.named_parameters()) == {} for module in nested_graph_modules(observed))


def test_opening_and_closing_changes_nothing() -> None:
    gm = exported(cond(), X)
    copy = clone_graph_module(gm)
    assert open_bodies(copy)
    assert not open_bodies(copy)
    assert sorted(n for n, _ in copy.get_submodule("true_graph_0").named_parameters()) == [
        *("a.bias", "a.weight", "norm.bias", "norm.weight"),
    ]
    assert copy.graph.find_nodes(op="get_attr", target="a.weight") == []
    close_bodies(copy)
    for module in (copy, *nested_graph_modules(copy)):
        module.recompile()
    assert sorted(copy.state_dict()) == sorted(gm.state_dict())
    assert all(get_tensor(copy, name) is get_tensor(gm, name) for name in copy.state_dict())
    for x in (X.abs(), -X.abs()):
        assert torch.equal(copy(x), gm(x))


def call_in_another_way(call: Node) -> None:
    call.update_arg(3, (*call.args[3], call.args[3][0]))


def call_twice(call: Node) -> None:
    with call.graph.inserting_after(call):
        call.graph.call_function(call.target, call.args)


@pytest.mark.parametrize(
    ("change", "why"),
    [(call_in_another_way, "not called the way torch.export does"), (call_twice, "from several places")],
)
def test_a_body_that_a_pass_left_open_for_good_is_an_error(change: Callable[[Node], None], why: str) -> None:
    @attrs.frozen
    class Careless:
        name: ClassVar[str] = "careless"
        requires: ClassVar[frozenset[Stage]] = frozenset(Stage)
        ensures: ClassVar[Stage | None] = None
        contract: ClassVar[Contract | None] = None
        bodies: ClassVar[bool] = True

        def run(self, gm: GraphModule, context: PassContext) -> bool:
            calls = gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
            for call in calls:
                change(call)
            return bool(calls)

    with pytest.raises(PassFailedError, match=rf"body true_graph_0 cannot be closed: .*{why}"):
        PassManager(()).run(exported(cond(), X), Pipeline((Careless(),)))


def test_a_weight_of_both_branches_that_is_quantized_in_both_is_stored_once() -> None:
    def both(m: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: m.a(x).relu(), m.a, (x,))

    model = converted(Layers(both, a=nn.Linear(4, 4)).eval(), (X,), (-X,))
    assert sum(t.dtype is torch.int8 for t in model.state_dict().values()) == 1


def test_opening_looks_into_each_body_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each result may share memory with the weights before it, so that to ask of each weight is quadratic."""
    looked_into: list[Any] = []
    find_aliases = aliasing.find_aliases
    monkeypatch.setattr(
        aliasing, "find_aliases", lambda graph: (looked_into.append(graph), find_aliases(graph))[1]
    )

    def chain(m: Any, x: Tensor) -> Tensor:
        for layer in m.children():
            x = torch.cond(x.sum() > 0, layer, torch.sin, (x,))
        return x

    gm = exported(Layers(chain, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4)), X)
    assert open_bodies(gm)
    assert len(looked_into) == len(set(looked_into)) == len(list(bodies(gm))) == 6


@pytest.mark.usefixtures("linears_stay")
@EXPORTS
def test_the_decisions_of_a_body_say_where_they_are(strict: bool) -> None:
    lowered = lower_pt2e(converted(cond(), (X,), (-X,), strict=strict))
    made = decided(lowered, "true_graph_0")
    assert (made["linear"].module, made["linear"].reason) == ("a", "linear-relu")
    assert made["linear"].runs_at == "true_graph_0.qlinear_pointwise_default"
    assert "test_bodies.py" in made["linear"].source
    assert "true_graph_0.linear" in str(explain(lowered, "true_graph_0.linear"))


def test_the_text_form_of_each_stage(both_taken: GraphModule) -> None:
    for gm in (prepared(cond(), X), both_taken, lower_pt2e(both_taken, pack_weights=False)):
        back = parse(to_text(gm), to_tensors(gm))
        assert take_snapshot(back).digest == take_snapshot(gm).digest
        assert decisions(back) == decisions(gm)
        assert get_stage(back) is get_stage(gm)
        assert torch.equal(back(X), gm(X))


def test_a_converted_model_is_saved_loaded_and_lowered(both_taken: GraphModule) -> None:
    file = io.BytesIO()
    torch.export.save(torch.export.export(both_taken, (X,)), file)
    file.seek(0)
    back = torch.export.load(file).module()
    assert isinstance(back, GraphModule)
    assert get_stage(back) is Stage.QDQ
    lowered, wanted = lower_pt2e(back, "x86_inductor"), lower_pt2e(both_taken)
    assert sorted(filter(None, (d.kernel for d in decisions(lowered)))) == sorted(kernels(wanted))
    for x in (X.abs(), -X.abs()):
        assert torch.equal(back(x), both_taken(x))
        assert torch.equal(lowered(x), wanted(x))


def images(m: Any, x: Tensor) -> Tensor:
    y = torch.cond(x.sum() > 0, lambda x: m.l(m.c(x)), torch.sin, (x,))
    return while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, m.c(y).relu()), (torch.tensor(0), y))[1]


def test_a_lowered_model_compiles() -> None:
    x = random(2, 4, 4, 4)
    model = Layers(images, c=nn.Conv2d(4, 4, 3, padding=1), l=nn.Linear(4, 4))
    lowered = lower_pt2e(converted(model, (x.abs(),), (-x.abs(),)))
    assert len(kernels(lowered)) == 4
    compiled = torch.compile(lowered)
    for one in (x.abs(), -x.abs()):
        with torch.no_grad():
            assert torch.allclose(compiled(one), lowered(one), atol=1e-4)


class Gate(nn.Module):
    """``layers`` in a branch."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def branch(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        y = first(x)
        for layer in others:
            y = layer(y + first(x).relu())
        return y

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.branch, lambda x: x * 2, (x,))


@pytest.mark.parametrize(
    ("layers", "shape", "count"),
    [
        ((nn.Conv1d(4, 4, 3, padding=1),), (2, 4, 6), 0),
        ((nn.Conv3d(4, 4, 3, padding=1),), (2, 4, 4, 4, 4), 1),
        ((nn.Linear(4, 4), nn.Linear(4, 4)), (2, 4), 4),
    ],
    ids=["conv1d", "conv3d", "sum"],
)
def test_what_is_lowered_in_a_branch_compiles(
    layers: tuple[nn.Module, ...], shape: tuple[int, ...], count: int
) -> None:
    x = random(*shape).abs()
    lowered = lower_pt2e(converted(Gate(*layers), (x,), (-x,)))
    assert len(kernels(lowered)) == count
    with torch.no_grad():
        assert torch.allclose(torch.compile(lowered)(x), lowered(x), atol=1e-4)


def test_numeric_verification_goes_through_bodies() -> None:
    observed = prepare_pt2e(
        exported(cond(), X), X86InductorQuantizer().set_global(CONFIG), verify="numeric", example_inputs=(X,)
    )
    observed(X), observed(-X)
    gm = convert_pt2e(observed, verify="numeric", example_inputs=(X,))
    lower_pt2e(gm, verify="numeric", example_inputs=(X,))


def test_the_reference_form_of_bodies() -> None:
    observed = prepared(cond(), X)
    observed(X), observed(-X)
    wanted = convert_pt2e(observed)
    reference = convert_pt2e(observed, use_reference_representation=True)
    assert get_stage(reference) is Stage.REFERENCE
    assert quantizations(reference) == []
    for x in (X, -X):
        assert torch.allclose(reference(x), wanted(x), atol=1e-5)
