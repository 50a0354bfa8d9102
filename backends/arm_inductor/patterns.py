"""What Arm CPUs run in int8 through Inductor: as X86, with int8 activations and one scale a weight."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from ...matchers.operator_pattern import OperatorPattern
from ..signed_kernel import SignedKernel
from ..x86_inductor.kernels import IntegerOperator, MaxPool2d, QConv, QConvAdd, QLinear
from ..x86_inductor.patterns import PATTERNS as X86_PATTERNS

__all__ = ["PATTERNS"]


def _on_arm() -> Iterator[OperatorPattern]:
    for pattern in X86_PATTERNS:
        kernel = pattern.kernel
        if isinstance(kernel, (QConv, QConvAdd, QLinear)):
            yield attrs.evolve(pattern, kernel=SignedKernel(kernel, weight_axis=None))
        elif kernel is None or isinstance(kernel, IntegerOperator):
            yield pattern
        elif isinstance(kernel, MaxPool2d):
            # Of int8 it is the operator itself, in int32.
            yield attrs.evolve(pattern, kernel=attrs.evolve(kernel, name=IntegerOperator().name))


PATTERNS: tuple[OperatorPattern, ...] = tuple(_on_arm())
