"""The table of a BackendConfig, and that it is true: for its cells models are quantized so, and no others."""

from __future__ import annotations

import pytest
import torch
from lowbit import (
    BackendConfig,
    BackendPatternConfig,
    ComposableQuantizer,
    DTypeConfig,
    EmbeddingQuantizer,
    HistogramObserver,
    MinMaxObserver,
    ObservationType,
    PlaceholderObserver,
    QConfig,
    QConfigMapping,
    convert_fx,
    decisions,
    get_default_qconfig_mapping,
    prepare_fx,
)
from lowbit.backends import Capability
from lowbit.backends.backend_config import (
    get_native_backend_config,
    get_qnnpack_backend_config,
    qconfig,
)
from lowbit.backends.backend_config.quantizer import BackendConfigQuantizer
from lowbit.errors import NothingQuantizedWarning
from lowbit.ir import quantized_decomposed as qd
from lowbit.matchers.operator_pattern import Mode
from torch import Tensor, nn

X, INDICES = torch.linspace(-2, 3, 72).reshape(2, 1, 6, 6), torch.arange(4)


def cells(config: BackendConfig, *, is_qat: bool = False) -> dict[tuple[str, str], Capability]:
    quantizer = BackendConfigQuantizer(config, get_default_qconfig_mapping(), is_qat=is_qat)
    table = quantizer.quantization_capabilities()
    found = {(cell.pattern, cell.preset): cell for cell in table}
    assert len(found) == len(table)
    return found


MODELS: dict[str, tuple[nn.Module, Tensor]] = {
    "conv2d": (nn.Conv2d(1, 2, 3), X),
    "conv2d-relu": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), X),
    "linear": (nn.Linear(6, 4), X),
    "linear-relu": (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), X),
    "hardswish": (nn.Hardswish(), X),
    "layernorm": (nn.LayerNorm(6), X),
    "embedding": (nn.Embedding(5, 4), INDICES),
    "maxpool2d": (nn.MaxPool2d(2), X),
}
QCONFIGS = {
    "static-uint8": qconfig.default_qconfig,
    "static-int8": qconfig.default_symmetric_qnnpack_qconfig,
    "dynamic-uint8": qconfig.default_dynamic_qconfig,
    "float16-weight": qconfig.float16_dynamic_qconfig,
    "weight-only-uint8": qconfig.float_qparams_weight_only_qconfig,
}
NO_WEIGHT = QConfig(HistogramObserver.with_args(dtype=torch.quint8), PlaceholderObserver)


@pytest.mark.parametrize("name", ["native", "qnnpack"])
@pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")
def test_the_table_says_what_is_quantized(name: str) -> None:
    config = {"native": get_native_backend_config, "qnnpack": get_qnnpack_backend_config}[name]()
    table = cells(config)
    assert {preset for _, preset in table} == set(QCONFIGS) - ({"static-int8"} if name == "native" else set())
    checked = 0
    for pattern, (model, x) in MODELS.items():
        for preset in {preset: None for _, preset in table}:
            cell = table.get((pattern, preset))
            asked = NO_WEIGHT if (pattern, preset) == ("layernorm", "static-uint8") else QCONFIGS[preset]
            prepared = prepare_fx(
                model.eval(), QConfigMapping().set_global(asked), (x,), backend_config=config
            )
            prepared(x)
            converted = convert_fx(prepared)
            found = {d.reason for d in decisions(converted) if d.status == "quantized"}
            # Backends need not have a row at all.
            assert (found == {pattern}) == (cell is not None and cell.supported), (pattern, preset)
            if cell is not None and cell.supported and cell.mode in (Mode.STATIC, Mode.DYNAMIC):
                dtypes = {n.args[-1] for n in converted.graph.nodes if qd.is_quantize(n)}
                assert dtypes == {cell.activation}, (pattern, preset)
            if cell is not None and cell.weight is not None:
                stored = {
                    t.dtype for key, t in converted.state_dict().items() if "weight" in key and t.dim() > 1
                }
                assert stored == {cell.weight}, (pattern, preset)
            checked += 1
    assert checked == len(MODELS) * len({preset for _, preset in table})


def test_patterns_that_are_fused_or_not_observed_stay_float() -> None:
    int8 = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float)
    silent = BackendPatternConfig(nn.ReLU).add_dtype_config(int8)
    silent.set_observation_type(ObservationType.INPUT_OUTPUT_NOT_OBSERVED)
    fused = BackendPatternConfig((nn.Linear, nn.ReLU)).set_fuser_method(lambda *args: None)
    config = BackendConfig("mine").set_backend_pattern_configs(
        [BackendPatternConfig(nn.Linear).add_dtype_config(int8), fused, silent]
    )
    table = cells(config)
    assert {key: cell.dtypes for key, cell in table.items()} == {
        ("linear", "static-uint8"): "uint8 by int8 → uint8",
        ("linear-relu", "static-uint8"): "float",
        ("relu", "static-uint8"): "float",
    }
    assert {cell.backend for cell in table.values()} == {"mine"}


def test_in_training_and_in_a_composition() -> None:
    config = get_native_backend_config()
    trained = cells(config, is_qat=True)
    assert all(cell.is_qat and preset.endswith("-qat") for (_, preset), cell in trained.items())
    of_mapping = BackendConfigQuantizer(config, get_default_qconfig_mapping())
    both = ComposableQuantizer([EmbeddingQuantizer(), of_mapping]).quantization_capabilities()
    assert {cell.backend for cell in both} == {"embedding", "native"}
    assert len(both) == 1 + len(of_mapping.quantization_capabilities())


def test_constraints_are_the_ledgers_matter() -> None:
    """A cell says that there is a QConfig that does, not that every one does."""
    config, mapping = get_qnnpack_backend_config(), QConfigMapping()
    assert cells(config)["linear", "static-int8"].supported
    wide = QConfig(
        MinMaxObserver.with_args(dtype=torch.qint8), qconfig.default_symmetric_qnnpack_qconfig.weight
    )
    with pytest.warns(NothingQuantizedWarning):
        prepared = prepare_fx(nn.Linear(6, 4).eval(), mapping.set_global(wide), (X,), backend_config=config)
    assert [d.reason for d in decisions(prepared)] == ["scale-too-small"]
