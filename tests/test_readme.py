"""The README says what is so: its Python runs, its commands and its links exist."""

from __future__ import annotations

import re
from pathlib import Path

import lowbit
import pytest
import torch

ROOT = Path(lowbit.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    logits, batches = names["logits"], names["batches"]
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (len(batches[0]), 1000)
    assert logits.isfinite().all()
    assert list((tmp_path / "out/diffs").iterdir())


def test_its_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named
    assert named <= set(targets)


def test_its_paths_exist() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"^\| `([^`]+)` \|", README, flags=re.MULTILINE
    )
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
