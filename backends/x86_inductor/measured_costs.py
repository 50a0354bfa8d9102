"""How long operators and the loops between them take on this machine, in int8 and in float."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from ...errors import UnsupportedError
from ...ir import quantized_decomposed as qd

__all__ = ["LoopTimes", "example_inputs", "measure_loops", "measure_nodes"]

_RUNS: Final = 7
_ELEMENTS: Final = 2**16
"""Of the tensors that loops are timed on: they stay in the cache, as those between two layers do."""


def measure_nodes(gm: GraphModule, inputs: tuple[Any, ...]) -> dict[str, float]:
    """Seconds of each call of ``gm``, by the name of its node: the shortest of several runs.

    What disturbs a run only ever makes it longer.
    """
    timer = _Timer(gm)
    with torch.no_grad():
        for _ in range(_RUNS):
            timer.run(*inputs)
    return timer.seconds


class _Timer(Interpreter):
    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.name = ""
        self.seconds: dict[str, float] = {}

    def run_node(self, n: Node) -> Any:
        self.name = n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = time.perf_counter()
        value = target(*args, **kwargs)
        seconds = time.perf_counter() - start
        self.seconds[self.name] = min(seconds, self.seconds.get(self.name, seconds))
        return value


def example_inputs(gm: GraphModule) -> tuple[Any, ...]:
    """Inputs of the shapes and dtypes that ``gm`` was exported with: noise, or zeros for integers.

    Raises:
        UnsupportedError: a size is known at run time only, or an input is no tensor.
    """
    return tuple(map(_example, gm.graph.find_nodes(op="placeholder")))


def _example(node: Node) -> Tensor:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not all(isinstance(size, int) for size in value.shape):
        raise UnsupportedError(
            f"the input %{node.name} has sizes that are known at run time only, so nothing can be timed",
            hint="export with the sizes that are to be fast, or lower without keep-faster-float",
        )
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return made.normal_() if made.is_floating_point() else made.zero_()


@attrs.frozen
class LoopTimes:
    """Seconds an element of the compiler's loops around kernels, by what they read and write.

    Args:
        plain: float to float.
        quantizing: float to uint8.
        dequantizing: uint8 to float.
        rounding: float to float, by way of uint8.
    """

    plain: float
    quantizing: float
    dequantizing: float
    rounding: float


def measure_loops() -> LoopTimes:
    """Compile and time the loops, each with a ReLU in it, as they mostly have something to do besides."""
    x, q = torch.randn(_ELEMENTS), torch.randint(0, 128, (_ELEMENTS,), dtype=torch.uint8)
    return LoopTimes(
        plain=_seconds(torch.relu, x),
        quantizing=_seconds(lambda x: _quantize(torch.relu(x)), x),
        dequantizing=_seconds(lambda q: torch.relu(_dequantize(q)), q),
        rounding=_seconds(lambda x: _dequantize(_quantize(torch.relu(x))), x),
    )


_PARAMETERS: Final[Mapping[str, Any]] = {
    "scale": 0.05,
    "zero_point": 3,
    "quant_min": 0,
    "quant_max": 255,
    "dtype": torch.uint8,
}


def _quantize(x: Tensor) -> Tensor:
    return qd.QUANTIZE_PER_TENSOR(x, **_PARAMETERS)


def _dequantize(q: Tensor) -> Tensor:
    return qd.DEQUANTIZE_PER_TENSOR(q, **_PARAMETERS)


def _seconds(loop: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Seconds an element, without what the call takes by itself."""
    compiled = torch.compile(loop, dynamic=True)
    with torch.no_grad():
        return max(0.0, _shortest(compiled, x) - _shortest(compiled, x[:64])) / len(x)


def _shortest(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    call(x)
    runs: list[float] = []
    for _ in range(20 * _RUNS):
        start = time.perf_counter()
        call(x)
        runs.append(time.perf_counter() - start)
    return min(runs)
