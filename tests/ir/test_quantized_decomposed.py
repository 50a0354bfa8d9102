"""The operators that lowbit takes from torch: where they are, what they take, what they compute.

When a test of this file fails, torch has moved or changed the ``quantized_decomposed`` operators:
``lowbit/ir/quantized_decomposed.py`` is the one module to mend.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from lowbit.ir import quantized_decomposed as qd
from torch.fx import Graph

_RANGE = "int quant_min, int quant_max, ScalarType dtype"
_BACK = f"{_RANGE}, *, ScalarType? out_dtype=None"
_TENSORS = "Tensor input, Tensor scale, Tensor zero_point"
_CHANNELS = "Tensor input, Tensor scales"
_CHOOSE = "Tensor input, int quant_min, int quant_max, float eps, ScalarType dtype"
SCHEMAS = {
    "QUANTIZE_PER_TENSOR": f"quantize_per_tensor(Tensor input, float scale, int zero_point, {_RANGE})",
    "DEQUANTIZE_PER_TENSOR": f"dequantize_per_tensor(Tensor input, float scale, int zero_point, {_BACK})",
    "QUANTIZE_PER_TENSOR_DYNAMIC": f"quantize_per_tensor.tensor({_TENSORS}, {_RANGE})",
    "DEQUANTIZE_PER_TENSOR_DYNAMIC": f"dequantize_per_tensor.tensor({_TENSORS}, {_BACK})",
    "QUANTIZE_PER_CHANNEL": f"quantize_per_channel({_CHANNELS}, Tensor zero_points, int axis, {_RANGE})",
    "DEQUANTIZE_PER_CHANNEL": f"dequantize_per_channel({_CHANNELS}, Tensor? zero_points, int axis, {_BACK})",
    "CHOOSE_QPARAMS": f"choose_qparams.tensor({_CHOOSE})",
    "CHOOSE_QPARAMS_SYMMETRIC": f"choose_qparams_symmetric.tensor({_CHOOSE})",
    "CONVERT_ELEMENT_TYPE": "convert_element_type.no_fuse(Tensor input, ScalarType dtype)",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_operators_take_what_conversion_writes(name: str) -> None:
    returned = "(Tensor, Tensor)" if name.startswith("CHOOSE") else "Tensor"
    assert str(getattr(qd, name)._schema) == f"quantized_decomposed::{SCHEMAS[name]} -> {returned}"


def test_importing_the_module_is_what_registers_them() -> None:
    # In a process of its own: here others have registered the namespace long ago.
    code = (
        "import torch\n"
        "assert not hasattr(torch.ops.quantized_decomposed, 'quantize_per_tensor')\n"
        "import lowbit.ir.quantized_decomposed as qd\n"
        "assert str(qd.QUANTIZE_PER_TENSOR) == 'quantized_decomposed.quantize_per_tensor.default'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_per_tensor_rounds_half_to_even_and_saturates() -> None:
    x = torch.tensor([-9.0, -0.75, -0.25, 0.0, 0.25, 0.75, 1.25, 9.0])
    q = qd.QUANTIZE_PER_TENSOR(x, 0.5, 3, 0, 7, torch.uint8)
    assert q.dtype is torch.uint8
    assert q.tolist() == [0, 1, 3, 3, 3, 5, 5, 7]
    back = qd.DEQUANTIZE_PER_TENSOR(q, 0.5, 3, 0, 7, torch.uint8)
    assert back.dtype is torch.float32
    assert back.tolist() == [-1.5, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_is_per_tensor_channel_by_channel(axis: int) -> None:
    x = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0))
    scales, zero_points = torch.tensor([0.5, 0.25, 2.0]), torch.tensor([0, 3, -5], dtype=torch.int32)
    q = qd.QUANTIZE_PER_CHANNEL(x, scales, zero_points, axis, -128, 127, torch.int8)
    back = qd.DEQUANTIZE_PER_CHANNEL(q, scales, zero_points, axis, -128, 127, torch.int8)
    for channel in range(3):
        arguments = (scales[channel].item(), zero_points[channel].item(), -128, 127, torch.int8)
        alone = qd.QUANTIZE_PER_TENSOR(x.select(axis, channel), *arguments)
        assert torch.equal(q.select(axis, channel), alone)
        assert torch.equal(back.select(axis, channel), qd.DEQUANTIZE_PER_TENSOR(alone, *arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_quantized_as_float32_and_comes_back_in_its_own_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([-1.0, 0.5, 3.0], dtype=dtype)
    q = qd.QUANTIZE_PER_TENSOR(x, 0.5, 0, -128, 127, torch.int8)
    assert q.tolist() == [-2, 1, 6]
    back = qd.DEQUANTIZE_PER_TENSOR(q, 0.5, 0, -128, 127, torch.int8, out_dtype=dtype)
    assert back.dtype is dtype
    assert torch.equal(back, x)


def test_float64_is_refused() -> None:
    # Why insert-observers refuses it before anything is calibrated.
    with pytest.raises(AssertionError, match="float32"):
        qd.QUANTIZE_PER_TENSOR(torch.ones(1, dtype=torch.float64), 0.5, 0, 0, 255, torch.uint8)


@pytest.mark.parametrize(
    ("choose", "high", "expected"),
    [
        (qd.CHOOSE_QPARAMS, 9.6875, (0.0625, 100)),  # [-100/16, 155/16] in 255 steps
        (qd.CHOOSE_QPARAMS_SYMMETRIC, 9.9609375, (0.078125, 128)),  # ±9.9609375 in 255 steps of 5/64
    ],
)
def test_parameters_chosen_at_run_time_are_tensors_of_one_element(choose, high, expected) -> None:
    scale, zero_point = choose(torch.tensor([-6.25, 0.0, high]), 0, 255, 2**-12, torch.uint8)
    assert (scale.numel(), zero_point.numel()) == (1, 1)
    assert (scale.item(), zero_point.item()) == expected


def test_a_kept_cast_rounds_to_the_dtype() -> None:
    x = torch.tensor([1.0, 1.0 + 2**-10, 1.0 + 2**-11])
    low = qd.CONVERT_ELEMENT_TYPE(x, torch.float16)
    assert low.dtype is torch.float16
    assert qd.CONVERT_ELEMENT_TYPE(low, torch.float32).tolist() == [1.0, 1.0 + 2**-10, 1.0]


def test_nodes_are_told_by_what_they_call() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    q = graph.call_function(qd.QUANTIZE_PER_TENSOR, (x, 1.0, 0, 0, 255, torch.uint8))
    dq = graph.call_function(qd.DEQUANTIZE_PER_TENSOR, (q, 1.0, 0, 0, 255, torch.uint8))
    # A module may be named like anything.
    named = graph.call_module("quantize_per_tensor", (x,))
    assert [qd.is_quantize(n) for n in (x, q, dq, named)] == [False, True, False, False]
    assert [qd.is_dequantize(n) for n in (x, q, dq, named)] == [False, False, True, False]
    assert not qd.is_quantize(None)
    assert not qd.is_dequantize(1.0)
