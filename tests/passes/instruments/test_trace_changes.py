"""Diffs in torch's structured trace; what breaks here when ``torch._logging`` moves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lowbit.passes import PassManager, Pipeline
from lowbit.passes.instruments import TraceChanges, trace_changes
from torch import nn
from torch._logging._internal import LazyTraceHandler, TorchLogsFormatter


class Model(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.dropout(torch.relu(x), 0.5, False)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """A folder that torch writes its trace to."""
    handler = LazyTraceHandler(str(tmp_path))
    handler.setFormatter(TorchLogsFormatter(trace=True))
    logger = logging.getLogger("torch.__trace")
    logger.addHandler(handler)
    try:
        yield tmp_path
    finally:
        logger.removeHandler(handler)
        handler.close()


def test_changes_are_artifacts_of_the_trace(export, trace: Path) -> None:
    gm = export(Model(), torch.ones(2))
    PassManager((TraceChanges(),)).run(gm, Pipeline.parse("normalize, normalize"))
    (file,) = trace.iterdir()
    text = file.read_text()
    assert '"artifact": {"name": "lowbit_00_normalize", "encoding": "string"}' in text
    assert "# normalize: " in text
    assert "- %dropout: f32[2] = aten.dropout.default(%relu, 0.5, False)" in text
    assert "lowbit_01_normalize" not in text  # the second time, nothing changed


def test_no_diff_is_made_while_no_trace_is_written(export, monkeypatch) -> None:
    monkeypatch.setattr(trace_changes, "trace_structured", lambda *_, **__: pytest.fail("written"))
    gm = export(Model(), torch.ones(2))
    PassManager((TraceChanges(),)).run(gm, Pipeline.parse("normalize"))
