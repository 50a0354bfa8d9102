"""Models that the demo, the benchmarks and the tests quantize: seeded, and defined here in full."""

from .chains import conv_bn_relu_chain, linear_relu_chain, residual_chain
from .digits import DigitsResNet, digits_resnet
from .fan_out import FanOut, one_input_many_linears
from .resnet import ResNet, resnet18, resnet50

__all__ = [
    "DigitsResNet",
    "FanOut",
    "ResNet",
    "conv_bn_relu_chain",
    "digits_resnet",
    "linear_relu_chain",
    "one_input_many_linears",
    "residual_chain",
    "resnet18",
    "resnet50",
]
