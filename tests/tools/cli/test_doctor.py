"""``lowbit doctor``: what it finds, and what it says follows."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lowbit.backends.x86_inductor import X86_INDUCTOR

DOCTOR = "lowbit.tools.cli.doctor"
CHECKS = "lowbit.backends.x86_inductor.checks"

needs_x86 = pytest.mark.skipif(not X86_INDUCTOR.is_available(), reason="asks for an X86 CPU")


def findings(lowbit: Any, code: int = 0) -> dict[str, dict[str, str]]:
    data = json.loads(lowbit("doctor", "--json", code=code).stdout)
    assert all(list(each) == ["name", "found", "status", "means"] for each in data["findings"])
    return {each["name"]: each for each in data["findings"]}


@pytest.fixture
def with_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes everything, whatever this machine has."""
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


@pytest.mark.usefixtures("with_a_compiler")
def test_what_this_machine_is(lowbit: Any) -> None:
    found = findings(lowbit)
    assert found["torch"]["found"].startswith(torch.__version__)
    assert found["C++ compiler"]["status"] == "ok"
    assert "xnnpack" in found["backends"]["found"]
    assert all(each["means"] for each in found.values() if each["status"] != "ok")
    lines = lowbit("doctor").stdout.splitlines()
    assert len(lines) == 1 + len(found)
    assert any(line.startswith("ok") and "C++ compiler" in line for line in lines)


@needs_x86
@pytest.mark.usefixtures("with_a_compiler")
def test_what_follows_from_a_cpu_without_vnni(lowbit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{CHECKS}.has_vnni", lambda: False)
    finding = findings(lowbit)["x86_inductor: VNNI"]
    assert finding["status"] == "slow"
    assert "static-7-bit" in finding["means"]
    assert "reduce_range=True" in finding["means"]
    monkeypatch.setattr(f"{CHECKS}.has_vnni", lambda: True)
    assert "x86_inductor: VNNI" not in findings(lowbit)


@pytest.mark.usefixtures("with_a_compiler")
def test_more_threads_than_cpus(lowbit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{DOCTOR}._cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    finding = findings(lowbit)["threads"]
    assert finding["status"] == "slow"
    assert "OMP_NUM_THREADS=2" in finding["means"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert findings(lowbit)["threads"]["status"] == "ok"


@needs_x86
@pytest.mark.usefixtures("with_a_compiler")
def test_a_limit_on_onednn(lowbit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert findings(lowbit)["x86_inductor: oneDNN"]["found"] == "ONEDNN_MAX_CPU_ISA=AVX2"


def test_compilers_that_do_not_work(lowbit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    finding = findings(lowbit, code=1)["C++ compiler"]
    assert finding["status"] == "wrong"
    assert "is not there" in finding["found"]
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'fatal error: omp.h: No such file' >&2\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert "omp.h: No such file" in findings(lowbit, code=1)["C++ compiler"]["means"]
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert findings(lowbit, code=1)["C++ compiler"]["found"] == "none"


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None or bool(os.environ.get("CXX")),
    reason="asks for g++ on Linux",
)
def test_the_program_that_is_compiled_is_right(lowbit: Any) -> None:
    assert findings(lowbit)["C++ compiler"]["status"] == "ok"
