"""What a block trained with fake quantization means, exactly: the float block, and the converted one."""

from __future__ import annotations

import copy

import lowbit
import pytest
import torch
from lowbit import (
    QuantizationAnnotation,
    X86InductorQuantizer,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

# 20 × 25 blocks.
COUNT = 25


@pytest.fixture(scope="module", params=range(20))
def seed(request):
    """A parameter of the module: the tests of one seed run one after the other, in one process."""
    return request.param


@pytest.fixture(scope="module")
def exported(make_blocks, seed):
    """The blocks of a seed and their export, which is what takes time."""
    model = make_blocks(seed, COUNT).train()
    return model, torch.export.export(model, model.example()).module()


def loss_of(outputs):
    """A loss that sees every element of every output with a weight of its own."""
    return sum(
        (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)).square().mean() for y in outputs
    )


def relative(found, expected):
    return (found - expected).abs().max() / expected.abs().max().clamp_min(1e-3)


def test_without_rounding_it_is_the_float_block(exported, annotate_all, seed):
    model, graph = exported
    prepared = prepare_qat_pt2e(graph, annotate_all(per_channel=seed % 2 == 0))
    model = copy.deepcopy(model)
    assert len(prepared_blocks(prepared)) == COUNT
    prepared.apply(lowbit.disable_fake_quant)
    prepared.apply(lowbit.disable_observer)
    model, prepared = model.double(), prepared.double()

    for step in range(2):
        inputs = [x.double() for x in model.example(step)]
        losses = [loss_of(m(*inputs)) for m in (model, prepared)]
        assert relative(losses[1], losses[0]) <= 1e-9
        for m, loss in zip((model, prepared), losses, strict=True):
            m.zero_grad()
            loss.backward()
        gradients = {name: p.grad for name, p in prepared.named_parameters()}
        for name, p in model.named_parameters():
            # A frozen BatchNorm's own parameters, say, may be read by nothing.
            assert relative(gradients[name], p.grad) <= 1e-9, name
        with torch.no_grad():
            for m in (model, prepared):
                for p in m.parameters():
                    p.sub_(0.1 * p.grad)
        buffers = dict(model.named_buffers())
        for name, buffer in prepared.named_buffers():
            if name in buffers:
                assert relative(buffer.double(), buffers[name].double()) <= 1e-12, name

    model.eval()
    prepared.eval()
    for y, expected in zip(prepared(*inputs), model(*inputs), strict=True):
        assert relative(y, expected) <= 1e-12


def prepared_blocks(prepared):
    return [n for n in prepared.graph.nodes if n.meta.get("lowbit.conv_bn") is not None]


def test_the_converted_model_is_the_evaluated_one(exported, annotate_all, seed):
    model, graph = exported
    prepared = prepare_qat_pt2e(graph, annotate_all(per_channel=seed % 2 == 0))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    for step in range(2):
        optimizer.zero_grad()
        loss_of(prepared(*model.example(step))).backward()
        optimizer.step()

    # From either mode; that both give one model is test_fold_conv_bn's to say.
    converted = convert_pt2e(prepared.train(seed % 2 == 0))
    prepared.eval()
    inputs = model.example(7)
    with torch.no_grad():
        for y, expected in zip(converted(*inputs), prepared(*inputs), strict=True):
            assert torch.equal(y, expected)


class WritesLowPrecision(X86InductorQuantizer):
    """Quantizes what the blocks return as well, as an operator behind them would ask for."""

    def annotate(self, model):
        super().annotate(model)
        for node in model.graph.output_node().all_input_nodes:
            annotation = node.meta.get("quantization_annotation", QuantizationAnnotation())
            annotation.output_qspec = self.config.input_activation
            node.meta["quantization_annotation"] = annotation
        return model


def test_lowering_is_within_one_step_of_the_converted_model(exported, seed):
    model, graph = exported
    quantizer = WritesLowPrecision()
    # CPUs without VNNI have kernels for 7 bits only.
    quantizer.config = get_default_x86_inductor_quantization_config(is_qat=True, reduce_range=not has_vnni())
    prepared = prepare_qat_pt2e(graph, quantizer.set_global(quantizer.config))
    prepared(*model.example())
    converted = convert_pt2e(prepared)
    lowered = lower_pt2e(converted)
    inputs = model.example(7)
    with torch.no_grad():
        outputs = zip(converted(*inputs), lowered(*inputs), strict=True)
        steps = [node.args[1] for node in converted.graph.output_node().all_input_nodes]
        for (expected, y), step in zip(outputs, steps, strict=True):
            # The one step, and how finely float32 tells values apart.
            assert (y - expected).abs().max() <= step * (1 + 1e-4)
    # Each convolution and linear has become a kernel, or the ledger says why not.
    weighted = [d for d in decisions(lowered) if any(name in d.target for name in ("conv", "linear"))]
    assert len(weighted) == COUNT
    kernels = [n for n in lowered.graph.nodes if "pointwise" in str(n.target)]
    assert len(kernels) == sum(d.status == "quantized" for d in weighted) > COUNT // 2
    left = {d.reason for d in weighted if d.status != "quantized"}
    assert left <= {
        "no-int8-kernel",  # transposed
        "asymmetric-same-padding",
        "window-in-padding",
        "column-under-stride",
    }
