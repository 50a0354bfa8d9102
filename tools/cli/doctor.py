"""What of this machine matters to quantized models: findings, each with what it means."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import attrs
import torch

from ...backends.finding import Finding
from ...backends.registry import backend_names, get_backend

__all__ = ["examine"]

_FEATURES: Final = {
    "AVX2": "avx2",
    "AVX-512": "avx512_f",
    "AVX-VNNI": "avx_vnni",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 bf16": "avx512_bf16",
    "AVX-512 fp16": "avx512_fp16",
    "AMX int8": "amx_int8",
    "AMX bf16": "amx_bf16",
}
_PACKAGES: Final = {
    "numpy": "calibration data in .npz files",
    "sklearn": "lowbit demo: pip install 'lowbit[demo]'",
    "hypothesis": "property tests of passes of your own: pip install 'lowbit[testing]'",
    "executorch": "running what the backend xnnpack quantizes: pip install 'lowbit[executorch]'",
}
_PROGRAM: Final = """
#include <Python.h>
#include <omp.h>
#include <vector>
int threads() { std::vector<int> v(1, omp_get_max_threads()); return v[0]; }
"""


def examine() -> Iterator[Finding]:
    """Look at this machine, one finding after the other."""
    yield _torch()
    yield from _compiler()
    yield from _cpu()
    yield from _threads()
    yield from _backends()
    yield from _packages()


def _torch() -> Finding:
    wanted = next((r for r in metadata.requires("lowbit") or () if r.startswith("torch>=")), "torch>=0")
    least = tuple(int(part) for part in wanted.removeprefix("torch>=").split(".")[:2])
    have = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if have < least:
        return Finding("torch", torch.__version__, "wrong", f"lowbit needs {wanted}")
    return Finding("torch", f"{torch.__version__}, Python {platform.python_version()}", "ok")


def _compiler() -> Iterator[Finding]:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    found = None if compiler is None else shutil.which(compiler.split()[0])
    if compiler is None or found is None:
        yield Finding(
            "C++ compiler",
            "none" if compiler is None else f"CXX={compiler} is not there",
            "wrong",
            "torch.compile and --package need one: install g++ or clang++, or set CXX",
        )
        return
    complaint = _complaint_of(compiler)
    if complaint:
        yield Finding(
            "C++ compiler",
            found,
            "wrong",
            f"it compiles no program with Python.h and OpenMP, as torch.compile does: {complaint}",
        )
    else:
        yield Finding("C++ compiler", found, "ok")


def _complaint_of(compiler: str) -> str:
    """The first error of compiling what Inductor's code needs, "" if there is none."""
    # Apple's compiler has OpenMP under another flag, which Inductor looks for itself.
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    program = (
        _PROGRAM if openmp else _PROGRAM.replace("#include <omp.h>", "").replace("omp_get_max_threads()", "1")
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "program.cpp"
        source.write_text(program, encoding="utf-8")
        include = f"-I{sysconfig.get_paths()['include']}"
        command = [
            *compiler.split(),
            "-c",
            include,
            *openmp,
            str(source),
            "-o",
            str(source.with_suffix(".o")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    return "" if done.returncode == 0 else (lines or [f"exit code {done.returncode}"])[0]


def _cpu() -> Iterator[Finding]:
    can = torch.cpu.get_capabilities()
    features = [name for name, key in _FEATURES.items() if can.get(key, False)]
    yield Finding("CPU", f"{platform.machine()}: {', '.join(features) or 'no vector features known'}", "ok")


def _threads() -> Iterator[Finding]:
    threads, cores = torch.get_num_threads(), _cores()
    text = f"{threads} for {cores} {'CPU' if cores == 1 else 'CPUs'}"
    if threads > cores:
        yield Finding("threads", text, "slow", f"they wait for each other: set OMP_NUM_THREADS={cores:.0f}")
    else:
        yield Finding("threads", text, "ok")


def _cores() -> int:
    """CPUs that this process may use, of the machine and of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        most, period = quota.read_text(encoding="utf-8").split()
        cores = cores if most == "max" else min(cores, max(1, -(-int(most) // int(period))))
    return cores


def _backends() -> Iterator[Finding]:
    backends = [get_backend(name) for name in backend_names()]
    here = [backend for backend in backends if backend.is_available()]
    others = [backend.name for backend in backends if backend not in here]
    yield Finding("backends", ", ".join(backend.name for backend in here), "ok")
    for backend in here:
        for finding in backend.checks():
            yield attrs.evolve(finding, name=f"{backend.name}: {finding.name}")
    if others:
        yield Finding(
            "other backends", ", ".join(others), "note", "they quantize here, and their kernels run elsewhere"
        )


def _packages() -> Iterator[Finding]:
    missing = {name: use for name, use in _PACKAGES.items() if importlib.util.find_spec(name) is None}
    there = [name for name in _PACKAGES if name not in missing]
    yield Finding("optional packages", ", ".join(there) or "none", "ok")
    for name, use in missing.items():
        yield Finding(name, "not installed", "note", f"for {use}")
