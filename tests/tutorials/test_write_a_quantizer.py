"""The tutorial "How to Write a Quantizer for PyTorch 2 Export Quantization", with other imports.

Each part annotates as the page does, in a quantizer of its own that goes through prepare, calibrate and
convert; the last one is the page's BackendQuantizer for ResNet-18, lowered to a backend whose kernels fit.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    HistogramObserver,
    ObserverOrFakeQuantize,
    PerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationConfig,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    SubgraphMatcherWithNameNodeMap,
    calibrate,
    convert_pt2e,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.ir import quantized_decomposed as qd
from lowbit.matchers.source_partitions import get_source_partitions
from lowbit.tools.models import resnet18
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten

act_quantization_spec = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    is_dynamic=False,
    observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12),
)

weight_quantization_spec = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    is_dynamic=False,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Tutorial(Quantizer):
    """A quantizer whose annotation is one of the page's examples."""

    def __init__(self, annotation: Callable[[GraphModule], None]) -> None:
        self.annotation = annotation

    def annotate(self, model: GraphModule) -> GraphModule:
        self.annotation(model)
        return model

    def validate(self, model: GraphModule) -> None:
        pass


def quantize(
    model: nn.Module, annotation: Callable[[GraphModule], None], *inputs: Tensor
) -> tuple[GraphModule, GraphModule]:
    """The prepared and the converted model."""
    exported = torch.export.export(model.eval(), inputs).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, Tutorial(annotation))
    calibrate(prepared, [inputs], progress=False)
    return prepared, convert_pt2e(prepared)


def calls(model: GraphModule, target: object) -> list[Node]:
    return list(model.graph.find_nodes(op="call_function", target=target))


def observers(prepared: GraphModule) -> list[str]:
    return [n.target for n in prepared.graph.nodes if "activation_post_process" in str(n.target)]


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y)


X, Y = torch.linspace(-1, 2, 24).reshape(4, 6), torch.linspace(-5, 1, 24).reshape(4, 6)


# 1. Annotate Common Operator Patterns


def annotate_add(gm: GraphModule) -> None:
    add_partitions = get_source_partitions(gm.graph, [operator.add, torch.add])
    add_partitions = list(itertools.chain(*add_partitions.values()))
    for add_partition in add_partitions:
        add_node = add_partition.output_nodes[0]

        input_act_qspec = act_quantization_spec
        output_act_qspec = act_quantization_spec

        input_qspec_map = {}
        input_act0 = add_node.args[0]
        input_qspec_map[input_act0] = input_act_qspec

        input_act1 = add_node.args[1]
        input_qspec_map[input_act1] = input_act_qspec

        add_node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=input_qspec_map,
            output_qspec=output_act_qspec,
            _annotated=True,
        )


def test_annotate_common_operator_patterns() -> None:
    prepared, converted = quantize(Add(), annotate_add, X, Y)
    # HistogramObserver will be inserted at its two input nodes and one output node in prepare phase
    assert len(observers(prepared)) == len(set(observers(prepared))) == 3
    assert all(isinstance(prepared.get_submodule(name), HistogramObserver) for name in observers(prepared))
    # And substituted with quantize node and dequantize node in the convert phase
    assert not observers(converted)
    (add,) = calls(converted, aten.add.Tensor)
    assert all(map(qd.is_dequantize, add.all_input_nodes))
    assert all(map(qd.is_quantize, add.users))
    assert (converted(X, Y) - (X + Y)).abs().max() < 3 / 255 * 7


# 2. Annotate Operators that Shares Quantization Params


def annotate_shared_add(gm: GraphModule) -> None:
    (add_node,) = calls(gm, aten.add.Tensor)
    input_act0, input_act1 = add_node.args[:2]
    share_qparams_with_input_act0_qspec = SharedQuantizationSpec((input_act0, add_node))
    input_qspec_map = {input_act0: act_quantization_spec, input_act1: share_qparams_with_input_act0_qspec}

    add_node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=input_qspec_map,
        output_qspec=act_quantization_spec,
        _annotated=True,
    )


def test_share_between_inputs() -> None:
    prepared, converted = quantize(Add(), annotate_shared_add, X, Y)
    assert len(set(observers(prepared))) == 2
    x, y, result = calls(converted, qd.QUANTIZE_PER_TENSOR)
    assert x.args[1:] == y.args[1:] != result.args[1:]
    # One range for both.
    assert x.args[1] == pytest.approx(7 / 255, rel=0.1)


class ConvsAndCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv1(x), 10 * self.conv2(x)], 1)


def annotate_cat(gm: GraphModule) -> None:
    (cat,) = calls(gm, aten.cat.default)
    conv1, conv2 = cat.args[0]
    qspec1 = act_quantization_spec
    for conv in (conv1, conv2):
        conv.meta["quantization_annotation"] = QuantizationAnnotation(output_qspec=qspec1, _annotated=True)
    cat.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map={conv1: qspec1, conv2: SharedQuantizationSpec((conv1, cat))}, _annotated=True
    )


def test_sharing_is_transitive() -> None:
    prepared, converted = quantize(ConvsAndCat(), annotate_cat, torch.randn(2, 3, 6, 6))
    # conv1 -> obs -> cat, conv2 -> obs -> cat, and both obs will be the same observer instance
    assert len(observers(prepared)) == 2
    assert len(set(observers(prepared))) == 1
    first, second = calls(converted, qd.QUANTIZE_PER_TENSOR)
    assert first.args[1:] == second.args[1:]


# 3. Annotate Operators with Fixed Quantization Parameters


def annotate_sigmoid(gm: GraphModule) -> None:
    act_qspec = FixedQParamsQuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        scale=1.0 / 256.0,
        zero_point=0,
    )
    (sigmoid_node,) = calls(gm, aten.sigmoid.default)
    input_act = sigmoid_node.args[0]
    sigmoid_node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map={input_act: act_qspec},
        output_qspec=act_qspec,
        _annotated=True,
    )


def test_fixed_quantization_parameters() -> None:
    x = torch.arange(0, 1, 1 / 16)
    exported = torch.export.export(nn.Sigmoid(), (x,)).module()
    assert isinstance(exported, GraphModule)
    # There is nothing to calibrate.
    converted = convert_pt2e(prepare_pt2e(exported, Tutorial(annotate_sigmoid)))
    for node in calls(converted, qd.QUANTIZE_PER_TENSOR):
        assert node.args[1:] == (1 / 256, 0, 0, 255, torch.uint8)
    # These inputs are multiples of 1/256, so what is rounded is the sigmoid alone.
    assert torch.equal(converted(x), (torch.sigmoid(x) * 256).round().clamp(0, 255) / 256)


# 4. Annotate Tensors with Derived Quantization Parameters


def derive_qparams_fn(obs_or_fqs: list[ObserverOrFakeQuantize]) -> tuple[Tensor, Tensor]:
    assert len(obs_or_fqs) == 2, (
        f"Expecting two obs/fqs, one for activation and one for weight, got: {len(obs_or_fqs)}"
    )
    act_obs_or_fq = obs_or_fqs[0]
    weight_obs_or_fq = obs_or_fqs[1]
    act_scale, _act_zp = act_obs_or_fq.calculate_qparams()
    weight_scale, _weight_zp = weight_obs_or_fq.calculate_qparams()
    scale = act_scale * weight_scale
    return scale.to(torch.float32), torch.zeros_like(scale).to(torch.int32)


def annotate_conv_with_bias(activation: QuantizationSpec) -> Callable[[GraphModule], None]:
    def annotate(gm: GraphModule) -> None:
        (node,) = calls(gm, aten.conv2d.default)
        input_act, weight, bias = node.args[:3]
        bias_qspec = DerivedQuantizationSpec(
            derived_from=[(input_act, node), (weight, node)],
            derive_qparams_fn=derive_qparams_fn,
            dtype=torch.int32,
            quant_min=-(2**31),
            quant_max=2**31 - 1,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )
        input_qspec_map = {input_act: activation, weight: weight_quantization_spec, bias: bias_qspec}
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=input_qspec_map,
            output_qspec=activation,
            _annotated=True,
        )

    return annotate


def test_derived_quantization_parameters() -> None:
    model, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)
    _, converted = quantize(model, annotate_conv_with_bias(act_quantization_spec), x)
    (conv,) = calls(converted, aten.conv2d.default)
    act, weight, bias = (node.args for node in conv.all_input_nodes)
    scale = {name: converted.get_buffer(str(args[1].target)) for name, args in (("w", weight), ("b", bias))}
    torch.testing.assert_close(scale["b"], scale["w"] * act[1])
    stored = converted.get_buffer(str(bias[0].target))
    assert stored.dtype is torch.int32
    torch.testing.assert_close(stored * scale["b"], model.bias.detach(), atol=1e-4, rtol=1e-4)


def test_derived_quantization_parameters_lowered() -> None:
    """With the activations that the X86 kernels take, a quantized bias is one too."""
    spec = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255 if has_vnni() else 127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12),
    )
    x = torch.randn(2, 3, 6, 6)
    _, converted = quantize(nn.Conv2d(3, 4, 3), annotate_conv_with_bias(spec), x)
    lowered = lower_pt2e(converted, "x86_inductor")
    assert len(calls(lowered, torch.ops.onednn.qconv_pointwise.default)) == 1
    assert not calls(lowered, aten.conv2d.default)
    torch.testing.assert_close(lowered(x), converted(x))


# 5. A Toy Example with Resnet18


def conv_relu_pattern(input: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    conv = torch.nn.functional.conv2d(input, weight, bias)
    output = torch.nn.functional.relu(conv)
    # returns an additional dict that includes a map from name to node that we want to annotate
    return output, {"input": input, "weight": weight, "bias": bias, "conv": conv, "output": output}


def conv_add_relu_pattern(
    input: Tensor, weight: Tensor, bias: Tensor, residual: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    conv = torch.nn.functional.conv2d(input, weight, bias)
    add = conv + residual
    output = torch.nn.functional.relu(add)
    return output, {
        "input": input,
        "weight": weight,
        "bias": bias,
        "conv": conv,
        "residual": residual,
        "add": add,
        "output": output,
    }


def conv_pattern(input: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = torch.nn.functional.conv2d(input, weight, bias)
    return output, {"input": input, "weight": weight, "bias": bias, "conv": output, "output": output}


def linear_pattern(input: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = torch.nn.functional.linear(input, weight, bias)
    return output, {"input": input, "weight": weight, "bias": bias, "conv": output, "output": output}


def max_pool_pattern(input: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = F.max_pool2d(input, 3, 2, 1)
    return output, {"input": input, "output": output}


def avg_pool_pattern(input: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = F.adaptive_avg_pool2d(input, (1, 1))
    return output, {"input": input, "output": output}


image, kernel, channels = torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3), torch.zeros(4)
WEIGHTED: list[tuple[Callable[..., Any], tuple[Tensor, ...]]] = [
    (conv_add_relu_pattern, (image, kernel, channels, torch.zeros(1, 4, 6, 6))),
    (conv_relu_pattern, (image, kernel, channels)),
    (conv_pattern, (image, kernel, channels)),
    (linear_pattern, (torch.zeros(2, 3), torch.zeros(4, 3), channels)),
]
SHARING: list[tuple[Callable[..., Any], tuple[Tensor, ...]]] = [
    (max_pool_pattern, (image,)),
    (avg_pool_pattern, (image,)),
]


class BackendQuantizer(Quantizer):
    def __init__(self) -> None:
        super().__init__()
        self.global_config: QuantizationConfig | None = None

    def set_global(self, quantization_config: QuantizationConfig) -> BackendQuantizer:
        """Set global QuantizationConfig used for the backend."""
        self.global_config = quantization_config
        return self

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the graph with observers or fake quantizers."""
        assert self.global_config is not None
        for pattern, inputs in WEIGHTED:
            self._annotate_weighted(model, SubgraphMatcherWithNameNodeMap(pattern, inputs))
        for pattern, inputs in SHARING:
            self._annotate_sharing(model, SubgraphMatcherWithNameNodeMap(pattern, inputs))
        return model

    def _annotate_weighted(self, model: GraphModule, matcher: SubgraphMatcherWithNameNodeMap) -> None:
        config = self.global_config
        assert config is not None
        for match in matcher.match(model):
            name_node_map = match.name_node_map
            if _is_annotated(match.nodes):
                continue
            conv, output = name_node_map["conv"], name_node_map["output"]
            _mark_nodes_as_annotated(match.nodes)
            annotation = conv.meta["quantization_annotation"]
            annotation.input_qspec_map[name_node_map["input"]] = config.input_activation
            annotation.input_qspec_map[name_node_map["weight"]] = config.weight
            if "residual" in name_node_map:
                add = name_node_map["add"].meta["quantization_annotation"]
                add.input_qspec_map[name_node_map["residual"]] = config.input_activation
            output.meta["quantization_annotation"].output_qspec = config.output_activation

    def _annotate_sharing(self, model: GraphModule, matcher: SubgraphMatcherWithNameNodeMap) -> None:
        config = self.global_config
        assert config is not None
        for match in matcher.match(model):
            input_node, output_node = match.name_node_map["input"], match.name_node_map["output"]
            output_node.meta["quantization_annotation"] = QuantizationAnnotation(
                input_qspec_map={input_node: config.input_activation},
                output_qspec=SharedQuantizationSpec((input_node, output_node)),
                _annotated=True,
            )

    def validate(self, model: GraphModule) -> None:
        """Validate if the annotated graph is supported by the backend."""
        for node in calls(model, aten.conv2d.default):
            assert _is_annotated([node])


def _is_annotated(nodes: Any) -> bool:
    annotations = [node.meta.get("quantization_annotation") for node in nodes]
    return any(a is not None and a._annotated for a in annotations)


def _mark_nodes_as_annotated(nodes: Any) -> None:
    for node in nodes:
        node.meta["quantization_annotation"] = QuantizationAnnotation(_annotated=True)


@pytest.mark.usefixtures("linears_stay")
def test_a_toy_example_with_resnet18() -> None:
    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255 if has_vnni() else 127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12),
    )
    config = QuantizationConfig(
        input_activation=activation,
        output_activation=activation,
        weight=weight_quantization_spec,
        bias=None,
    )
    quantizer = BackendQuantizer().set_global(config)

    example_inputs = (torch.randn(2, 3, 64, 64),)
    m = resnet18().eval()
    exported = torch.export.export(m, example_inputs).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, quantizer)
    prepared(*example_inputs)  # calibration
    converted = convert_pt2e(prepared)

    assert not calls(converted, aten.batch_norm.default)
    for node in calls(converted, aten.conv2d.default):
        x, weight = node.args[:2]
        assert qd.is_dequantize(x)
        assert weight.target is qd.DEQUANTIZE_PER_CHANNEL
    lowered = lower_pt2e(converted, "x86_inductor")
    found = Counter(node.target for node in lowered.graph.nodes)
    assert found[torch.ops.onednn.qconv2d_pointwise.binary] == 8
    assert found[torch.ops.onednn.qconv_pointwise.default] == 12
    assert found[torch.ops.onednn.qlinear_pointwise.default] == 1
    assert not {aten.conv2d.default, aten.linear.default, aten.relu.default} & found.keys()
    with torch.no_grad():
        expected, actual = converted(*example_inputs), lowered(*example_inputs)
        assert (expected - m(*example_inputs)).pow(2).mean() < 0.03 * expected.pow(2).mean()
        assert (expected - actual).pow(2).mean() < 0.001 * expected.pow(2).mean()
