"""VNNI and bfloat16: what the CPU can, and what the environment lets oneDNN use of it."""

from __future__ import annotations

import pytest
import torch
from lowbit.backends.x86_inductor import has_vnni
from lowbit.backends.x86_inductor.cpu import writes_bfloat16


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


def cpu_with(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    capabilities = {"architecture": "x86_64", "avx2": True, **dict.fromkeys(features, True)}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ((), False),
        (("avx512_f", "avx512_bw"), False),
        (("avx_vnni",), True),
        (("avx512_f", "avx512_vnni"), True),
        (("avx512_vnni", "avx_vnni", "amx_int8"), True),
    ],
)
def test_what_the_cpu_can(features: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, *features)
    assert has_vnni() is expected


@pytest.mark.parametrize(
    ("limit", "by_avx", "by_avx512"),
    [
        ("SSE41", False, False),
        ("AVX2", False, False),
        ("avx2", False, False),
        ("AVX512_CORE", False, False),
        ("AVX2_VNNI", True, False),
        ("AVX512_CORE_VNNI", False, True),
        ("AVX512_CORE_AMX", False, True),
        ("AVX10_1_512", True, True),
        ("ALL", True, True),
        ("no such instructions", True, True),
        ("", True, True),
    ],
)
def test_what_the_environment_leaves_of_it(
    limit: str, by_avx: bool, by_avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    for feature, expected in (("avx_vnni", by_avx), ("avx512_vnni", by_avx512)):
        cpu_with(monkeypatch, feature)
        assert has_vnni() is expected
    cpu_with(monkeypatch)
    assert not has_vnni(), "a limit gives nothing that the CPU has not"


def test_the_older_name_counts_where_the_newer_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "avx512_vnni")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert not has_vnni()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    assert has_vnni()


AVX512 = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("", True),
        ("AVX512_CORE", True),
        ("AVX512_CORE_AMX", True),
        ("ALL", True),
        ("SSE41", False),
        ("AVX", False),
        ("avx2", False),
        ("AVX2_VNNI_2", False),
    ],
)
def test_who_writes_bfloat16(limit: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    cpu_with(monkeypatch, *AVX512)
    assert writes_bfloat16() is expected
    cpu_with(monkeypatch, "avx_vnni", *AVX512[:-1])
    assert not writes_bfloat16()
