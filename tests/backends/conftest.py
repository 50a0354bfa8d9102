"""The whole way from a model to its lowered graph, in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    Decision,
    Quantizer,
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.specs import dtype_range
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree


@attrs.frozen
class Flow:
    """A model at each of its stages."""

    inputs: tuple[Any, ...]
    prepared: GraphModule
    converted: GraphModule
    lowered: GraphModule

    def targets(self) -> list[str]:
        """What the lowered graph calls, as text, in order."""
        return [str(n.target) for n in self.lowered.graph.nodes if n.op == "call_function"]

    def decision(self, node: str) -> Decision:
        """What became of the float operator ``node``."""
        return {d.node: d for d in decisions(self.lowered)}[node]

    def difference(self, *inputs: Any) -> float:
        """The largest difference between what the lowered and the converted model return.

        Relative to the largest value; inputs must come out of it unchanged.
        """
        inputs = inputs or self.inputs
        before = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
        with torch.no_grad():
            expected = pytree.tree_leaves(self.converted(*inputs))
            actual = pytree.tree_leaves(self.lowered(*inputs))
        assert all(
            torch.equal(x, y)
            for x, y in zip(pytree.tree_leaves(inputs), pytree.tree_leaves(before), strict=True)
        )
        assert [t.shape for t in actual] == [t.shape for t in expected]
        assert [t.dtype for t in actual] == [t.dtype for t in expected]
        return max(
            float((a.double() - e.double()).abs().max() / e.abs().max().clamp(min=1e-6))
            for a, e in zip(actual, expected, strict=True)
        )


class RunFlow(Protocol):
    def __call__(
        self,
        model: nn.Module,
        *inputs: Any,
        quantizer: Quantizer | None = None,
        backend: str | None = None,
        pack_weights: bool = True,
        **export_options: Any,
    ) -> Flow: ...


@pytest.fixture(scope="session")
def run_flow() -> RunFlow:
    """Export, prepare with the X86 preset that this CPU has kernels for, calibrate, convert and lower."""

    def run(
        model: nn.Module,
        *inputs: Any,
        quantizer: Quantizer | None = None,
        backend: str | None = None,
        pack_weights: bool = True,
        **export_options: Any,
    ) -> Flow:
        exported = torch.export.export(model.eval(), inputs, **export_options).module()
        assert isinstance(exported, GraphModule)
        preset = get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
        prepared = prepare_pt2e(exported, quantizer or X86InductorQuantizer().set_global(preset))
        calibrate(prepared, [inputs], progress=False)
        converted = convert_pt2e(prepared)
        return Flow(inputs, prepared, converted, lower_pt2e(converted, backend, pack_weights=pack_weights))

    return run


# The calls of oneDNN with int8 activations, by their definition: no CPU that tests usually run on has them.


POST_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "none": lambda x, *_: x,
    "relu": lambda x, *_: F.relu(x),
    "hardtanh": F.hardtanh,
    "hardswish": lambda x, *_: F.hardswish(x),
    "swish": lambda x, *_: F.silu(x),
    "leaky_relu": F.leaky_relu,
    "tanh": lambda x, *_: torch.tanh(x),
}


def dequantized(x: Tensor, scale: float, zero_point: int) -> Tensor:
    assert x.dtype is torch.int8
    return qd.DEQUANTIZE_PER_TENSOR(x, scale, zero_point, -128, 127, x.dtype)


def dequantized_weight(weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    assert not zero_point.any()
    return qd.DEQUANTIZE_PER_CHANNEL(weight, scale, zero_point, 0, -128, 127, weight.dtype)


def finished(
    result: Tensor, scale: float, zero_point: int, dtype: torch.dtype, post: tuple[Any, ...]
) -> Tensor:
    attribute, scalars, _algorithm = post
    result = POST_OPERATORS[attribute](result, *scalars)
    if dtype is torch.float32:
        return result
    return qd.QUANTIZE_PER_TENSOR(result, scale, zero_point, *dtype_range(dtype), dtype)


def qconv(x: Tensor, x_scale: float, x_zero: int, *rest: Any) -> Tensor:
    weight, w_scale, w_zero, bias, *geometry, scale, zero_point, dtype, name, scalars, algorithm = rest
    result = F.conv2d(
        dequantized(x, x_scale, x_zero), dequantized_weight(weight, w_scale, w_zero), bias, *geometry
    )
    return finished(result, scale, zero_point, dtype, (name, scalars, algorithm))


def qconv_add(x: Tensor, x_scale: float, x_zero: int, *rest: Any) -> Tensor:
    weight, w_scale, w_zero, other, bias, *geometry, scale, zero_point, dtype = rest[:-7]
    other_scale, other_zero, kind, alpha, *post = rest[-7:]
    assert (kind, alpha) == ("sum", 1.0)
    result = F.conv2d(
        dequantized(x, x_scale, x_zero), dequantized_weight(weight, w_scale, w_zero), bias, *geometry
    )
    return finished(
        result + dequantized(other, other_scale, other_zero), scale, zero_point, dtype, tuple(post)
    )


def qlinear(x: Tensor, x_scale: float, x_zero: int, *rest: Any) -> Tensor:
    weight, w_scale, w_zero, bias, scale, zero_point, dtype, *post = rest
    result = F.linear(dequantized(x, x_scale, x_zero), dequantized_weight(weight, w_scale, w_zero), bias)
    return finished(result, scale, zero_point, dtype, tuple(post))


BY_DEFINITION: dict[Any, Callable[..., Any]] = {
    torch.ops.onednn.qconv_prepack.default: lambda weight, *_: weight,
    torch.ops.onednn.qlinear_prepack.default: lambda weight, *_: weight,
    torch.ops.onednn.qconv_pointwise.default: qconv,
    torch.ops.onednn.qconv2d_pointwise.binary: qconv_add,
    torch.ops.onednn.qlinear_pointwise.default: qlinear,
}


class ByDefinition(torch.fx.Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_function(BY_DEFINITION.get(target, target), args, kwargs)


@pytest.fixture
def by_definition() -> Callable[..., Any]:
    """Run a lowered graph by the definition of its calls, on the arguments they were given."""
    return lambda lowered, *inputs: ByDefinition(lowered).run(*inputs)
