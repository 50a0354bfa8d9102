"""BatchNorm in patterns: whose QConfig counts, and that it is folded."""

from __future__ import annotations

import pytest
import torch
from lowbit import (
    HistogramObserver,
    QConfig,
    convert_fx,
    decisions,
    get_default_qconfig_mapping,
    move_exported_model_to_eval,
    prepare_fx,
    prepare_qat_fx,
)
from lowbit.backends import backend_config as bc
from lowbit.backends.backend_config import observers
from lowbit.ir import quantized_decomposed as qd
from torch import nn
from torch.fx import GraphModule, Node

X = torch.linspace(-2, 3, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


class Chain(nn.Sequential):
    """A model whose BatchNorm has statistics."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        torch.manual_seed(0)
        parts[1].running_mean.uniform_(-1, 1)
        parts[1].running_var.uniform_(0.5, 2)


def per_tensor(backend: str) -> QConfig:
    return QConfig(bc.get_default_qconfig(backend).activation, observers.default_weight_observer)


def calls(model: GraphModule, target: object) -> list[Node]:
    return model.graph.find_nodes(op="call_function", target=target)


def test_what_a_qconfig_says_of_weights_is_nothing_to_what_has_none() -> None:
    mapping = get_default_qconfig_mapping("onednn").set_object_type(nn.Conv2d, per_tensor("onednn"))
    prepared = prepare_fx(Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), mapping, (X,))
    prepared(X)
    converted = convert_fx(prepared)
    assert {d.reason for d in decisions(converted)} == {"conv2d-batchnorm2d-relu"}
    # The weight is quantized as that of the convolution is to be.
    assert not calls(converted, qd.DEQUANTIZE_PER_CHANNEL)


def test_what_a_qconfig_says_of_activations_has_to_agree() -> None:
    other = QConfig(HistogramObserver.with_args(eps=2**-8), per_tensor("onednn").weight)
    mapping = get_default_qconfig_mapping("onednn").set_object_type(nn.ReLU, other)
    prepared = prepare_fx(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), mapping, (X,))
    assert {d.node: d.reason for d in decisions(prepared)} == {"conv2d": "conv2d", "relu": "relu"}


TRANSPOSED = [
    (nn.ConvTranspose1d, nn.BatchNorm1d, (6,)),
    (nn.ConvTranspose2d, nn.BatchNorm2d, (5, 6)),
    (nn.ConvTranspose3d, nn.BatchNorm3d, (3, 4, 5)),
]


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("conv", "norm", "size"), TRANSPOSED)
def test_batch_norm_behind_transposed_convolutions_is_folded_by_default(
    conv: type[nn.Module], norm: type[nn.Module], size: tuple[int, ...], relu: bool, is_qat: bool
) -> None:
    """Default mappings of x86 have these convolutions per tensor, and BatchNorm as anything else."""
    model = Chain(conv(3, 4, 3), norm(4), *[nn.ReLU()] * relu).train(is_qat)
    x = torch.randn(2, 3, *size)
    if is_qat:
        prepared = prepare_qat_fx(model, bc.get_default_qat_qconfig_mapping(), (x,))
    else:
        prepared = prepare_fx(model, get_default_qconfig_mapping(), (x,))
        # Folded, and nothing else done yet, it is the same function.
        with torch.no_grad():
            torch.testing.assert_close(prepared(x), model(x), rtol=1e-5, atol=1e-6)
    prepared(x)
    converted = convert_fx(move_exported_model_to_eval(prepared) if is_qat else prepared)
    assert not calls(converted, torch.ops.aten.batch_norm.default)
    name = f"{conv.__name__}-{norm.__name__}".lower()
    kept = [d.reason for d in decisions(converted) if not d.node.startswith("batch_norm")]
    assert kept == [name, "relu"][: 1 + relu]
