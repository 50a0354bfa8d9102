"""lowbit quantizes PyTorch models with compiler passes on FX graphs."""

# This has to be there before torch is imported.
from .tools import interrupts as _interrupts  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
from . import backends, errors
from .aot_package import package_pt2e
from .backends.arm_inductor import ArmInductorQuantizer, get_default_arm_inductor_quantization_config
from .backends.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
    ObservationType,
    QConfig,
    QConfigMapping,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from .backends.composable import ComposableQuantizer
from .backends.embedding import EmbeddingQuantizer, get_default_embedding_quantization_config
from .backends.x86_inductor import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_x86_inductor_linear_dynamic_fp16_config,
    get_x86_inductor_linear_weight_only_config,
)
from .backends.xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from .backends.xpu_inductor import XPUInductorQuantizer, get_default_xpu_inductor_quantization_config
from .export_utils import (
    allow_exported_model_train_eval,
    freeze_bn_stats,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)
from .ir.annotation import QuantizationAnnotation
from .ir.coverage import Coverage
from .ir.ledger import Decision
from .ir.observers import (
    DerivedObserver,
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    ObserverOrFakeQuantize,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
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
from .quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from .quantize_pt2e import (
    calibrate,
    convert_pt2e,
    coverage,
    decisions,
    lower_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from .tools.explain import Explanation, explain, why_shared
from .tools.lowering_report import LoweringReport, lowering_report

__all__ = [
    "ArmInductorQuantizer",
    "BackendConfig",
    "BackendPatternConfig",
    "ComposableQuantizer",
    "Coverage",
    "DTypeConfig",
    "DTypeWithConstraints",
    "Decision",
    "DerivedObserver",
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "EmbeddingQuantizer",
    "Explanation",
    "FakeQuantize",
    "FixedQParamsFakeQuantize",
    "FixedQParamsObserver",
    "FixedQParamsQuantizationSpec",
    "FusedMovingAvgObsFakeQuantize",
    "HistogramObserver",
    "LearnableFakeQuantize",
    "LoweringReport",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "ObservationType",
    "ObserverBase",
    "ObserverOrFakeQuantize",
    "Pass",
    "PassContext",
    "PassManager",
    "PerChannelMinMaxObserver",
    "Pipeline",
    "PlaceholderObserver",
    "QConfig",
    "QConfigMapping",
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
    "XNNPACKQuantizer",
    "XPUInductorQuantizer",
    "allow_exported_model_train_eval",
    "backends",
    "calibrate",
    "convert_fx",
    "convert_pt2e",
    "coverage",
    "decisions",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "errors",
    "explain",
    "freeze_bn_stats",
    "get_default_arm_inductor_quantization_config",
    "get_default_embedding_quantization_config",
    "get_default_qat_qconfig_mapping",
    "get_default_qconfig_mapping",
    "get_default_x86_inductor_quantization_config",
    "get_default_xpu_inductor_quantization_config",
    "get_source_partitions",
    "get_stage",
    "get_symmetric_quantization_config",
    "get_x86_inductor_linear_dynamic_fp16_config",
    "get_x86_inductor_linear_weight_only_config",
    "lower_pt2e",
    "lowering_report",
    "move_exported_model_to_eval",
    "move_exported_model_to_train",
    "package_pt2e",
    "prepare_fx",
    "prepare_pt2e",
    "prepare_qat_fx",
    "prepare_qat_pt2e",
    "register_pass",
    "why_shared",
]
