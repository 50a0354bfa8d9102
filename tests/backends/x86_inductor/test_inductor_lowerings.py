"""Compiling int8 operators whose weights are no constants of the compiled graph, and in bodies.

``inductor_lowerings`` and ``prepack`` of ``lowbit.backends.x86_inductor`` are the modules that know the
lowering table of Inductor and the packing operators of oneDNN. These tests say which names are relied
on; should they move, it is those modules that change.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from lowbit.backends.x86_inductor.inductor_lowerings import register_lowerings
from lowbit.backends.x86_inductor.prepack import QCONV_PREPACK, QLINEAR_PREPACK, register_fakes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

QLINEAR = torch.ops.onednn.qlinear_pointwise.default
QCONV = torch.ops.onednn.qconv_pointwise.default
QCONV_ADD = torch.ops.onednn.qconv2d_pointwise.binary


def test_what_is_relied_on_of_inductor() -> None:
    from torch._inductor import lowering, mkldnn_ir, virtualized
    from torch._inductor.graph import SubgraphLowering
    from torch._inductor.ir import FixedLayout, TensorBox

    assert QLINEAR in lowering.lowerings
    assert callable(lowering.view)
    assert "type_promotion_kind" in inspect.signature(lowering.register_lowering).parameters
    assert callable(TensorBox.create)
    layout = FixedLayout(torch.device("cpu"), torch.uint8, [2, 3], [3, 1])
    layout.dtype, layout.stride = torch.int8, [1, 2]
    assert (layout.dtype, list(layout.size), list(layout.stride)) == (torch.int8, [2, 3], [1, 2])
    assert hasattr(virtualized.V, "graph")
    assert isinstance(SubgraphLowering, type)
    assert list(inspect.signature(lowering.full).parameters)[:2] == ["size", "fill_value"]
    assert {QLINEAR, QCONV, QCONV_ADD} <= lowering.lowerings.keys()
    expected = ["qx", "x_scale", "x_zero_point", "qw", "w_scale", "w_zero_point", "bias"]
    assert list(inspect.signature(mkldnn_ir.QLinearPointwisePT2E.create).parameters)[:7] == expected


def test_what_is_relied_on_of_the_kernels() -> None:
    """Their arguments, in the order in which they are given."""
    head = ["qx", "x_scale", "x_zero_point", "qw", "w_scale", "w_zero_point"]
    geometry = ["stride", "padding", "dilation", "groups"]
    output = ["output_scale", "output_zero_point", "output_dtype"]
    names = {op: [a.name for a in op._schema.arguments] for op in (QLINEAR, QCONV, QCONV_ADD)}
    assert names[QLINEAR][:10] == [*head, "bias", *output]
    assert names[QCONV][:14] == [*head, "bias", *geometry, *output]
    assert names[QCONV_ADD][:15] == [*head, "qaccum", "bias", *geometry, *output]
    accumulator = QCONV_ADD._schema.arguments[6]
    assert accumulator.alias_info is not None, "the compiler is no longer told that it is written to"
    assert accumulator.alias_info.is_write
    # Without these the packing could not be traced; when torch brings its own, ours have to go.
    assert [a.name for a in QCONV_PREPACK._schema.arguments][:4] == ["weight", "w_scales", "x_scale", "x_zp"]
    assert [a.name for a in QLINEAR_PREPACK._schema.arguments] == ["weight", "x_shape"]


def test_packed_weights_when_traced() -> None:
    register_fakes()
    register_fakes()  # once in a process, however often asked for
    scales = torch.ones(4)
    with FakeTensorMode() as mode:
        weight = mode.from_tensor(torch.zeros(4, 3, 2, 2, dtype=torch.int8))
        packed = QCONV_PREPACK(weight, mode.from_tensor(scales), 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)
        assert (packed.shape, packed.dtype) == (weight.shape, torch.int8)
        matrix = mode.from_tensor(torch.zeros(4, 3, dtype=torch.int8))
        packed = QLINEAR_PREPACK(matrix, None)
        # Inputs by outputs.
        assert (packed.shape, packed.dtype) == ((3, 4), torch.int8)


class QLinear(nn.Module):
    def __init__(self, packed: Tensor) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scales", torch.tensor([0.5, 0.25, 0.125]))
        self.register_buffer("zero_points", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("bias", torch.tensor([1.0, -2.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.packed, self.scales, self.zero_points)
        return QLINEAR(x, 0.5, 3, *weight, self.bias, 1.0, 0, torch.float32, "none", [0.0], "")


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (4,)])
def test_the_result_of_a_weight_that_is_no_constant(shape: tuple[int, ...]) -> None:
    register_lowerings()
    torch._dynamo.reset()
    weight = torch.tensor([[1, 2, 3, 4], [-1, 0, 1, 0], [7, -7, 7, -7]], dtype=torch.int8)
    model = QLinear(QLINEAR_PREPACK(weight, list(shape)))
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.uint8).reshape(shape)
    # Small integers and powers of two: float arithmetic is exact.
    expected = (x.double() - 3) * 0.5 @ (weight.double() * model.scales.double()[:, None]).T + model.bias
    with torch.no_grad():
        assert torch.equal(torch.compile(model)(x).double(), expected)
