"""Training graphs are annotated as inference will see them: BatchNorm folded, no dropout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    XNNPACKQuantizer,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
)
from lowbit.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torch import Tensor, nn
from torch.fx import GraphModule

X = torch.arange(-64.0, 64.0).reshape(8, 16) / 32


def x86(*, is_qat: bool) -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=True)
    return X86InductorQuantizer().set_global(config)


def xnnpack(*, is_qat: bool) -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=is_qat))


QUANTIZERS = pytest.mark.parametrize("quantizer", [x86, xnnpack])


class Net(nn.Module):
    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(16)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self, self.first(x)))


def added_to_its_relu(x: Tensor) -> Tensor:
    return x.relu() + x


BETWEEN: dict[str, Callable[..., Tensor]] = {
    "dropout": lambda m, x: m.drop(x.relu()),
    "before relu": lambda m, x: m.drop(x).relu(),
    "chain": lambda m, x: m.drop(m.drop(x.relu())),
    "behind BatchNorm": lambda m, x: m.drop(m.norm(x)),
    "of one tensor twice": lambda m, x: m.drop(x.relu()) + m.second.weight.sum() * m.drop(x.relu()),
}
"""What stands between two linears. Their dropouts have one reader each."""

STAYING: dict[str, Callable[..., Tensor]] = {
    "with its source": lambda m, x: m.drop(x) + x,
    "read twice": lambda m, x: added_to_its_relu(m.drop(x)),
}
"""Here what reads through the dropout and what does not would be one edge."""


def exported(between: Callable[..., Tensor], *, training: bool) -> GraphModule:
    torch.manual_seed(0)
    model = Net(between)
    model.norm.running_mean.copy_(torch.arange(16.0) / 8)
    return torch.export.export(model.train(training), (X,)).module()


def quantized(gm: GraphModule, quantizer: Callable[..., X86InductorQuantizer]) -> GraphModule:
    prepared = prepare_pt2e(gm, quantizer(is_qat=False))
    prepared(X)
    return convert_pt2e(prepared)


def trained(gm: GraphModule, quantizer: Callable[..., X86InductorQuantizer]) -> GraphModule:
    prepared = prepare_qat_pt2e(gm, quantizer(is_qat=True))
    prepared(X)
    return convert_pt2e(prepared.eval())


def operators(gm: GraphModule) -> list[str]:
    return sorted(str(node.target) for node in gm.graph.nodes if node.op == "call_function")


@QUANTIZERS
@pytest.mark.parametrize("name", BETWEEN)
def test_training_quantizes_what_calibration_does(
    name: str, quantizer: Callable[..., X86InductorQuantizer]
) -> None:
    calibrated = quantized(exported(BETWEEN[name], training=False), quantizer)
    assert operators(trained(exported(BETWEEN[name], training=True), quantizer)) == operators(calibrated)


@QUANTIZERS
@pytest.mark.parametrize("name", STAYING)
def test_edges_that_would_be_one_stay_two(name: str, quantizer: Callable[..., X86InductorQuantizer]) -> None:
    prepared = prepare_qat_pt2e(exported(STAYING[name], training=True), quantizer(is_qat=True))
    prepared(X)
    evaluated = prepared.eval()(X)
    assert torch.equal(convert_pt2e(prepared)(X), evaluated)


@QUANTIZERS
def test_ranges_are_those_of_inference(quantizer: Callable[..., X86InductorQuantizer]) -> None:
    """Dropout scales what it keeps by 1 / (1 - p); a range of that is twice as wide as inference needs."""

    def scales(gm: GraphModule) -> list[float]:
        quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
        return [float(node.args[1]) for node in gm.graph.find_nodes(op="call_function", target=quantize)]

    calibrated = scales(quantized(exported(BETWEEN["dropout"], training=False), quantizer))
    learnt = scales(trained(exported(BETWEEN["dropout"], training=True), quantizer))
    # Not to the bit: calibration may cut the ends of its histogram, and training moves its ranges.
    assert learnt == pytest.approx(calibrated, rel=0.3)
