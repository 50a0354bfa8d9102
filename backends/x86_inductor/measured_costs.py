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
from ...ir.attributes import get_tensor
from ...ir.oracle import written_targets

__all__ = ["LoopTimes", "example_inputs", "measure_loops", "measure_nodes"]

_RUNS: Final = 7
_ELEMENTS: Final = 2**16
"""Of the tensors that loops are timed on: they stay in the cache, as those between two layers do."""


def measure_nodes(gm: GraphModule, inputs: tuple[Any, ...]) -> dict[str, float]:
    """Seconds of each call of ``gm``, by the name of its node: the shortest of several runs.

    What disturbs a run only ever makes it longer. What the graph writes into is before each run, and in the
    end, as it was.

    Raises:
        UnsupportedError: it cannot be run on ``inputs``.
    """
    timer = _Timer(gm)
    written = {target: get_tensor(gm, target) for target in sorted(written_targets(gm.graph))}
    kept = {target: tensor.clone() for target, tensor in written.items()}
    try:
        with torch.no_grad():
            for _ in range(_RUNS):
                timer.run(*inputs)
                for target, tensor in written.items():
                    tensor.copy_(kept[target])
    # Operators refuse values that are made up in many ways.
    except Exception as error:
        raise UnsupportedError(
            f"nothing can be timed: the model does not run on made-up inputs: {error}",
            hint="lower it without keep-faster-float",
        ) from error
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

    What is no tensor is what it was when the model was exported.

    Raises:
        UnsupportedError: a size is known at run time only.
    """
    return tuple(map(_example, gm.graph.find_nodes(op="placeholder")))


def _example(node: Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt) or not all(isinstance(size, int) for size in _sizes(value)):
        raise UnsupportedError(
            f"the input %{node.name} has sizes that are known at run time only, so nothing can be timed",
            hint="export with the sizes that are to be fast, or lower without keep-faster-float",
        )
    if not isinstance(value, Tensor):
        return value
    # An expanded tensor has one element at several places, which cannot be filled.
    is_expanded = any(
        size > 1 and not stride for size, stride in zip(value.shape, value.stride(), strict=True)
    )
    strides = torch.empty(value.shape, device="meta").stride() if is_expanded else value.stride()
    made = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    return made.normal_() if made.is_floating_point() else made.zero_()


def _sizes(value: object) -> tuple[object, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


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
    x = torch.linspace(-1, 1, _ELEMENTS, dtype=torch.float32, device="cpu")
    q = (64 * (x + 1)).to(torch.uint8)
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
        whole, least = (min(_shortest(compiled, part) for _ in range(2)) for part in (x, x[:64]))
    return max(0.0, whole - least) / len(x)


def _shortest(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    call(x)
    runs: list[float] = []
    for _ in range(20 * _RUNS):
        start = time.perf_counter()
        call(x)
        runs.append(time.perf_counter() - start)
    return min(runs)
