"""Models that the demo, the benchmarks and the tests quantize: seeded, and defined here in full."""

from .bert import BERT_BASE, MINILM, Bert, BertConfig, bert, bert_base, minilm
from .catalogue import CATALOGUE, CatalogueEntry
from .chains import conv_bn_relu_chain, linear_relu_chain, residual_chain
from .densenet import DenseNet, digits_densenet
from .digits import DigitsResNet, digits_resnet
from .fan_out import FanOut, one_input_many_linears
from .lstm import LSTMTagger, lstm_tagger
from .mobilenet_v2 import MobileNetV2, mobilenet_v2
from .mobilenet_v3 import MobileNetV3, digits_mobilenet_v3, mobilenet_v3_small
from .resnet import ResNet, resnet18, resnet50
from .vit import VisionTransformer, ViTConfig, vit_small

__all__ = [
    "BERT_BASE",
    "CATALOGUE",
    "MINILM",
    "Bert",
    "BertConfig",
    "CatalogueEntry",
    "DenseNet",
    "DigitsResNet",
    "FanOut",
    "LSTMTagger",
    "MobileNetV2",
    "MobileNetV3",
    "ResNet",
    "ViTConfig",
    "VisionTransformer",
    "bert",
    "bert_base",
    "conv_bn_relu_chain",
    "digits_densenet",
    "digits_mobilenet_v3",
    "digits_resnet",
    "linear_relu_chain",
    "lstm_tagger",
    "minilm",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "one_input_many_linears",
    "residual_chain",
    "resnet18",
    "resnet50",
    "vit_small",
]
