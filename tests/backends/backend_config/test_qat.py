"""prepare_qat_fx: quantization-aware training with QConfigs of fake quantizers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    QConfigMapping,
    convert_fx,
    decisions,
    disable_fake_quant,
    get_default_qat_qconfig_mapping,
    lower_pt2e,
    move_exported_model_to_eval,
    prepare_qat_fx,
)
from lowbit.backends import backend_config as bc
from lowbit.backends.backend_config import qconfig
from lowbit.backends.x86_inductor import has_vnni
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
            nn.ReLU(),
        )
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.dropout, self.linear = nn.Dropout(0.1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        return self.linear(self.dropout(x.mean((2, 3))))


X, LABELS = torch.linspace(-2, 3, 5 * 3 * 6 * 6).reshape(5, 3, 6, 6), torch.arange(5)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def train(prepared: GraphModule, steps: int = 4) -> list[float]:
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(prepared(X), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def statuses(model: GraphModule) -> dict[str, str]:
    return {d.node: ("" if d.status == "quantized" else "float: ") + d.reason for d in decisions(model)}


@pytest.mark.parametrize(
    "mapping",
    [
        *(
            pytest.param(get_default_qat_qconfig_mapping(backend, version), id=f"{backend}-{version}")
            for backend, version in (("x86", 0), ("x86", 1), ("qnnpack", 1), ("onednn", 1))
        ),
        pytest.param(QConfigMapping().set_global(qconfig.default_qat_qconfig_v2), id="v2"),
    ],
)
def test_trained_and_converted(mapping: QConfigMapping) -> None:
    model = Model().train()
    prepared = prepare_qat_fx(model, mapping, (X,))
    losses = train(prepared)
    assert losses[-1] < losses[0]
    move_exported_model_to_eval(prepared)
    converted = convert_fx(prepared)
    # The two do the same arithmetic.
    assert torch.equal(converted(X), prepared(X))
    assert not converted.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    found = statuses(converted)
    assert found["conv2d"] == found["relu"] == "conv2d-batchnorm2d-relu"
    assert found["conv2d_1"] == "conv2d-batchnorm2d"
    assert found["batch_norm"] == found["batch_norm_1"] == "batch-norm"
    assert found["add"] == found["relu_1"] == "add-relu"
    assert found["linear"] == "linear"
    # The model itself is as it was.
    assert model.bn.running_mean.abs().max() == 0


def test_without_fake_quantization_it_trains_as_the_model_does() -> None:
    model = Model().train()
    model.dropout.p = 0.0
    prepared = prepare_qat_fx(model, get_default_qat_qconfig_mapping(), (X,))
    prepared.apply(disable_fake_quant)
    F.cross_entropy(prepared(X), LABELS).backward()
    F.cross_entropy(model(X), LABELS).backward()
    gradients = dict(prepared.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad)
    torch.testing.assert_close(prepared.get_buffer("bn.running_var"), model.bn.running_var)


def test_a_checkpoint_goes_on() -> None:
    first = prepare_qat_fx(Model().train(), get_default_qat_qconfig_mapping(), (X,))
    train(first)
    second = prepare_qat_fx(Model().train(), get_default_qat_qconfig_mapping(), (X,))
    second.load_state_dict(first.state_dict())
    assert torch.equal(convert_fx(first)(X), convert_fx(second)(X))


def test_a_missing_fusion_pattern_leaves_batch_norm_in_training() -> None:
    int8 = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float)
    patterns = (nn.Linear, (nn.Conv2d, nn.ReLU))
    config = BackendConfig("mine").set_backend_pattern_configs(
        BackendPatternConfig(pattern).add_dtype_config(int8) for pattern in patterns
    )
    prepared = prepare_qat_fx(Model().train(), get_default_qat_qconfig_mapping(), (X,), backend_config=config)
    train(prepared)
    found = statuses(convert_fx(prepared))
    assert found["conv2d"] == found["relu"] == "float: missing-fusion-pattern"
    assert found["batch_norm"] == "float: convolution-not-quantized"
    assert found["linear"] == "linear"


def test_a_batch_norm_of_its_own() -> None:
    int8 = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float)
    config = BackendConfig("mine").set_backend_pattern_configs(
        BackendPatternConfig(pattern).add_dtype_config(int8) for pattern in (nn.Conv2d, nn.BatchNorm2d)
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    prepared = prepare_qat_fx(model, get_default_qat_qconfig_mapping(), (X,), backend_config=config)
    prepared(X).sum().backward()
    converted = convert_fx(prepared)
    # What BatchNorm reads is rounded, so it is not folded.
    assert len(converted.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)) == 1
    assert len(converted.graph.find_nodes(op="call_function", target=qd.QUANTIZE_PER_TENSOR)) == 3


def test_dynamic_training() -> None:
    mapping = QConfigMapping().set_object_type(nn.Linear, qconfig.default_dynamic_qat_qconfig)
    prepared = prepare_qat_fx(Model().train(), mapping, (X,))
    train(prepared)
    converted = convert_fx(prepared)
    found = statuses(converted)
    assert [node for node, status in found.items() if not status.startswith("float")] == ["linear"]
    assert len(converted.graph.find_nodes(op="call_function", target=qd.CHOOSE_QPARAMS)) == 1


@pytest.mark.usefixtures("linears_stay")
def test_lowered_to_x86_kernels() -> None:
    # 7 bits of activations, so that kernels without VNNI take them.
    prepared = prepare_qat_fx(
        Model().train(),
        get_default_qat_qconfig_mapping("x86"),
        (X,),
        backend_config=bc.get_x86_backend_config(),
    )
    train(prepared)
    converted = convert_fx(prepared)
    lowered = lower_pt2e(converted, "x86_inductor")
    kernels = torch.ops.onednn
    assert len(lowered.graph.find_nodes(op="call_function", target=kernels.qconv_pointwise.default)) == 2
    assert len(lowered.graph.find_nodes(op="call_function", target=kernels.qlinear_pointwise.default)) == 1
    assert has_vnni() or "saturates-without-vnni" not in {d.reason for d in decisions(lowered)}
    torch.testing.assert_close(lowered(X), converted(X), atol=0.05, rtol=0)
