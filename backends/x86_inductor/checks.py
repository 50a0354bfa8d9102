"""What of an X86 CPU matters to oneDNN's int8 kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from ..finding import Finding
from .cpu import LIMITS, has_vnni

__all__ = ["look_at_cpu"]


def look_at_cpu() -> Iterator[Finding]:
    """Look at this machine, for ``lowbit doctor``."""
    limit = next((f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)), None)
    if limit is not None:
        yield Finding("oneDNN", limit, "slow", "it keeps oneDNN from instructions that the CPU may have")
    if not has_vnni():
        yield Finding(
            "VNNI",
            "no",
            "slow",
            "activations of 8 bits would overflow in int8 kernels, which refuse them: use 7 bits, as lowbit "
            "quantize does here by itself (preset static-7-bit; in Python, reduce_range=True). Int8 gains "
            "less than on CPUs with VNNI",
        )
    can = torch.cpu.get_capabilities()
    if not any(can.get(key, False) for key in ("avx512_bf16", "amx_bf16")):
        yield Finding("bfloat16", "no instructions", "note", "bfloat16 is slower than float32 here")
    if not torch.backends.mkldnn.is_available():
        yield Finding("oneDNN", "not in this torch", "wrong", "int8 kernels need it: install a torch with it")
