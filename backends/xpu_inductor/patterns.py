"""What Intel GPUs run in int8 through Inductor: what X86 CPUs do, less what oneDNN lacks there.

There is no int8 max_pool2d, and ranges are not found at run time.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from ...matchers.operator_pattern import Mode, OperatorPattern
from ..signed_kernel import SignedKernel
from ..x86_inductor.kernels import IntegerOperator, QConv, QConvAdd, QLinear
from ..x86_inductor.patterns import PATTERNS as CPU_PATTERNS

__all__ = ["PATTERNS"]


def _on_gpu() -> Iterator[OperatorPattern]:
    for pattern in CPU_PATTERNS:
        kernel = pattern.kernel
        if isinstance(kernel, (QConv, QConvAdd, QLinear)):
            yield attrs.evolve(pattern, kernel=SignedKernel(kernel, weight_axis=0), modes=(Mode.STATIC,))
        elif kernel is None or kernel == IntegerOperator():
            yield pattern


PATTERNS: tuple[OperatorPattern, ...] = tuple(_on_gpu())
