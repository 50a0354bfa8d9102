"""prepare_fx and convert_fx: what is quantized, what stays float, and why."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    BackendConfig,
    BackendPatternConfig,
    ComposableQuantizer,
    Decision,
    DTypeConfig,
    DTypeWithConstraints,
    HistogramObserver,
    MinMaxObserver,
    ObservationType,
    QConfig,
    QConfigMapping,
    XNNPACKQuantizer,
    convert_fx,
    decisions,
    get_default_qconfig_mapping,
    get_symmetric_quantization_config,
    lower_pt2e,
    prepare_fx,
    prepare_pt2e,
)
from lowbit.backends import backend_config as bc
from lowbit.backends.backend_config import MatchAllNode, observers, qconfig
from lowbit.errors import GraphInputError, NothingQuantizedWarning, SpecError, StageError, UnknownNameError
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule, Node

INT8 = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float)
QCONFIG = QConfig(MinMaxObserver.with_args(quant_min=0, quant_max=127), observers.default_weight_observer)
EVERYWHERE = QConfigMapping().set_global(QCONFIG)
X = torch.linspace(-2, 3, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


class Fused(nn.Sequential):
    """What a backend of a user's fuses operators into."""


class Chain(nn.Sequential):
    """A model whose parts have the names of their classes."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        for part in parts:
            self.add_module(type(part).__name__.lower(), part)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def backend(*patterns: Any, dtype_configs: tuple[DTypeConfig, ...] = (INT8,)) -> BackendConfig:
    return BackendConfig("mine").set_backend_pattern_configs(
        BackendPatternConfig(pattern).set_dtype_configs(dtype_configs) for pattern in patterns
    )


def quantize(
    model: nn.Module, mapping: QConfigMapping, *inputs: Tensor, config: BackendConfig | None = None
) -> GraphModule:
    prepared = prepare_fx(model.eval(), mapping, inputs, backend_config=config)
    prepared(*inputs)
    return convert_fx(prepared, backend_config=config)


def statuses(model: GraphModule) -> dict[str, str]:
    """Pattern or reason, by operator."""
    return {d.node: ("" if d.status == "quantized" else "float: ") + d.reason for d in decisions(model)}


def decision(model: GraphModule, node: str) -> Decision:
    return next(d for d in decisions(model) if d.node == node)


def calls(model: GraphModule, target: Any) -> list[Node]:
    return list(model.graph.find_nodes(op="call_function", target=target))


def quantized_edges(model: GraphModule) -> int:
    return len(calls(model, qd.QUANTIZE_PER_TENSOR))


def test_patterns_of_several_parts_come_first() -> None:
    model = Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    config = backend(nn.Conv2d, nn.ReLU, (nn.Conv2d, nn.BatchNorm2d), (nn.Conv2d, nn.BatchNorm2d, nn.ReLU))
    converted = quantize(model, EVERYWHERE, X, config=config)
    assert set(statuses(converted).values()) == {"conv2d-batchnorm2d-relu"}
    assert quantized_edges(converted) == 2
    assert not calls(converted, torch.ops.aten.batch_norm.default)
    # Of what remains of the pattern, the parts: the convolution and its BatchNorm, which is folded, then ReLU
    # alone.
    config = backend(nn.Conv2d, nn.ReLU, (nn.Conv2d, nn.BatchNorm2d))
    converted = quantize(model, EVERYWHERE, X, config=config)
    assert statuses(converted) == {
        "conv2d": "conv2d-batchnorm2d",
        "relu": "relu",
    }
    assert quantized_edges(converted) == 3


def test_a_fused_module_is_quantized_as_its_own_config_says() -> None:
    model = Chain(nn.Conv2d(3, 4, 3), nn.ReLU())
    fusion = BackendPatternConfig((nn.Conv2d, nn.ReLU)).set_fused_module(Fused)
    alone = BackendConfig().set_backend_pattern_config(fusion)
    with pytest.warns(NothingQuantizedWarning):
        assert statuses(quantize(model, EVERYWHERE, X, config=alone)) == {
            "conv2d": "float: fused-only",
            "relu": "float: fused-only",
        }
    fused = BackendPatternConfig(Fused).add_dtype_config(INT8)
    both = alone.set_backend_pattern_config(fused)
    converted = quantize(model, EVERYWHERE, X, config=both)
    assert set(statuses(converted).values()) == {"conv2d-relu"}
    # A module of that class in the model is the pattern, too.
    converted = quantize(nn.Sequential(Fused(nn.Conv2d(3, 4, 3), nn.ReLU())), EVERYWHERE, X, config=both)
    assert set(statuses(converted).values()) == {"fused"}
    assert quantized_edges(converted) == 2


def test_a_fuser_without_fused_module_gives_the_root_module() -> None:
    fusion = BackendPatternConfig((nn.ConvTranspose2d, nn.BatchNorm2d)).set_root_module(nn.ConvTranspose2d)
    fusion.set_fuser_method(lambda is_qat, conv, norm: conv)
    config = backend(nn.ConvTranspose2d).set_backend_pattern_config(fusion)
    model = Chain(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4))
    converted = quantize(model, EVERYWHERE, X, config=config)
    assert set(statuses(converted).values()) == {"convtranspose2d-batchnorm2d"}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)) + x)


@pytest.mark.parametrize("left", [True, False])
def test_nested_patterns(left: bool) -> None:
    conv = (nn.BatchNorm2d, nn.Conv2d)
    operands = (conv, MatchAllNode) if left else (MatchAllNode, conv)
    pattern = BackendPatternConfig().set_pattern_complex_format((nn.ReLU, (torch.add, *operands)))
    config = backend(nn.Conv2d).set_backend_pattern_config(pattern.add_dtype_config(INT8))
    found = statuses(quantize(Residual(), EVERYWHERE, X, config=config))
    if left:
        assert set(found.values()) == {"conv2d-batchnorm2d-add-relu"}
    else:
        assert found["conv2d"] == "conv2d"
        assert found["add"] == found["relu"] == "float: missing-fusion-pattern"
    both = statuses(quantize(Residual(), EVERYWHERE, X, config=bc.get_onednn_backend_config()))
    assert set(both.values()) == {"conv2d-batchnorm2d-add-relu"}


def test_a_part_that_is_read_outside_is_not_fused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3), nn.ReLU()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.conv(x)
            return x, self.relu(x)

    found = statuses(quantize(Model(), EVERYWHERE, X, config=backend(nn.Conv2d, (nn.Conv2d, nn.ReLU))))
    assert found == {"conv2d": "conv2d", "relu": "float: missing-fusion-pattern"}


def test_modules_and_functions_are_told_apart() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.gelu = nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(self.gelu(F.linear(self.linear(x), self.linear.weight)))

    found = statuses(quantize(Model(), EVERYWHERE, X, config=backend(nn.Linear)))
    assert (found["linear"], found["linear_1"]) == ("linear", "float: no-pattern")
    found = statuses(quantize(Model(), EVERYWHERE, X, config=backend(F.linear, F.gelu)))
    assert (found["linear"], found["linear_1"]) == ("float: no-pattern", "linear")
    assert (found["gelu"], found["gelu_1"]) == ("float: no-pattern", "gelu")


def test_one_module_called_twice_is_two_calls() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.bn(self.conv(self.relu(self.bn(self.conv(x))))))

    model = Model().eval()
    model.bn.running_mean.uniform_(-1, 1)
    converted = quantize(model, QConfigMapping().set_global(bc.get_default_qconfig("onednn")), X)
    assert list(statuses(converted).values()) == ["conv2d-batchnorm2d-relu"] * 4
    # The folded weight is that of either, and quantized once a call.
    assert (converted(X) - model(X)).abs().max() < 0.02 * model(X).abs().max()


def test_operators_that_share_have_one_observer() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.max_pool2d(torch.cat([x, 4 * y], 1), 2)

    x, y = X, X.flip(0)
    converted = quantize(Model(), QConfigMapping().set_object_type(torch.cat, QCONFIG), x, y)
    parameters = [node.args[1:] for node in calls(converted, qd.QUANTIZE_PER_TENSOR)]
    assert len(parameters) == 3
    assert len(set(parameters)) == 1
    assert statuses(converted)["max_pool2d"] == "float: not-configured"


def test_binary_operators_observe_both_operands_and_the_result() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return operator.mul(x, y)

    converted = quantize(Model(), EVERYWHERE, X, 10 * X)
    scales = [node.args[1] for node in calls(converted, qd.QUANTIZE_PER_TENSOR)]
    assert len(set(scales)) == 3
    assert scales[1] == pytest.approx(10 * scales[0])


def test_reshapes_keep_what_their_input_has() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.reshape(-1), self.linear(x).reshape(-1)

    converted = quantize(Model(), get_default_qconfig_mapping(), X)
    found = statuses(converted)
    assert found == {"reshape": "float: float-input", "linear": "linear", "reshape_1": "reshape"}
    *_, before, after = calls(converted, qd.QUANTIZE_PER_TENSOR)
    assert before.args[1:] == after.args[1:]


def test_what_one_operator_writes_another_reads() -> None:
    model = Chain(nn.Linear(6, 6), nn.Hardswish())

    def parameters(asked: QConfig) -> list[Any]:
        mapping = QConfigMapping().set_global(QCONFIG).set_object_type(nn.Hardswish, asked)
        return [n.args[1:] for n in calls(quantize(model, mapping, X), qd.QUANTIZE_PER_TENSOR)]

    # Another observer, but the same integers: the tensor between the two is quantized once.
    other = HistogramObserver.with_args(quant_min=0, quant_max=127)
    assert len(parameters(QConfig(other, None))) == 3
    # Another range, or a larger smallest scale, is another thing to ask for.
    assert len(parameters(QConfig(other.with_args(quant_max=255), None))) == 4
    assert len(parameters(QConfig(other.with_args(eps=2**-12), None))) == 4
    assert len(parameters(QConfig(other.with_args(eps=2**-24), None))) == 3


def test_fixed_parameters_are_those_of_the_result() -> None:
    converted = quantize(Chain(nn.Linear(6, 6), nn.Sigmoid(), nn.Tanh()), get_default_qconfig_mapping(), X)
    assert set(statuses(converted).values()) == {"linear", "sigmoid", "tanh"}
    *_, sigmoid, tanh = calls(converted, qd.QUANTIZE_PER_TENSOR)
    assert sigmoid.args[1:] == (1 / 256, 0, 0, 255, torch.uint8)
    assert tanh.args[1:] == (2 / 256, 128, 0, 255, torch.uint8)
    with pytest.warns(NothingQuantizedWarning):
        converted = quantize(nn.Sigmoid(), get_default_qconfig_mapping(), X)
    assert statuses(converted) == {"sigmoid": "float: float-input"}
    assert torch.equal(converted(X), X.sigmoid())


def observed(**arguments: Any) -> QConfig:
    return QConfig(MinMaxObserver.with_args(**arguments), observers.default_weight_observer)


LIMITS = DTypeWithConstraints(
    torch.quint8, quant_min_lower_bound=0, quant_max_upper_bound=200, scale_min_lower_bound=2**-12
)
FIXED = DTypeWithConstraints(torch.quint8, scale_exact_match=1 / 256, zero_point_exact_match=0)


@pytest.mark.parametrize(
    ("taken", "asked", "reason"),
    [
        (LIMITS, observed(quant_min=0, quant_max=200, eps=2**-12), None),
        (LIMITS, observed(quant_min=0, quant_max=201, eps=2**-12), "quantization-range"),
        (LIMITS, observed(quant_min=0, quant_max=200, eps=2**-13), "scale-too-small"),
        (LIMITS, observed(reduce_range=True, eps=2**-11), None),
        (LIMITS, observed(dtype=torch.qint8, eps=2**-12), "dtypes-not-supported"),
        (LIMITS, qconfig.default_dynamic_qconfig, "dtypes-not-supported"),
        (LIMITS, qconfig.float16_static_qconfig, "dtypes-not-supported"),
        (
            DTypeWithConstraints(torch.quint8, quant_max_upper_bound=100),
            QCONFIG,
            "quantization-range",
        ),
        (FIXED, QCONFIG, "parameters-not-fixed"),
        (
            FIXED,
            QConfig(
                observers.default_fixed_qparams_range_neg1to1_observer, observers.default_weight_observer
            ),
            "parameters-not-fixed",
        ),
    ],
)
def test_constraints(taken: DTypeWithConstraints, asked: QConfig, reason: str | None) -> None:
    config = backend(
        nn.Linear, dtype_configs=(DTypeConfig(taken, taken, torch.qint8, torch.float),)
    ).set_backend_pattern_config(BackendPatternConfig(F.relu).add_dtype_config(INT8))
    mapping = QConfigMapping().set_object_type(nn.Linear, asked).set_object_type(F.relu, QCONFIG)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.linear(x))

    converted = quantize(Model(), mapping, X, config=config)
    found = statuses(converted)
    assert found == {"linear": "linear" if reason is None else f"float: {reason}", "relu": "relu"}
    if reason is not None:
        assert decision(converted, "linear").detail


def test_weight_constraints() -> None:
    narrow = DTypeWithConstraints(torch.qint8, quant_min_lower_bound=-127, quant_max_upper_bound=127)
    config = backend(nn.Linear, dtype_configs=(DTypeConfig(torch.quint8, torch.quint8, narrow),))
    with pytest.warns(NothingQuantizedWarning):
        converted = quantize(nn.Linear(6, 6), EVERYWHERE, X, config=config)
    assert statuses(converted) == {"linear": "float: quantization-range"}
    assert "[-128, 127]" in decision(converted, "linear").detail
    within = QConfig(QCONFIG.activation, observers.weight_observer_range_neg_127_to_127)
    converted = quantize(nn.Linear(6, 6), QConfigMapping().set_global(within), X, config=config)
    assert statuses(converted) == {"linear": "linear"}


def test_the_first_choice_of_dtypes_that_fits() -> None:
    mapping = QConfigMapping().set_global(qconfig.default_symmetric_qnnpack_qconfig)
    model = Chain(nn.Conv2d(3, 4, 3), nn.ReLU())
    converted = quantize(model, mapping, X, config=bc.get_qnnpack_backend_config())
    assert set(statuses(converted).values()) == {"conv2d-relu"}
    assert {n.args[5] for n in calls(converted, qd.QUANTIZE_PER_TENSOR)} == {torch.int8}
    with pytest.warns(NothingQuantizedWarning):
        converted = quantize(model, mapping, X, config=bc.get_fbgemm_backend_config())
    assert set(statuses(converted).values()) == {"float: dtypes-not-supported"}
    assert "int8 activations" in decision(converted, "conv2d").detail


def test_parts_of_a_pattern_with_different_qconfigs() -> None:
    other = QConfig(HistogramObserver, observers.default_weight_observer)
    mapping = QConfigMapping().set_object_type(nn.Conv2d, QCONFIG).set_object_type(nn.ReLU, other)
    model = Chain(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.warns(NothingQuantizedWarning):
        converted = quantize(model, mapping, X, config=backend((nn.Conv2d, nn.ReLU)))
    assert set(statuses(converted).values()) == {"float: mixed-qconfig"}
    # A backend that has the parts runs them apart.
    converted = quantize(model, mapping, X, config=backend(nn.Conv2d, nn.ReLU, (nn.Conv2d, nn.ReLU)))
    assert statuses(converted) == {"conv2d": "conv2d", "relu": "relu"}
    mapping.set_object_type(nn.ReLU, None)
    converted = quantize(model, mapping, X, config=backend(nn.Conv2d, nn.ReLU, (nn.Conv2d, nn.ReLU)))
    assert statuses(converted) == {"conv2d": "conv2d", "relu": "float: not-configured"}
    assert decision(converted, "relu").detail == "None is set for object type ReLU"


def test_what_stays_float_for_other_reasons() -> None:
    silent = BackendPatternConfig(nn.ReLU).add_dtype_config(INT8)
    silent.set_observation_type(ObservationType.INPUT_OUTPUT_NOT_OBSERVED)
    config = backend(nn.Linear).set_backend_pattern_config(silent)
    found = statuses(quantize(Chain(nn.Linear(6, 6), nn.ReLU()), EVERYWHERE, X, config=config))
    assert found == {"linear": "linear", "relu": "float: not-observed"}


@pytest.mark.parametrize(
    ("model", "asked", "taken", "reason"),
    [
        (nn.Linear(6, 6).double(), QCONFIG, INT8, "activation-not-float32"),
        (nn.Linear(6, 6), QConfig(None, None), INT8, "dtypes-not-supported"),
        (nn.Linear(6, 6), QConfig(None, None), DTypeConfig(), "not-configured"),
    ],
)
def test_reasons_of_a_whole_model(model: nn.Module, asked: QConfig, taken: DTypeConfig, reason: str) -> None:
    mapping, config = QConfigMapping().set_global(asked), backend(nn.Linear, dtype_configs=(taken,))
    with pytest.warns(NothingQuantizedWarning):
        converted = quantize(model, mapping, X.to(next(model.parameters())), config=config)
    assert statuses(converted) == {"linear": f"float: {reason}"}


def test_a_batch_norm_that_cannot_be_folded() -> None:
    model = Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    with pytest.warns(NothingQuantizedWarning):
        converted = quantize(model, EVERYWHERE, X, config=backend((nn.Conv2d, nn.BatchNorm2d, nn.ReLU)))
    assert statuses(converted) == {
        "conv2d": "float: batch-norm-not-folded",
        "batch_norm": "float: batch-statistics",
        "relu": "float: batch-norm-not-folded",
    }
    assert torch.equal(converted(X), model(X))


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.lstm, self.cell, self.linear = nn.LSTM(8, 6), nn.GRUCell(6, 5), nn.Linear(5, 4)

    def forward(self, words: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(words))
        return self.linear(self.cell(x[0]))


WORDS = torch.arange(6).reshape(3, 2)


@pytest.mark.parametrize(
    ("asked", "tolerance"), [(qconfig.default_dynamic_qconfig, 0.01), (qconfig.float16_dynamic_qconfig, 1e-3)]
)
def test_dynamic_quantization_of_recurrent_models(asked: QConfig, tolerance: float) -> None:
    model = Sequences().eval()
    converted = quantize(model, QConfigMapping().set_global(asked), WORDS)
    found = statuses(converted)
    assert (found["lstm"], found["gru_cell"], found["linear"]) == ("lstm", "grucell", "linear")
    assert found["embedding"] == "float: dtypes-not-supported"
    assert not calls(converted, qd.QUANTIZE_PER_TENSOR)
    assert (converted(WORDS) - model(WORDS)).abs().max() < tolerance
    lstm = calls(converted, torch.ops.aten.lstm.input)[0]
    input_weight, hidden_weight, *biases = lstm.args[2]
    assert all(node.op != "get_attr" for node in (input_weight, hidden_weight))
    assert all(node.op == "get_attr" for node in biases)


def test_embeddings_have_quantized_tables() -> None:
    model = Sequences().eval()
    mapping = QConfigMapping().set_object_type(nn.Embedding, qconfig.float_qparams_weight_only_qconfig)
    converted = quantize(model, mapping, WORDS)
    assert {d.node for d in decisions(converted) if d.status == "quantized"} == {"embedding"}
    table = converted.get_buffer("embedding.weight_uint8")
    assert table.dtype is torch.uint8
    assert (converted(WORDS) - model(WORDS)).abs().max() < 0.01


def test_tables_in_float64_stay_as_they_are() -> None:
    mapping = QConfigMapping().set_object_type(nn.Embedding, qconfig.float_qparams_weight_only_qconfig)
    with pytest.warns(NothingQuantizedWarning):
        converted = quantize(nn.Embedding(4, 3).double(), mapping, torch.arange(3))
    assert statuses(converted) == {"embedding": "float: weight-is-float64"}


def test_layer_norms_keep_their_weight() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)).eval()
    nn.init.uniform_(model[1].weight)
    converted = quantize(model, get_default_qconfig_mapping(), X)
    assert set(statuses(converted).values()) == {"linear", "layernorm"}
    assert torch.equal(converted.get_parameter("1.weight"), model[1].weight)


def test_channels_of_transposed_convolutions() -> None:
    mapping = QConfigMapping().set_global(bc.get_default_qconfig("onednn"))
    converted = quantize(nn.ConvTranspose2d(3, 5, 3), mapping, X)
    (weight,) = calls(converted, qd.DEQUANTIZE_PER_CHANNEL)
    assert weight.args[3] == 1
    assert converted.get_buffer(str(weight.args[1].target)).numel() == 5


def test_composed_with_another_quantizer() -> None:
    model = Chain(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    first = XNNPACKQuantizer().set_module_type(nn.Linear, get_symmetric_quantization_config())
    second = bc.BackendConfigQuantizer(bc.get_native_backend_config(), EVERYWHERE)
    exported = torch.export.export(model.eval(), (X,)).module()
    prepared = prepare_pt2e(exported, ComposableQuantizer([first, second]))
    prepared(X)
    converted = convert_fx(prepared)
    assert set(statuses(converted).values()) == {"conv2d", "linear"}
    (linear,) = calls(converted, torch.ops.aten.linear.default)
    # int8 as XNNPACK has it, not uint8.
    assert linear.args[0].args[5] is torch.int8


@pytest.mark.parametrize("strict", [False, True])
def test_lowered_to_x86_kernels(strict: bool) -> None:
    model = Residual().eval()
    mapping = get_default_qconfig_mapping("x86")
    backend_ = bc.compile_backend(bc.get_x86_backend_config(), mapping)
    exported = torch.export.export(model, (X,), strict=strict).module()
    prepared = prepare_pt2e(exported, backend_.quantizer(), pipeline=backend_.prepare)
    prepared(X)
    converted = convert_fx(prepared)
    lowered = lower_pt2e(converted, "x86_inductor")
    assert len(calls(lowered, torch.ops.onednn.qconv_pointwise.default)) == 1
    torch.testing.assert_close(lowered(X), converted(X), atol=0.02, rtol=0)


def test_dictionaries_do_as_well() -> None:
    config = bc.get_native_backend_config()
    first = quantize(Residual(), EVERYWHERE, X)
    prepared = prepare_fx(Residual().eval(), EVERYWHERE.to_dict(), (X,), backend_config=config.to_dict())
    prepared(X)
    assert statuses(convert_fx(prepared, backend_config=config.to_dict())) == statuses(first)


def test_sizes_may_be_dynamic() -> None:
    model = Residual().eval()
    shapes = ({0: torch.export.Dim("batch")},)
    prepared = prepare_fx(model, EVERYWHERE, (X,), dynamic_shapes=shapes)
    prepared(X)
    converted = convert_fx(prepared)
    assert converted(X[:1]).shape == model(X[:1]).shape


def test_the_model_is_left_as_it_is() -> None:
    model = Residual().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantize(model, EVERYWHERE, X)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training


def prepare(model: Any, mapping: Any, inputs: Any, **arguments: Any) -> Callable[[], GraphModule]:
    return lambda: prepare_fx(model, mapping, inputs, **arguments)


@pytest.mark.parametrize(
    ("misuse", "error", "found"),
    [
        (prepare(nn.Linear(6, 6), QCONFIG, (X,)), SpecError, "no QConfigMapping"),
        (prepare(nn.Linear(6, 6), {"": 3}, (X,)), SpecError, "3"),
        (prepare(nn.Linear(6, 6), EVERYWHERE, X), GraphInputError, "Tensor"),
        (prepare(F.linear, EVERYWHERE, (X,)), GraphInputError, "linear"),
        (
            prepare(torch.export.export(nn.Linear(6, 6), (X,)), EVERYWHERE, (X,)),
            GraphInputError,
            "ExportedProgram",
        ),
        (prepare(nn.Dropout(), EVERYWHERE, (X,)), GraphInputError, "training mode"),
        (
            prepare(nn.Linear(6, 6), EVERYWHERE, (X,), backend_config="x86"),
            SpecError,
            "no BackendConfig",
        ),
        (
            prepare(
                nn.Linear(6, 6),
                QConfigMapping().set_global(bc.get_default_qat_qconfig()),
                (X,),
            ),
            SpecError,
            "training only",
        ),
        (
            prepare(nn.Linear(6, 6), QConfigMapping().set_global(QConfig(dict, dict)), (X,)),
            SpecError,
            "no observer",
        ),
        (
            prepare(nn.Linear(6, 6), QConfigMapping().set_global(QConfig(lambda: 1 / 0, None)), (X,)),
            SpecError,
            "ZeroDivisionError",
        ),
        (
            prepare(nn.Linear(6, 6), EVERYWHERE, (X,), backend_config=backend(test_lowered_to_x86_kernels)),
            UnknownNameError,
            "not a torch function",
        ),
    ],
)
def test_misuse_is_an_error_that_says_what_to_do(misuse, error: type, found: str) -> None:
    with pytest.raises(error) as raised:
        misuse()
    assert found in raised.value.found
    assert raised.value.hint


def test_conversion_with_another_config() -> None:
    prepared = prepare_fx(nn.Linear(6, 6).eval(), EVERYWHERE, (X,))
    prepared(X)
    with pytest.raises(SpecError, match=r"'native'.*'x86'"):
        convert_fx(prepared, backend_config=bc.get_x86_backend_config())
    with pytest.raises(StageError):
        convert_fx(convert_fx(prepared))
