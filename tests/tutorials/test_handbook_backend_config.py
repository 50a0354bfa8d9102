"""The handbook's chapter "PyTorch BackendConfig", and its reference of BackendConfig and QConfigMapping.

The code is the page's, with other imports and the lines it lost completed (``2  -12`` is ``2**-12``). The
classes of eager-mode modules that it names (``torch.ao.nn.intrinsic.ConvReLU2d``, ``torch.nn.qat.Linear``,
``torch.ao.nn.quantized.reference.Linear``) are on their way out of torch and not used here: what is fused is
the graph, so any classes do to tell configs apart. Those below have their names. For the same reason the
converted model prints no ``QuantizedLinear`` modules: what the page prints is checked on the graph.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
    MinMaxObserver,
    ObservationType,
    QConfig,
    QConfigMapping,
    convert_fx,
    decisions,
    get_default_qconfig_mapping,
    prepare_fx,
)
from lowbit.backends.backend_config import (
    get_fbgemm_backend_config,
    get_native_backend_config,
    get_qnnpack_backend_config,
)
from lowbit.backends.backend_config.observers import default_weight_observer
from lowbit.errors import NothingQuantizedWarning
from lowbit.ir import quantized_decomposed as qd
from torch.fx import GraphModule

aten = torch.ops.aten


class ConvReLU2d(torch.nn.Sequential):
    pass


class QatLinear(torch.nn.Linear):
    pass


class QatConvReLU2d(torch.nn.Sequential):
    pass


class ReferenceLinear(torch.nn.Linear):
    pass


class ReferenceConv2d(torch.nn.Conv2d):
    pass


intrinsic = SimpleNamespace(ConvReLU2d=ConvReLU2d, qat=SimpleNamespace(ConvReLU2d=QatConvReLU2d))
qat = SimpleNamespace(Linear=QatLinear)
reference = SimpleNamespace(Linear=ReferenceLinear, Conv2d=ReferenceConv2d)

# 2. Set DTypeConfigs with backend constraints

quint8_with_constraints = DTypeWithConstraints(
    dtype=torch.quint8,
    quant_min_lower_bound=0,
    quant_max_upper_bound=255,
    scale_min_lower_bound=2**-12,
)

# Specify the dtypes passed to the quantized ops in the reference model spec
weighted_int8_dtype_config = DTypeConfig(
    input_dtype=quint8_with_constraints,
    output_dtype=quint8_with_constraints,
    weight_dtype=torch.qint8,
    bias_dtype=torch.float,
)


# 3. Set up fusion for conv-relu


def fuse_conv2d_relu(is_qat: bool, conv: torch.nn.Module, relu: torch.nn.Module) -> torch.nn.Module:
    """Return a fused ConvReLU2d from individual conv and relu modules."""
    return intrinsic.ConvReLU2d(conv, relu)


# 4. Define the BackendConfig

linear_config = (
    BackendPatternConfig()
    .set_pattern(torch.nn.Linear)
    .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
    .add_dtype_config(weighted_int8_dtype_config)
    .set_root_module(torch.nn.Linear)
    .set_qat_module(qat.Linear)
    .set_reference_quantized_module(reference.Linear)
)

# For fusing Conv2d + ReLU into ConvReLU2d
# No need to set observation type and dtype config here, since we are not
# inserting quant-dequant ops in this step yet
conv_relu_config = (
    BackendPatternConfig()
    .set_pattern((torch.nn.Conv2d, torch.nn.ReLU))
    .set_fused_module(intrinsic.ConvReLU2d)
    .set_fuser_method(fuse_conv2d_relu)
)

# For quantizing ConvReLU2d
fused_conv_relu_config = (
    BackendPatternConfig()
    .set_pattern(intrinsic.ConvReLU2d)
    .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
    .add_dtype_config(weighted_int8_dtype_config)
    .set_root_module(torch.nn.Conv2d)
    .set_qat_module(intrinsic.qat.ConvReLU2d)
    .set_reference_quantized_module(reference.Conv2d)
)

backend_config = (
    BackendConfig("my_backend")
    .set_backend_pattern_config(linear_config)
    .set_backend_pattern_config(conv_relu_config)
    .set_backend_pattern_config(fused_conv_relu_config)
)

# 5. Set up QConfigMapping that satisfies the backend constraints

# Note: Here we use a quant_max of 127, but this could be up to 255 (see `quint8_with_constraints`)
activation_observer = MinMaxObserver.with_args(quant_min=0, quant_max=127, eps=2**-12)
qconfig = QConfig(activation=activation_observer, weight=default_weight_observer)

# Note: All individual items of a fused pattern, e.g. Conv2d and ReLU in
# (Conv2d, ReLU), must have the same QConfig
qconfig_mapping = (
    QConfigMapping()
    .set_object_type(torch.nn.Linear, qconfig)
    .set_object_type(torch.nn.Conv2d, qconfig)
    .set_object_type(torch.nn.BatchNorm2d, qconfig)
    .set_object_type(torch.nn.ReLU, qconfig)
)


# 6. Quantize the model through prepare and convert


class MyModel(torch.nn.Module):
    def __init__(self, use_bn: bool) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(10, 3)
        self.conv = torch.nn.Conv2d(3, 3, 3)
        self.bn = torch.nn.BatchNorm2d(3)
        self.relu = torch.nn.ReLU()
        self.sigmoid = torch.nn.Sigmoid()
        self.use_bn = use_bn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        x = self.conv(x)
        if self.use_bn:
            x = self.bn(x)
        x = self.relu(x)
        return self.sigmoid(x)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def calls(model: GraphModule) -> list[Any]:
    """What the graph calls, without the weights' dequantize and what only picks."""
    on_activations = [n for n in model.graph.nodes if n.op == "call_function"]
    return [n.target for n in on_activations if not (qd.is_dequantize(n) and n.args[0].op == "get_attr")]


def reasons(model: GraphModule) -> dict[str, str]:
    return {d.node: ("" if d.status == "quantized" else "float: ") + d.reason for d in decisions(model)}


Q, DQ = qd.QUANTIZE_PER_TENSOR, qd.DEQUANTIZE_PER_TENSOR


# The mapping is for BatchNorm too, which this model has not.
@pytest.mark.filterwarnings("ignore::lowbit.errors.IneffectiveSettingWarning")
def test_quantize_the_model_through_prepare_and_convert() -> None:
    example_inputs = (torch.rand(1, 3, 10, 10, dtype=torch.float),)
    model = MyModel(use_bn=False)
    prepared = prepare_fx(model, qconfig_mapping, example_inputs, backend_config=backend_config)
    prepared(*example_inputs)  # calibrate
    converted = convert_fx(prepared, backend_config=backend_config)

    # quant1 - [dequant1 - fp32_linear - quant2] - [dequant2 - fp32_conv_relu - quant3] - dequant3, sigmoid
    assert calls(converted) == [
        *(Q, DQ, aten.linear.default),
        *(Q, DQ, aten.conv2d.default, aten.relu.default),
        *(Q, DQ, aten.sigmoid.default),
    ]
    quantizes = converted.graph.find_nodes(op="call_function", target=Q)
    assert {node.args[3:] for node in quantizes} == {(0, 127, torch.uint8)}
    assert converted.get_buffer("linear.weight_int8").dtype is torch.int8
    assert converted.get_buffer("conv.weight_int8").dtype is torch.int8
    assert reasons(converted) == {
        "linear": "linear",
        "conv2d": "conv2d-relu",
        "relu": "conv2d-relu",
        "sigmoid": "float: no-pattern",
    }
    # After ReLU the zero point is 0, as the page prints.
    assert quantizes[2].args[2] == 0
    assert (converted(*example_inputs) - model(*example_inputs)).abs().max() < 0.01


# 7. Experiment with faulty BackendConfig setups


# Nor has this backend a pattern for it.
@pytest.mark.filterwarnings("ignore::lowbit.errors.IneffectiveSettingWarning")
def test_a_backend_that_does_not_know_conv_bn_relu() -> None:
    example_inputs = (torch.rand(1, 3, 10, 10, dtype=torch.float),)
    # eval: BatchNorm in training mode, as on the page, is refused when it is exported for inference.
    model = MyModel(use_bn=True).eval()
    prepared = prepare_fx(model, qconfig_mapping, example_inputs, backend_config=backend_config)
    prepared(*example_inputs)  # calibrate
    converted = convert_fx(prepared, backend_config=backend_config)

    # "Only linear is quantized, but conv-bn-relu is neither fused nor quantized"
    assert calls(converted) == [
        *(Q, DQ, aten.linear.default),
        *(Q, DQ, aten.conv2d.default, aten.batch_norm.default, aten.relu.default, aten.sigmoid.default),
    ]
    # And the ledger says why.
    assert reasons(converted) == {
        "linear": "linear",
        "conv2d": "float: missing-fusion-pattern",
        "batch_norm": "float: no-pattern",
        "relu": "float: missing-fusion-pattern",
        "sigmoid": "float: no-pattern",
    }
    assert "only as part of conv2d-relu" in decisions(converted)[1].detail


@pytest.mark.parametrize("use_bn", [False, True])
def test_a_qconfig_mapping_that_does_not_satisfy_the_constraints(use_bn: bool) -> None:
    example_inputs = (torch.rand(1, 3, 10, 10, dtype=torch.float),)
    model = MyModel(use_bn).eval()
    with pytest.warns(NothingQuantizedWarning):
        prepared = prepare_fx(
            model, get_default_qconfig_mapping(), example_inputs, backend_config=backend_config
        )
    prepared(*example_inputs)  # calibrate
    converted = convert_fx(prepared, backend_config=backend_config)

    # "Nothing is quantized since the QConfigs are simply ignored"
    norm = [aten.batch_norm.default] if use_bn else []
    assert calls(converted) == [
        aten.linear.default,
        aten.conv2d.default,
        *norm,
        aten.relu.default,
        aten.sigmoid.default,
    ]
    assert torch.equal(converted(*example_inputs), model(*example_inputs))
    # But not silently.
    found = reasons(converted)
    assert found["linear"] == "float: scale-too-small"
    assert found["conv2d"] == ("float: missing-fusion-pattern" if use_bn else "float: scale-too-small")
    assert "2.44" in decisions(converted)[0].detail or "0.000244" in decisions(converted)[0].detail


def test_items_of_a_fused_pattern_with_different_qconfigs() -> None:
    """The page's note: "all individual items of a fused pattern must have the same QConfig"."""
    example_inputs = (torch.rand(1, 3, 10, 10, dtype=torch.float),)
    mapping = QConfigMapping().set_object_type(torch.nn.Linear, qconfig)
    mapping.set_object_type(torch.nn.Conv2d, qconfig)
    prepared = prepare_fx(MyModel(False).eval(), mapping, example_inputs, backend_config=backend_config)
    prepared(*example_inputs)
    found = reasons(convert_fx(prepared))
    assert found["conv2d"] == "float: mixed-qconfig"
    assert found["relu"] == "float: not-configured"
    assert found["linear"] == "linear"


# Built-in BackendConfigs


def test_built_in_backend_configs() -> None:
    def patterns(config: BackendConfig) -> set[Any]:
        return {c.pattern for c in config.configs}

    fbgemm, qnnpack = get_fbgemm_backend_config(), get_qnnpack_backend_config()
    native = get_native_backend_config()
    # "Supports a union of the operator patterns supported in the FBGEMM and QNNPACK BackendConfigs"
    assert patterns(native) >= patterns(fbgemm) | patterns(qnnpack)
    example_inputs = (torch.rand(1, 3, 10, 10),)
    for config in (native, fbgemm, qnnpack):
        prepared = prepare_fx(
            MyModel(True).eval(), get_default_qconfig_mapping(), example_inputs, backend_config=config
        )
        prepared(*example_inputs)
        found = reasons(convert_fx(prepared, backend_config=config))
        assert found["conv2d"] == found["relu"] == "conv2d-batchnorm2d-relu"
        assert (found["linear"], found["sigmoid"]) == ("linear", "sigmoid")


# BackendConfig: example usage


def test_example_usage_of_backend_config() -> None:
    weighted_int8_dtype_config = DTypeConfig(
        input_dtype=torch.quint8, output_dtype=torch.quint8, weight_dtype=torch.qint8, bias_dtype=torch.float
    )

    # For quantizing Linear
    linear_config = (
        BackendPatternConfig(torch.nn.Linear)
        .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
        .add_dtype_config(weighted_int8_dtype_config)
        .set_root_module(torch.nn.Linear)
        .set_qat_module(qat.Linear)
        .set_reference_quantized_module(reference.Linear)
    )

    # For fusing Conv2d + ReLU into ConvReLU2d
    conv_relu_config = (
        BackendPatternConfig((torch.nn.Conv2d, torch.nn.ReLU))
        .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
        .add_dtype_config(weighted_int8_dtype_config)
        .set_fused_module(intrinsic.ConvReLU2d)
        .set_fuser_method(fuse_conv2d_relu)
    )

    # For quantizing ConvReLU2d
    fused_conv_relu_config = (
        BackendPatternConfig(intrinsic.ConvReLU2d)
        .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
        .add_dtype_config(weighted_int8_dtype_config)
        .set_root_module(torch.nn.Conv2d)
        .set_qat_module(intrinsic.qat.ConvReLU2d)
        .set_reference_quantized_module(reference.Conv2d)
    )

    backend_config = (
        BackendConfig("my_backend")
        .set_backend_pattern_config(linear_config)
        .set_backend_pattern_config(conv_relu_config)
        .set_backend_pattern_config(fused_conv_relu_config)
    )

    # Properties and methods of the reference
    assert backend_config.configs == [linear_config, conv_relu_config, fused_conv_relu_config]
    again = BackendConfig.from_dict(backend_config.to_dict()).set_name("another")
    assert again.name == "another"
    assert again.to_dict()["configs"] == backend_config.to_dict()["configs"]
    # Without constraints the default QConfigMapping does.
    example_inputs = (torch.rand(1, 3, 10, 10),)
    prepared = prepare_fx(
        MyModel(False).eval(), get_default_qconfig_mapping(), example_inputs, backend_config=again
    )
    prepared(*example_inputs)
    found = reasons(convert_fx(prepared))
    assert (found["linear"], found["conv2d"], found["relu"]) == ("linear", "conv2d-relu", "conv2d-relu")


# QConfigMapping: example usage


# All linears of this model are in modules that are named.
@pytest.mark.filterwarnings("ignore::lowbit.errors.IneffectiveSettingWarning")
def test_example_usage_of_qconfig_mapping() -> None:
    class Bar(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv0 = torch.nn.Conv2d(3, 3, 1)
            self.weight = torch.nn.Parameter(torch.randn(10, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.linear(self.conv0(x), self.weight)
            return F.linear(x, self.weight)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.foo = torch.nn.ModuleDict({"bar": Bar()})
            self.module1, self.module2 = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)
            self.relu, self.conv = torch.nn.ReLU(), torch.nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.relu(self.module2(self.module1(self.foo["bar"](x)))))

    def made(highest: int) -> QConfig:
        activation = MinMaxObserver.with_args(quant_min=0, quant_max=highest)
        return QConfig(activation=activation, weight=default_weight_observer)

    global_qconfig, qconfig1, qconfig2, qconfig3 = map(made, (255, 101, 102, 103))
    qconfig_mapping = (
        QConfigMapping()
        .set_global(global_qconfig)
        .set_object_type(torch.nn.Linear, qconfig1)
        .set_object_type(torch.nn.ReLU, qconfig1)
        .set_module_name_regex("foo.*bar.*conv[0-9]+", qconfig1)
        .set_module_name_regex("foo.*", qconfig2)
        .set_module_name("module1", qconfig1)
        .set_module_name("module2", qconfig2)
        .set_module_name_object_type_order("foo.bar", torch.nn.functional.linear, 0, qconfig3)
    )
    for mapping in (qconfig_mapping, QConfigMapping.from_dict(qconfig_mapping.to_dict())):
        example_inputs = (torch.rand(1, 3, 10, 10),)
        prepared = prepare_fx(Model().eval(), mapping, example_inputs)
        prepared(*example_inputs)
        converted = convert_fx(prepared)
        written = {
            n.all_input_nodes[0].name: n.args[4]
            for n in converted.graph.find_nodes(op="call_function", target=Q)
            if not qd.is_dequantize(n.all_input_nodes[0]) and n.all_input_nodes[0].op == "call_function"
        }
        assert written == {
            "conv2d": 101,  # the first expression
            "linear": 103,  # the first call in foo.bar
            "linear_1": 102,  # the second expression
            "linear_2": 101,  # module1
            "linear_3": 102,  # module2
            "relu": 101,  # its type
            "conv2d_1": 255,  # anything else
        }
