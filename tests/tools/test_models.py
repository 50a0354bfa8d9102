"""The models: torchvision's layout, deterministic, and with activations that neither explode nor die."""

from __future__ import annotations

import pytest
import torch
from lowbit.tools.models import (
    conv_bn_relu_chain,
    digits_resnet,
    linear_relu_chain,
    one_input_many_linears,
    residual_chain,
    resnet18,
    resnet50,
)
from torch import nn

CHEAP = {
    "digits": (digits_resnet, (2, 1, 8, 8), (2, 10)),
    "conv-bn-relu": (lambda **kw: conv_bn_relu_chain(60, **kw), (2, 4, 8, 8), (2, 4, 8, 8)),
    "linear-relu": (lambda **kw: linear_relu_chain(60, **kw), (2, 8), (2, 8)),
    "residual": (lambda **kw: residual_chain(60, **kw), (2, 4, 8, 8), (2, 4, 8, 8)),
    "fan-out": (lambda **kw: one_input_many_linears(60, **kw), (2, 8), (2, 480)),
}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# The number of parameters and of state-dict entries of torchvision's models, which its documentation gives.
@pytest.mark.parametrize(
    ("make", "parameters", "entries"), [(resnet18, 11_689_512, 122), (resnet50, 25_557_032, 320)]
)
def test_resnets_have_torchvisions_parameters(make, parameters: int, entries: int) -> None:
    model = make()
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = model.state_dict()
    assert len(state) == entries
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.num_batches_tracked",
        "layer4.1.bn2.weight",
        "fc.bias",
    } <= set(state)


@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_each_block_calls_one_relu_more_than_once(make) -> None:
    block = make().layer1[0]
    assert [name for name, child in block.named_children() if isinstance(child, nn.ReLU)] == ["relu"]
    calls = []
    block.relu.register_forward_hook(lambda *_: calls.append(1))
    block(noise(1, 64, 8, 8))
    assert len(calls) == (2 if make is resnet18 else 3)


@torch.no_grad()
@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_activations_of_resnets_stay_in_range(make) -> None:
    model, spread = make(), {}
    for name, module in model.named_modules():
        if name.startswith("layer") and name.count(".") == 1:
            module.register_forward_hook(
                lambda _m, _i, out, name=name: spread.update({name: out.std().item()})
            )
    logits = model(noise(1, 3, 64, 64))
    assert logits.shape == (1, 1000)
    assert len(spread) == (8 if make is resnet18 else 16)
    assert all(0.1 < value < 10 for value in spread.values()), spread


@torch.no_grad()
@pytest.mark.parametrize(("make", "inputs", "outputs"), CHEAP.values(), ids=CHEAP)
def test_models_have_the_shapes_they_say(make, inputs, outputs) -> None:
    model = make()
    assert not model.training
    out = model(noise(*inputs))
    assert out.shape == outputs
    assert out.isfinite().all()
    assert 0 < out.std() < 10


@pytest.mark.parametrize(("make", "_inputs", "_outputs"), CHEAP.values(), ids=CHEAP)
def test_a_seed_decides_every_bit(make, _inputs, _outputs) -> None:
    torch.manual_seed(1)
    first = make(seed=3).state_dict()
    torch.manual_seed(2)
    again, other = make(seed=3).state_dict(), make(seed=4).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key in first if key.endswith("weight")]
    assert weights
    assert not any(torch.equal(first[key], other[key]) for key in weights)


def test_models_grow_with_n() -> None:
    for make in (conv_bn_relu_chain, linear_relu_chain, residual_chain, one_input_many_linears):
        few, many = (sum(1 for m in make(n).modules() if not list(m.children())) for n in (3, 9))
        assert many == 3 * few
