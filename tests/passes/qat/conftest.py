"""Generated convolution → BatchNorm blocks, and a quantizer that annotates all of them."""

from __future__ import annotations

import random

import pytest
import torch
from lowbit import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)
from torch import nn

_aten = torch.ops.aten
CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d),
}
POSTS = (nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Tanh)
WEIGHTED = (
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.conv1d.padding,
    _aten.conv2d.padding,
    _aten.conv3d.padding,
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
    _aten.linear.default,
)
ENDS = (_aten.batch_norm.default,)


class Block(nn.Module):
    """One convolution or linear, BatchNorm and what stands behind them, drawn by ``draw``."""

    def __init__(self, draw: random.Random):
        super().__init__()
        self.dims = draw.choice((0, 0, 1, 1, 2, 2, 2, 2, 3))
        groups = draw.choice((1, 1, 2))
        inputs, outputs = groups * draw.randint(1, 3), groups * draw.randint(1, 3)
        bias = draw.random() < 0.5
        transposed = False
        if self.dims == 0:
            self.conv: nn.Module = nn.Linear(inputs, outputs, bias)
            norm: type[nn.Module] = nn.BatchNorm1d
        else:
            plain, transpose, norm = CONVOLUTIONS[self.dims]
            transposed = draw.random() < 0.3
            kernel, stride = draw.randint(1, 3), draw.randint(1, 2)
            options = {"groups": groups, "bias": bias, "dilation": draw.randint(1, 2)}
            if transposed:
                self.conv = transpose(inputs, outputs, kernel, stride, draw.randint(0, kernel - 1), **options)
            else:
                padding = draw.choice((0, 1, "same", "valid"))
                stride = 1 if padding == "same" else stride
                self.conv = plain(inputs, outputs, kernel, stride, padding, **options)
        self.norm = norm(
            outputs,
            eps=draw.choice((1e-5, 1e-3, 0.1)),
            momentum=draw.choice((0.1, 0.03, 0.5)),
            affine=draw.random() < 0.85,
        )
        self.post = draw.choice(POSTS)()
        self.residual = draw.random() < 0.3
        self.frozen = draw.random() < 0.15
        self.inputs = inputs
        # Scales of any sign and size, and channels that are off.
        with torch.no_grad():
            for p in self.conv.parameters():
                p.copy_(torch.tensor([draw.uniform(-1, 1) for _ in range(p.numel())]).reshape(p.shape))
            for p in self.norm.parameters():
                p.copy_(torch.tensor([draw.choice((0.0, 1e-4, -0.5, 1.0, 3.0)) for _ in range(outputs)]))
            self.norm.running_mean.copy_(torch.tensor([draw.uniform(-1, 1) for _ in range(outputs)]))
            self.norm.running_var.copy_(torch.tensor([draw.uniform(0.1, 4) for _ in range(outputs)]))

    def example(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(4, self.inputs, *(6,) * self.dims, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return self.post(y + y.mean() * 0.5 if self.residual else y)

    def train(self, mode: bool = True) -> Block:
        super().train(mode)
        if self.frozen:
            self.norm.eval()
        return self


class Blocks(nn.Module):
    """Blocks side by side: exporting them together is what makes many of them cheap."""

    def __init__(self, seed: int, count: int):
        super().__init__()
        draw = random.Random(seed)
        self.blocks = nn.ModuleList(Block(draw) for _ in range(count))

    def example(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(block.example(generator) for block in self.blocks)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(block(x) for block, x in zip(self.blocks, inputs, strict=True))


class AnnotateAll(Quantizer):
    """Quantizes the inputs and weights of convolutions and linears, and the outputs of BatchNorms."""

    def __init__(self, per_channel: bool = True):
        activation = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver)
        self.activation = QuantizationSpec(torch.uint8, activation, 0, 255, torch.per_tensor_affine)
        observer = MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
        self.weight = QuantizationSpec(
            torch.int8,
            FakeQuantize.with_args(observer=observer),
            -128,
            127,
            torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
            ch_axis=0 if per_channel else None,
        )

    def annotate(self, model):
        for node in model.graph.nodes:
            if node.target in WEIGHTED:
                specs = {node.args[0]: self.activation, node.args[1]: self.weight}
                node.meta["quantization_annotation"] = QuantizationAnnotation(specs, _annotated=True)
            elif node.target in ENDS:
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    output_qspec=self.activation, _annotated=True
                )
        return model

    def validate(self, model):
        pass


@pytest.fixture(scope="session")
def make_blocks():
    return Blocks


@pytest.fixture(scope="session")
def annotate_all():
    return AnnotateAll
