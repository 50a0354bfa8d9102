"""Why operators stay float where oneDNN's kernels run: the codes of these kernels alone."""

from __future__ import annotations

from typing import Final

from ...ir.reasons import Reason

__all__ = ["ONEDNN_REASONS"]

ONEDNN_REASONS: Final = {
    "saturates-without-vnni": Reason(
        "sums of 8-bit activations overflow on this CPU, which has no VNNI",
        "use the preset static-7-bit (--preset; in Python reduce_range=True): activations have 7 bits",
    ),
    "no-float16-arithmetic": Reason("this CPU computes float16 far slower than float32", "use int8 weights"),
    "kernel-slower-than-float": Reason(
        "the kernel is slower here than the float operator",
        "compute in bfloat16 (propagate-bf16) and in few rows, or leave it as it is",
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
