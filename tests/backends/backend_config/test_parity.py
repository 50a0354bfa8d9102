"""The same tensors are quantized, with the same parameters, as by the peer: torch's FX graph mode.

As long as torch has it. Left out of the models is where the two differ on purpose: an addition of a number
observes its result here, where torch gives it the range of its input; the weight of a module counts
against the backend's dtypes here; and operators with fixed parameters stay float where their input is,
which torch would quantize with the range of the result. Dropout in evaluation is no operator here. And an
operator reads what the one before it writes if dtype and range are what it asks for, not the dtype alone.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit.backends import backend_config as ours
from lowbit.backends.backend_config.observers import default_weight_observer
from lowbit.errors import NothingQuantizedWarning
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule

peer = pytest.importorskip("torch.ao.quantization")
peer_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
peer_backends = pytest.importorskip("torch.ao.quantization.backend_config")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:QConfig:UserWarning"),
]

X = torch.linspace(-2, 3, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
        )
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.depthwise, self.hardswish = nn.Conv2d(4, 4, 3, groups=4), nn.Hardswish()
        self.pool, self.average = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.linear, self.gelu = nn.Linear(8, 4), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = self.hardswish(self.depthwise(self.pool(x)))
        x = self.average(torch.cat([x, x * x], 1))
        return self.relu(torch.sigmoid(self.linear(self.gelu(torch.flatten(x, 1)))))


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.up(F.relu(self.norm(x))))
        x = F.hardtanh(F.elu(F.avg_pool2d(x, 2))).mean(-1)
        return torch.matmul(x, x.transpose(1, 2)).tanh()


def parameters_of_the_peer(model: nn.Module, mapping: Any, config: Any) -> list[tuple[float, int]]:
    prepared = peer_fx.prepare_fx(copy.deepcopy(model), mapping, (X,), backend_config=config)
    prepared(X)
    converted = peer_fx.convert_to_reference_fx(prepared, backend_config=config)
    calls = converted.graph.find_nodes(op="call_function", target=torch.quantize_per_tensor)
    return sorted(
        (getattr(converted, call.args[1].target).item(), getattr(converted, call.args[2].target).item())
        for call in calls
    )


def parameters(converted: GraphModule) -> list[tuple[float, int]]:
    calls = converted.graph.find_nodes(op="call_function", target=qd.QUANTIZE_PER_TENSOR)
    return sorted((call.args[1], call.args[2]) for call in calls)


@pytest.mark.parametrize("model", [Image, Functions])
@pytest.mark.parametrize("name", ["native", "fbgemm", "qnnpack"])
@pytest.mark.parametrize("defaults", [False, True])
def test_the_same_quantization_parameters(model: type[nn.Module], name: str, defaults: bool) -> None:
    torch.manual_seed(0)
    made = model().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    # Not histograms: the peer searches their range otherwise.
    highest = 255 if defaults else 127
    qconfigs = (
        peer.QConfig(
            peer.MinMaxObserver.with_args(quant_min=0, quant_max=highest), peer.default_weight_observer
        ),
        lowbit.QConfig(
            lowbit.MinMaxObserver.with_args(quant_min=0, quant_max=highest), default_weight_observer
        ),
    )
    mappings = (
        (peer.get_default_qconfig_mapping("qnnpack"), lowbit.get_default_qconfig_mapping("qnnpack"))
        if defaults
        else (peer.QConfigMapping(), lowbit.QConfigMapping())
    )
    for mapping, qconfig in zip(mappings, qconfigs, strict=True):
        mapping.set_global(qconfig).set_object_type(nn.ConvTranspose2d, qconfig)
    wanted = parameters_of_the_peer(made, mappings[0], getattr(peer_backends, f"get_{name}_backend_config")())
    prepared = lowbit.prepare_fx(
        made,
        mappings[1],
        (X,),
        backend_config=getattr(ours, f"get_{name}_backend_config")(),
    )
    prepared(X)
    found = parameters(lowbit.convert_fx(prepared))
    assert len(found) == len(wanted) > 6
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=0)


# The handbook sets a QConfig for BatchNorm, which the model need not have.
@pytest.mark.filterwarnings("ignore::lowbit.errors.IneffectiveSettingWarning")
@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("satisfies", [False, True])
def test_the_handbooks_model(use_bn: bool, satisfies: bool) -> None:
    """The peer quantizes what it prints in the handbook, and so do we; the tutorial's test has our API."""
    torch.manual_seed(0)

    class MyModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.conv, self.bn = (
                nn.Linear(8, 3),
                nn.Conv2d(3, 3, 3, padding=(1, 1)),
                nn.BatchNorm2d(3),
            )
            self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.linear(x))
            return self.sigmoid(self.relu(self.bn(x) if use_bn else x))

    intrinsic = pytest.importorskip("torch.ao.nn.intrinsic")
    model = MyModel().eval()
    found = []
    for api, configs in ((peer, peer_backends), (lowbit, lowbit)):
        limits = configs.DTypeWithConstraints(
            dtype=torch.quint8,
            quant_min_lower_bound=0,
            quant_max_upper_bound=255,
            scale_min_lower_bound=2**-12,
        )
        int8 = configs.DTypeConfig(limits, limits, torch.qint8, torch.float)
        linear = configs.BackendPatternConfig(nn.Linear).add_dtype_config(int8).set_root_module(nn.Linear)
        fusion = configs.BackendPatternConfig((nn.Conv2d, nn.ReLU)).set_fused_module(intrinsic.ConvReLU2d)
        fusion.set_fuser_method(lambda is_qat, conv, relu: intrinsic.ConvReLU2d(conv, relu))
        fused = configs.BackendPatternConfig(intrinsic.ConvReLU2d).add_dtype_config(int8)
        for config in (linear, fused):
            # What the peer needs in order to convert.
            reference = pytest.importorskip("torch.ao.nn.quantized.reference")
            config.set_root_module(nn.Linear if config is linear else nn.Conv2d)
            config.set_reference_quantized_module(reference.Linear if config is linear else reference.Conv2d)
        backend_config = configs.BackendConfig("my_backend")
        backend_config.set_backend_pattern_configs([linear, fusion, fused])
        eps = 2**-12 if satisfies else 2**-13
        weight = peer.default_weight_observer if api is peer else default_weight_observer
        qconfig = api.QConfig(api.MinMaxObserver.with_args(quant_min=0, quant_max=127, eps=eps), weight)
        mapping = api.QConfigMapping()
        for kind in (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU):
            mapping.set_object_type(kind, qconfig)
        if api is peer:
            found.append(parameters_of_the_peer(model, mapping, backend_config))
        else:
            with nullcontext() if satisfies else pytest.warns(NothingQuantizedWarning):
                prepared = lowbit.prepare_fx(model, mapping, (X,), backend_config=backend_config)
            prepared(X)
            found.append(parameters(lowbit.convert_fx(prepared)))
    wanted, actual = found
    assert len(actual) == len(wanted) == (0 if not satisfies else 2 if use_bn else 3)
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(wanted), rtol=1e-5, atol=0)
