"""lowbit quantizes PyTorch models with compiler passes on FX graphs."""

from . import backends, errors
from .backends.x86_inductor import X86InductorQuantizer, get_default_x86_inductor_quantization_config
from .ir.annotation import QuantizationAnnotation
from .ir.ledger import Decision
from .ir.observers import (
    DerivedObserver,
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    ObserverOrFakeQuantize,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from .ir.quantizer import Quantizer
from .ir.specs import (
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationConfig,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from .ir.stages import Stage, get_stage
from .matchers.source_partitions import SourcePartition, get_source_partitions
from .matchers.subgraph import SubgraphMatcherWithNameNodeMap
from .passes import Pass, PassContext, PassManager, Pipeline, register_pass
from .quantize_pt2e import calibrate, convert_pt2e, decisions, lower_pt2e, prepare_pt2e

__all__ = [
    "Decision",
    "DerivedObserver",
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "FixedQParamsObserver",
    "FixedQParamsQuantizationSpec",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObserverBase",
    "ObserverOrFakeQuantize",
    "Pass",
    "PassContext",
    "PassManager",
    "PerChannelMinMaxObserver",
    "Pipeline",
    "PlaceholderObserver",
    "QuantizationAnnotation",
    "QuantizationConfig",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "Quantizer",
    "SharedQuantizationSpec",
    "SourcePartition",
    "Stage",
    "SubgraphMatcherWithNameNodeMap",
    "X86InductorQuantizer",
    "backends",
    "calibrate",
    "convert_pt2e",
    "decisions",
    "errors",
    "get_default_x86_inductor_quantization_config",
    "get_source_partitions",
    "get_stage",
    "lower_pt2e",
    "prepare_pt2e",
    "register_pass",
]
