"""The table of what backends can quantize."""

from __future__ import annotations

import pytest
import torch
from lowbit import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    Quantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
)
from lowbit.backends import Capabilities, get_backend
from lowbit.backends.pattern_quantizer import PatternQuantizer
from lowbit.errors import UnsupportedError
from lowbit.matchers.operator_pattern import Mode
from torch.fx import GraphModule


def cell(backend: str, pattern: str, preset: str) -> str:
    found = [c for c in get_backend(backend).capabilities() if (c.pattern, c.preset) == (pattern, preset)]
    (only,) = found
    return f"{only.dtypes}: {only.lowering}"


@pytest.mark.parametrize(
    ("backend", "pattern", "preset", "text"),
    [
        ("x86_inductor", "conv2d-relu", "static", "uint8 by int8 → uint8: onednn.qconv_pointwise"),
        ("x86_inductor", "conv2d", "dynamic", "float: onednn.qconv_pointwise"),
        ("x86_inductor", "linear", "dynamic", "uint8 by int8 → float32: onednn.qlinear_pointwise"),
        ("x86_inductor", "linear-half-weight", "float16-weight", "float32 by float16 → float32: onednn.linear_dynamic_fp16"),  # noqa: E501
        ("x86_inductor", "mean", "static", "uint8 → uint8: the compiler"),
        ("xpu_inductor", "linear", "static", "int8 by int8 → int8: onednn.qlinear_pointwise"),
        ("arm_inductor", "max_pool2d", "static", "int8 → int8: integer operator"),
        ("xnnpack", "conv2d", "static", "int8 by int8 → int8: handed over"),
        ("embedding", "embedding", "weight-only", "float32 by int8 → float32: aten.embedding of integers"),
    ],
)  # fmt: skip
def test_cells(backend: str, pattern: str, preset: str, text: str) -> None:
    assert cell(backend, pattern, preset) == text


def test_modes_and_training() -> None:
    cells = {c.preset: c for c in get_backend("xnnpack").capabilities() if c.pattern == "linear"}
    assert {name: (c.mode, c.is_qat) for name, c in cells.items()} == {
        "static": (Mode.STATIC, False),
        "static-per-channel": (Mode.STATIC, False),
        "static-qat": (Mode.STATIC, True),
        "dynamic": (Mode.DYNAMIC, False),
        "dynamic-qat": (Mode.DYNAMIC, True),
    }


def test_intel_gpus_have_no_int8_pooling_and_no_training() -> None:
    cells = get_backend("xpu_inductor").capabilities()
    assert "max_pool2d" not in {c.pattern for c in cells}
    assert {(c.mode, c.is_qat) for c in cells} == {(Mode.STATIC, False)}


def test_the_table_as_text_and_markdown() -> None:
    capabilities = get_backend("embedding").capabilities()
    assert str(capabilities).splitlines() == [
        "backend    pattern    weight-only                runs as",
        "embedding  embedding  float32 by int8 → float32  aten.embedding of integers",
    ]
    assert capabilities.markdown().splitlines() == [
        "| backend | pattern | weight-only | runs as |",
        "| --- | --- | --- | --- |",
        "| embedding | embedding | float32 by int8 → float32 | aten.embedding of integers |",
    ]


@pytest.mark.parametrize("quantizer", [X86InductorQuantizer(), XNNPACKQuantizer(), EmbeddingQuantizer()])
def test_quantizers_tell_what_their_backend_can(quantizer: PatternQuantizer) -> None:
    assert quantizer.backend_name is not None
    assert quantizer.quantization_capabilities() == get_backend(quantizer.backend_name).capabilities()


def test_a_composition_tells_what_all_can_in_order() -> None:
    parts = [EmbeddingQuantizer(), X86InductorQuantizer()]
    cells = ComposableQuantizer(parts).quantization_capabilities()
    assert isinstance(cells, Capabilities)
    assert tuple(cells) == (*parts[0].quantization_capabilities(), *parts[1].quantization_capabilities())
    # Presets that only one has are empty for the other.
    first, second, *_ = str(cells).splitlines()
    assert first.split()[:4] == ["backend", "pattern", "weight-only", "static"]
    assert (
        " ".join(second.split()) == "embedding embedding float32 by int8 → float32 aten.embedding of integers"
    )


def test_quantizers_that_cannot_tell() -> None:
    class Silent(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            return model

    with pytest.raises(UnsupportedError, match="Silent does not say"):
        ComposableQuantizer([EmbeddingQuantizer(), Silent()]).quantization_capabilities()
    with pytest.raises(UnsupportedError, match="is of no backend"):
        PatternQuantizer().quantization_capabilities()


def test_legacy_dtypes_are_shown_as_what_they_are_stored_in() -> None:
    assert all(c.activation in {None, torch.uint8} for c in get_backend("x86_inductor").capabilities())
