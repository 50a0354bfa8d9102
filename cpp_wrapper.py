"""Compiling a lowered model with kernels called from C++ instead of Python, and few checks before a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule

__all__ = ["compile_with_cpp_wrapper"]


def compile_with_cpp_wrapper(lowered: GraphModule) -> None:
    """Let ``lowered`` be compiled when it is first called.

    ``torch.compile`` checks before each call that what it compiled for still holds. Inputs and the state of
    torch (grad mode, threads, autocast) are checked here as everywhere. Of the tensors of the model, hundreds
    of constants, one is.
    """
    lowered.compile(
        options={
            "cpp_wrapper": True,
            # Calls of kernels in C++ take several times as long to optimize as the loops beside them do, and
            # gain nothing from it.
            "cpp_wrapper_build_separate": True,
            "guard_filter_fn": _without_constants,
        }
    )


def _without_constants(guards: Sequence[Any]) -> list[bool]:
    """Which guards to keep: those that are not on the model, and one on a tensor of the model.

    The one shows when ``to`` and the like put other tensors in the place of all. Values are no matter: the
    compiled code reads the tensors of the model at each call.
    """
    kept = list(torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards))
    for i, guard in enumerate(guards):
        value = guard.value
        if guard.guard_type == "TENSOR_MATCH" and not kept[i] and value.is_floating_point():
            kept[i] = True
            break
    return kept
