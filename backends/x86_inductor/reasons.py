"""Why operators stay float where oneDNN's kernels run, or kernels are not merged: their codes alone."""

from __future__ import annotations

from typing import Final

from ...ir.reasons import Reason

__all__ = ["MERGE_REASONS", "ONEDNN_REASONS"]

ONEDNN_REASONS: Final = {
    "saturates-without-vnni": Reason(
        "sums of 8-bit activations overflow on this CPU, which has no VNNI",
        "use a configuration with reduce_range=True: activations have 7 bits",
        "use --preset static-7-bit: activations have 7 bits",
    ),
    "no-float16-arithmetic": Reason("this CPU computes float16 far slower than float32", "use int8 weights"),
    "kernel-slower-than-float": Reason(
        "the kernel is slower here than the float operator",
        "compute in bfloat16 (propagate-bf16) and in few rows, or leave it as it is",
    ),
    "faster-in-float": Reason(
        "its kernel was timed on this machine, and float is faster",
        "nothing: without the pass keep-faster-float it has its kernel",
    ),
    "column-under-stride": Reason(
        "oneDNN may be wrong for results of one column under a horizontal stride", "leave it float"
    ),
    "kernel-not-compiled-in-bodies": Reason(
        "Inductor cannot compile the kernel in a body of control flow", "take the operator out of the body"
    ),
    "window-in-padding": Reason(
        "oneDNN is wrong for windows that may lie in the padding altogether",
        "use a smaller padding, or leave it float",
    ),
}

MERGE_REASONS: Final = {
    "not-merged-own-scale": Reason(
        "linears of one input that give integers have a scale each, and a kernel has one", "nothing"
    ),
    "not-merged-different": Reason(
        "the other linears of its input have another operator fused behind them, or give another dtype",
        "nothing",
    ),
    "not-merged-weight-form": Reason(
        "its weight is not constant, or has one scale for all outputs",
        "use a preset with one scale an output channel",
    ),
    "not-merged-weight-shared": Reason(
        "its weight, or that of a linear beside it, is read elsewhere too, and would be stored twice",
        "nothing",
    ),
    "not-merged-returned": Reason(
        "the model returns it, or that of another linear of its input, as it is", "nothing: a slice has gaps"
    ),
    "not-merged-reader": Reason(
        "what reads it, or a linear beside it, writes into it or needs all of its memory",
        "use reshape rather than view or as_strided, and write out of place",
    ),
}
"""Notes of ``merge-parallel-linears`` on linears that read the same integers, and have a kernel each."""
