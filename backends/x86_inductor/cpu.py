"""What the CPU that kernels run on can do."""

from __future__ import annotations

import os
import platform

import torch

__all__ = ["LIMITS", "convolves_faster", "has_float16", "has_vnni", "is_x86", "writes_bfloat16"]

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""The environment variables that lower what oneDNN uses, in the order in which it asks for them."""

_WITHOUT_FLOAT16 = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
    "AVX512_CORE_BF16",
)


def has_vnni() -> bool:
    """Whether oneDNN's int8 kernels have VNNI here, with which products of 8 bits are added in int32.

    Every CPU with AMX has it too. Asked at each call; oneDNN reads its limit once in a process, at first use.
    """
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in _vnni_under(_limit()))


def is_x86() -> bool:
    """Whether this machine has an X86 CPU of 64 bits."""
    return platform.machine().lower() in {"x86_64", "amd64"}


def has_float16() -> bool:
    """Whether oneDNN multiplies float16 here with instructions that know it."""
    return bool(torch.cpu.get_capabilities().get("avx512_fp16", False)) and _limit() not in _WITHOUT_FLOAT16


def writes_bfloat16() -> bool:
    """Whether oneDNN's int8 kernels here write bfloat16: those for AVX-512 do.

    Without it, reference code does in their place, which takes a hundred times as long.
    """
    return _has_avx512()


def convolves_faster() -> bool:
    """Whether oneDNN convolves int8 faster here than it multiplies matrices of it.

    Measured on CPUs with AVX2 alone; with VNNI matrices have kernels of another kind, and AVX-512 without it
    was not measured.
    """
    return not has_vnni() and not _has_avx512()


def _has_avx512() -> bool:
    can = torch.cpu.get_capabilities()
    limit = _limit()
    if limit in {"SSE41", "AVX"} or limit.startswith("AVX2"):
        return False
    return all(can.get(f"avx512_{part}", False) for part in ("f", "bw", "dq", "vl"))


def _limit() -> str:
    return next((value.upper() for name in LIMITS if (value := os.environ.get(name))), "")


def _vnni_under(limit: str) -> tuple[str, ...]:
    """The forms of VNNI that oneDNN may use under ``limit``; names it does not know limit nothing."""
    if limit in {"SSE41", "AVX", "AVX2", "AVX512_CORE"}:
        return ()
    if limit.startswith("AVX2_VNNI"):
        return ("avx_vnni",)
    if limit.startswith("AVX512_CORE_"):
        return ("avx512_vnni",)
    return ("avx_vnni", "avx512_vnni")
