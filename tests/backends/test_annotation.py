"""Annotation from operator patterns: which operators, which edges, and what is told of the rest."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    Pipeline,
    QuantizationAnnotation,
    QuantizationConfig,
    QuantizationSpec,
    SharedQuantizationSpec,
    X86InductorQuantizer,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.annotation import annotate_patterns
from lowbit.backends.x86_inductor.patterns import PATTERNS
from lowbit.errors import NothingQuantizedWarning
from lowbit.ir.annotation import ANNOTATION_KEY, get_annotation, set_annotation
from lowbit.ir.ledger import Ledger
from lowbit.passes import Normalize, PassManager
from torch import Tensor, nn
from torch.fx import GraphModule, Node

CONFIG = get_default_x86_inductor_quantization_config()
ACTIVATION, WEIGHT = CONFIG.input_activation, CONFIG.weight


def canonical(model: nn.Module, *inputs: Tensor, strict: bool = False, **options: object) -> GraphModule:
    exported = torch.export.export(model.eval(), inputs, strict=strict, **options).module()
    assert isinstance(exported, GraphModule)
    return PassManager().run(exported, Pipeline((Normalize(),)))


@attrs.frozen
class Annotated:
    model: GraphModule
    ledger: Ledger

    def __getitem__(self, name: str) -> QuantizationAnnotation:
        annotation = get_annotation(self.node(name))
        assert annotation is not None
        return annotation

    def node(self, name: str) -> Node:
        return next(node for node in self.model.graph.nodes if node.name == name)

    def inputs(self, name: str) -> dict[str, object]:
        """The specs of the input edges of a node, by the names of the producers."""
        return {node.name: spec for node, spec in self[name].input_qspec_map.items()}

    def reasons(self) -> dict[str, str]:
        """Node → operator pattern, or the reason in brackets."""
        return {
            d.node: d.reason if d.status == "quantized" else f"({d.reason})" for d in self.ledger.decisions
        }


def annotate(
    model: nn.Module,
    *inputs: Tensor,
    config_of: Callable[[tuple[Node, ...]], QuantizationConfig | None] = lambda nodes: CONFIG,
    **options: object,
) -> Annotated:
    gm, ledger = canonical(model, *inputs, **options), Ledger()
    annotate_patterns(gm.graph, PATTERNS, config_of, ledger)
    return Annotated(gm, ledger)


class Model(nn.Module):
    """Layers to write small models with; ``body`` is the forward."""

    def __init__(self, body: Callable[..., object]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)
        self.body = body

    def forward(self, *inputs: Tensor) -> object:
        return self.body(self, *inputs)


X = torch.zeros(2, 4, 6, 6)


# Operators that compute.


def test_specs_go_to_the_edges_of_their_role() -> None:
    found = annotate(Model(lambda m, x: F.relu(m.a(x) + x)), X)
    assert found.inputs("conv2d") == {"inputs_0": ACTIVATION, "a_weight": WEIGHT}
    assert found.inputs("add") == {"inputs_0": ACTIVATION}
    assert found.inputs("relu") == {}
    for name in ("conv2d", "add", "relu"):
        assert found[name].output_qspec is None
        assert found[name]._annotated
    assert found.reasons() == dict.fromkeys(("conv2d", "add", "relu"), "conv2d-add-relu")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda m, x: m.a(x), {"conv2d": "conv2d"}),
        (lambda m, x: F.relu(m.a(x)), {"conv2d": "conv2d-relu", "relu": "conv2d-relu"}),
        (lambda m, x: m.a(x).relu_(), {"conv2d": "conv2d-relu", "relu_": "conv2d-relu"}),
        (lambda m, x: x + m.a(x), {"conv2d": "conv2d-add", "add": "conv2d-add"}),
        (lambda m, x: m.linear(x), {"linear": "linear"}),
        (lambda m, x: m.relu(m.linear(x)), {"linear": "linear-relu", "relu_": "linear-relu"}),
    ],
)
def test_the_largest_pattern_wins(body: Callable[..., object], expected: dict[str, str]) -> None:
    assert annotate(Model(body), X).reasons() == expected


def test_of_two_convolutions_added_the_first_takes_the_addition() -> None:
    found = annotate(Model(lambda m, x: m.a(x) + m.b(x)), X)
    assert found.reasons() == {"conv2d": "conv2d-add", "add": "conv2d-add", "conv2d_1": "conv2d"}
    assert found.inputs("add") == {"conv2d_1": ACTIVATION}


def test_a_convolution_read_twice_keeps_its_float_output() -> None:
    found = annotate(Model(lambda m, x: (F.relu(y := m.a(x)), y)), X)
    assert found.reasons() == {"conv2d": "conv2d", "relu": "(second-user)"}
    found = annotate(Model(lambda m, x: (y := m.a(x)) + y), X)
    assert found.reasons()["conv2d"] == "conv2d"
    assert found.reasons()["add"].startswith("(")


# Everything that is the same operator is treated alike, however it is written.


class Conv2dOfMyOwn(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 1


class NoGrad(Model):
    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> object:
        return self.body(self, *inputs)


def conv_relu_functional(m: Model, x: Tensor) -> Tensor:
    return torch.relu(F.conv2d(x, m.a.weight, m.a.bias, padding=1))


def conv_relu_keywords(m: Model, x: Tensor) -> Tensor:
    return F.relu(F.conv2d(input=x, weight=m.a.weight, bias=m.a.bias, stride=1, padding=1), inplace=True)


def conv_relu_same_padding(m: Model, x: Tensor) -> Tensor:
    return torch.conv2d(x, m.a.weight, m.a.bias, padding="same").clamp_(min=0).relu()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        Model(lambda m, x: m.relu(m.a(x))),
        Model(conv_relu_functional),
        Model(conv_relu_keywords),
        NoGrad(lambda m, x: m.relu(m.a(x))),
        nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU()),
    ],
    ids=["modules", "functions", "keywords", "no_grad", "sequential"],
)
def test_every_way_to_write_a_convolution_with_relu(model: nn.Module, strict: bool) -> None:
    reasons = annotate(model, X, strict=strict).reasons()
    assert len(reasons) == 2
    assert set(reasons.values()) == {"conv2d-relu"}


def test_subclasses_and_padding_modes() -> None:
    model = nn.Sequential(Conv2dOfMyOwn(4, 4, 3), nn.Conv2d(4, 4, 3, padding="same", padding_mode="zeros"))
    reasons = annotate(model, X).reasons()
    assert reasons == {"conv2d": "conv2d", "mul": "(no-pattern)", "conv2d_1": "conv2d"}
    reasons = annotate(Model(conv_relu_same_padding), X).reasons()
    assert reasons["conv2d"] == "conv2d"
    assert reasons["clamp_"] == "(no-pattern)"


def test_modules_called_twice() -> None:
    found = annotate(Model(lambda m, x: m.relu(m.a(m.relu(m.a(x)))) + m.relu(m.b(x))), X)
    names = {"conv2d", "relu_", "conv2d_1", "relu__1", "conv2d_2", "relu__2"}
    assert {n for n, reason in found.reasons().items() if reason == "conv2d-relu"} == names
    # One tensor, so one spec, however many convolutions read it.
    assert found.inputs("conv2d")["a_weight"] is found.inputs("conv2d_1")["a_weight"] is WEIGHT


def test_tied_weights() -> None:
    model = Model(lambda m, x: m.b(m.a(x)))
    model.b.weight = model.a.weight
    found = annotate(model, X)
    assert found.reasons() == {"conv2d": "conv2d", "conv2d_1": "conv2d"}


# Guards.


def test_weights_that_are_computed_are_left_alone() -> None:
    found = annotate(Model(lambda m, x: F.relu(F.conv2d(x, m.a.weight * 2, m.a.bias))), X)
    reasons = found.reasons()
    assert reasons["conv2d"] == reasons["relu"] == "(weight-not-constant)"
    assert get_annotation(found.node("conv2d")) is None


def test_weights_that_are_written_to_are_left_alone() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.zeros(4, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(x, self.weight)
            self.weight.add_(1)
            return y

    assert annotate(Writes(), X).reasons()["conv2d"] == "(weight-not-constant)"


@pytest.mark.parametrize(
    ("addition", "reason"),
    [
        (lambda y, x: y + 1, "(not-a-node)"),
        (lambda y, x: 1 + y, "(not-a-node)"),
        (lambda y, x: y + x[:1], "(operands-broadcast)"),
        (lambda y, x: x[:, :, :1, :1] + y, "(operands-broadcast)"),
        (lambda y, x: y + x[0, 0, 0, 0], "(operands-broadcast)"),
        (lambda y, x: torch.add(y, x, alpha=2), "(different-literal)"),
        (lambda y, x: y + x.double(), "(activation-not-float32)"),
        (lambda y, x: y + x.long(), "(activation-not-float32)"),
    ],
    ids=["scalar", "scalar left", "batch", "image", "tensor of no dims", "alpha", "float64", "int64"],
)
def test_additions_that_are_no_residuals(addition: Callable[..., Tensor], reason: str) -> None:
    found = annotate(Model(lambda m, x: addition(m.a(x), x)), X)
    reasons = found.reasons()
    assert reasons["add"] == reason
    assert reasons["conv2d"] == "conv2d"
    assert get_annotation(found.node("add")) is None


def test_broadcasting_over_sizes_known_at_run_time_only() -> None:
    dim = torch.export.Dim.DYNAMIC
    same = annotate(Model(lambda m, x: m.a(x) + x), X, dynamic_shapes={"inputs": ({0: dim, 2: dim},)})
    assert same.reasons()["add"] == "conv2d-add"


def test_integers_are_left_alone() -> None:
    found = annotate(
        Model(lambda m, x, i: (m.a(x), i + i, torch.cat([i, i]))), X, torch.zeros(2, dtype=torch.int64)
    )
    assert found.reasons() == {"conv2d": "conv2d", "cat": "(float-input)"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_left_alone(dtype: torch.dtype) -> None:
    found = annotate(Model(lambda m, x: m.b(F.max_pool2d(m.a(x), 1))).to(dtype), X.to(dtype))
    assert set(found.reasons().values()) == {"(activation-not-float32)", "(float-input)"}


def test_bfloat16_is_quantized_like_float32() -> None:
    model = Model(lambda m, x: m.b(F.max_pool2d(m.a(x), 1))).bfloat16()
    assert list(annotate(model, X.bfloat16()).reasons().values()) == ["conv2d", "conv2d", "max_pool2d"]


def test_images_without_a_batch_are_left_alone() -> None:
    assert annotate(Model(lambda m, x: m.a(x)), X[0]).reasons() == {"conv2d": "(not-4-dimensional)"}


def test_configuration_by_operator() -> None:
    def only_linear(nodes: tuple[Node, ...]) -> QuantizationConfig | None:
        return CONFIG if nodes[0].target is torch.ops.aten.linear.default else None

    found = annotate(Model(lambda m, x: F.relu(m.linear(m.a(x)))), X, config_of=only_linear)
    assert found.reasons() == {
        "conv2d": "(not-configured)",
        "linear": "linear-relu",
        "relu": "linear-relu",
    }


def test_a_role_without_spec_is_left_float() -> None:
    weights_only = attrs.evolve(CONFIG, input_activation=None)
    found = annotate(Model(lambda m, x: m.linear(m.a(x))), X, config_of=lambda nodes: weights_only)
    assert found.inputs("linear") == {"linear_weight": WEIGHT}
    assert found.reasons() == {"conv2d": "(static-only)", "linear": "linear-weight-only"}


def test_what_another_quantizer_claimed_is_left_alone() -> None:
    gm, ledger = canonical(Model(lambda m, x: F.relu(m.b(F.relu(m.a(x))))), X), Ledger()
    first = gm.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)[0]
    set_annotation(first, QuantizationAnnotation(_annotated=True))
    annotate_patterns(gm.graph, PATTERNS, lambda nodes: CONFIG, ledger)
    found = Annotated(gm, ledger)
    assert found.inputs("conv2d") == {}
    assert found.reasons()["relu"] == "(overlap)"
    assert found.reasons()["conv2d_1"] == "conv2d-relu"


# Operators that move values.


def test_followers_share_one_scale_throughout() -> None:
    found = annotate(Model(lambda m, x: m.b(F.max_pool2d(m.a(x), 2))), X)
    conv, pool = found.node("conv2d"), found.node("max_pool2d")
    assert found["max_pool2d"].input_qspec_map == {conv: ACTIVATION}
    assert found["max_pool2d"].output_qspec == SharedQuantizationSpec((conv, pool))


def test_cat_shares_with_its_first_input() -> None:
    found = annotate(Model(lambda m, x: m.b(torch.cat([m.a(x), x, m.a(x)], 3))), X)
    first, cat = found.node("conv2d"), found.node("cat")
    shared = SharedQuantizationSpec((first, cat))
    assert found.inputs("cat") == {"conv2d": ACTIVATION, "inputs_0": shared, "conv2d_1": shared}
    assert found["cat"].output_qspec == shared


def chain(m: Model, x: Tensor) -> Tensor:
    y = F.max_pool2d(m.a(x), 1)
    y = F.avg_pool2d(y, 1)
    y = F.adaptive_avg_pool2d(y, (6, 6))
    return m.linear(torch.flatten(y, 1, 2))


def test_a_chain_of_followers_takes_the_spec_of_who_reads_its_end() -> None:
    found = annotate(Model(chain), X)
    names = ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "flatten"]
    assert [found.reasons()[name] for name in names] == names
    for name in names:
        (spec,) = found.inputs(name).values()
        assert spec is ACTIVATION


@pytest.mark.parametrize(
    ("body", "follower", "reason"),
    [
        (lambda m, x: F.max_pool2d(m.a(x), 2), "max_pool2d", "no-low-precision-reader"),
        (lambda m, x: F.gelu(F.max_pool2d(m.a(x), 2)), "max_pool2d", "no-low-precision-reader"),
        (lambda m, x: m.a(F.max_pool2d(x, 2)), "max_pool2d", "float-input"),
        (lambda m, x: m.a(F.max_pool2d(F.gelu(x), 2)), "max_pool2d", "float-input"),
        (lambda m, x: m.b(torch.cat([m.a(x), F.gelu(x)], 2)), "cat", "float-input"),
    ],
    ids=["returned", "float reader", "float input", "float producer", "one float producer"],
)
def test_followers_run_in_int8_only_between_others(
    body: Callable[..., object], follower: str, reason: str
) -> None:
    found = annotate(Model(body), X)
    assert found.reasons()[follower] == f"({reason})"
    assert ANNOTATION_KEY not in found.node(follower).meta


def test_a_follower_behind_a_float_one_is_float_too() -> None:
    found = annotate(Model(lambda m, x: m.b(F.max_pool2d(F.avg_pool2d(F.gelu(x), 1), 1))), X)
    assert found.reasons()["avg_pool2d"] == "(float-input)"
    assert found.reasons()["max_pool2d"] == "(float-input)"


def test_a_follower_whose_input_is_read_in_int8_elsewhere_follows() -> None:
    found = annotate(Model(lambda m, x: (m.a(x), m.b(F.max_pool2d(x, 2)))), X)
    assert found.reasons()["max_pool2d"] == "max_pool2d"


def test_a_reader_of_each_precision() -> None:
    found = annotate(Model(lambda m, x: (m.b(y := F.max_pool2d(m.a(x), 1)), F.gelu(y))), X)
    assert found.reasons()["max_pool2d"] == "max_pool2d"


def test_what_returns_several_tensors_shares_one_scale_among_them() -> None:
    found = annotate(Model(lambda m, x: [m.b(part) for part in m.a(x).split([1, 1], 0)]), X)
    conv, split = found.node("conv2d"), found.node("split_with_sizes")
    shared = SharedQuantizationSpec((conv, split))
    assert found.inputs("split_with_sizes") == {"conv2d": ACTIVATION}
    assert found["split_with_sizes"].output_qspec is None
    for name in ("getitem", "getitem_1"):
        assert (found[name].input_qspec_map, found[name].output_qspec) == ({}, shared)
        assert found.reasons()[name] == "split_with_sizes"


def test_of_several_results_one_wanted_is_enough() -> None:
    found = annotate(Model(lambda m, x: (m.b((y := m.a(x).chunk(2))[0]), F.gelu(y[1]))), X)
    assert [found.reasons()[name] for name in ("chunk", "getitem", "getitem_1")] == ["chunk"] * 3
    found = annotate(Model(lambda m, x: m.a(x).chunk(2)), X)
    assert {found.reasons()[name] for name in ("chunk", "getitem", "getitem_1")} == {
        "(no-low-precision-reader)"
    }


def test_sizes_are_no_tensors_to_wait_for() -> None:
    dim = torch.export.Dim.DYNAMIC
    model = Model(lambda m, x: m.linear(m.a(x).reshape(x.shape[0], -1, 6)))
    found = annotate(model, X, dynamic_shapes={"inputs": ({0: dim},)})
    assert len(found.node("reshape").all_input_nodes) == 2
    assert found.reasons()["reshape"] == "reshape"
    assert found.inputs("reshape") == {"conv2d": ACTIVATION}


# The ledger.


def test_every_float_operator_has_its_reason() -> None:
    found = annotate(Model(lambda m, x: [m.a(part) for part in torch.split(F.gelu(m.a(x)) * 2, 2, 0)]), X)
    assert found.reasons() == {
        "conv2d": "conv2d",
        "gelu": "(no-pattern)",
        "mul": "(no-pattern)",
        "split": "(float-input)",
        "getitem": "(float-input)",
        "conv2d_1": "conv2d",
    }


def test_of_no_elements_no_range_is_found_at_run_time() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    nothing = torch.zeros(0, 8)
    exported = torch.export.export(model, (nothing,)).module()
    config = get_default_x86_inductor_quantization_config(is_dynamic=True, reduce_range=True)
    with pytest.warns(NothingQuantizedWarning):
        prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config))
    reasons = {entry.node: entry.reason for entry in decisions(prepared)}
    assert {reasons[name] for name in ("linear", "relu", "linear_1")} == {"activation-empty"}
    lowered = lower_pt2e(convert_pt2e(prepared), backend="x86_inductor")
    assert lowered(nothing).shape == (0, 3)


def test_branches_of_control_flow_are_not_silently_float() -> None:
    def positive(y: Tensor) -> Tensor:
        return y @ y

    def negative(y: Tensor) -> Tensor:
        return -y @ y

    model = Model(lambda m, x: m.linear(torch.cond(x.sum() > 0, positive, negative, (x,))))
    assert annotate(model, torch.zeros(6, 6)).reasons()["cond"] == "(no-pattern)"


def test_decisions_say_where_in_the_model_they_are() -> None:
    exported = torch.export.export(Model(lambda m, x: m.a(x)).eval(), (X,)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(CONFIG))
    (decision,) = decisions(prepared)
    assert decision.target == "aten.conv2d.default"
    assert decision.module == "a"
    assert "test_annotation.py" in decision.source


def test_the_preset() -> None:
    assert isinstance(ACTIVATION, QuantizationSpec)
    assert isinstance(WEIGHT, QuantizationSpec)
    assert (ACTIVATION.dtype, ACTIVATION.quant_min, ACTIVATION.quant_max) == (torch.uint8, 0, 255)
    assert (WEIGHT.dtype, WEIGHT.quant_min, WEIGHT.quant_max) == (torch.int8, -128, 127)
    assert (WEIGHT.qscheme, WEIGHT.ch_axis) == (torch.per_channel_symmetric, 0)
    assert ACTIVATION.qscheme is torch.per_tensor_affine
    assert CONFIG.bias is None
    reduced = get_default_x86_inductor_quantization_config(reduce_range=True).input_activation
    assert reduced is not None
    assert reduced.quant_max == 127
    observer = ACTIVATION.observer_or_fake_quant_ctr()
    assert observer.eps == 2**-12
