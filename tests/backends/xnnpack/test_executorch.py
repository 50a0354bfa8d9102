"""ExecuTorch takes converted models: its XNNPACK partitioner leaves nothing out, and the program runs.

Needs the ``executorch`` package (1.5.1 is the one for torch 2.13), which is no dependency of ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lowbit import XNNPACKQuantizer, convert_pt2e, decisions, get_symmetric_quantization_config, prepare_pt2e
from lowbit.ir import quantized_decomposed as qd
from torch import Tensor, nn
from torch.fx import GraphModule

partitioner = pytest.importorskip(
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    reason="needs the package executorch, 1.5.1 for torch 2.13",
)


class Model(nn.Module):
    """Layers to write small models with; ``body`` is the forward."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.row = nn.Conv1d(6, 5, 3)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.transposed = nn.ConvTranspose2d(4, 6, 2, 2)
        self.linear = nn.Linear(6, 5)
        self.offset = nn.Parameter(torch.randn(6))
        self.body = body

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.body(self, *inputs)


BODIES: dict[str, Callable[..., Tensor]] = {
    "conv1d": lambda m, x: m.row(x[0]),
    "conv1d-relu": lambda m, x: F.relu(m.row(x[0])),
    "conv2d": lambda m, x: m.conv(x),
    "conv2d-relu": lambda m, x: F.relu(m.conv(x)),
    "conv2d-relu6": lambda m, x: F.relu6(m.conv(x)),
    "conv2d-hardtanh": lambda m, x: F.hardtanh(m.conv(x)),
    "depthwise": lambda m, x: F.relu(m.depthwise(x)),
    "conv_transpose2d": lambda m, x: m.transposed(x),
    "conv_transpose2d-relu": lambda m, x: F.relu(m.transposed(x)),
    "linear": lambda m, x: m.linear(x),
    "linear-relu": lambda m, x: F.relu(m.linear(x)),
    "linear-hardtanh": lambda m, x: F.hardtanh(m.linear(x), -0.5, 0.25),
    "add": lambda m, x: x + m.depthwise(x),
    "add to itself": lambda m, x: x + x,
    "add broadcast": lambda m, x: x + m.offset,
    "add-relu": lambda m, x: F.relu(x + m.depthwise(x)),
    "mul": lambda m, x: x * m.depthwise(x),
    "mul-relu": lambda m, x: F.relu(x * x),
    "relu": lambda m, x: torch.cat([y := m.conv(x), F.relu(y)]),
    "relu6": lambda m, x: F.relu6(x + x),
    "hardtanh": lambda m, x: F.hardtanh(x + x),
    "max_pool2d": lambda m, x: F.max_pool2d(m.conv(x), 3, 2, 1),
    "max_pool2d ceil": lambda m, x: F.max_pool2d(m.conv(x), 4, 3, 1, ceil_mode=True),
    "adaptive_avg_pool2d": lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 1),
    "mean": lambda m, x: m.conv(x).mean((-1, 2), keepdim=True),
    "cat": lambda m, x: torch.cat([m.conv(x), x * x, x + x], 1),
    "flatten": lambda m, x: torch.flatten(m.conv(x), 1),
    "reshape": lambda m, x: m.conv(x).reshape(2, -1),
    "view": lambda m, x: m.linear(x).view(2, 4, 30),
    "permute": lambda m, x: m.conv(x).permute(0, 2, 3, 1),
    "transpose": lambda m, x: m.conv(x).transpose(1, 2),
    "slice": lambda m, x: m.conv(x)[:, 1:3, 2:],
}


PER_TENSOR, PER_CHANNEL = {"is_per_channel": False}, {"is_per_channel": True}
CASES = [
    *((name, PER_TENSOR) for name in BODIES),
    *((name, PER_CHANNEL) for name in BODIES if name.startswith(("conv", "depthwise", "linear"))),
    ("linear", {"is_per_channel": True, "is_dynamic": True}),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_the_partitioner_takes_all_of_it_and_the_program_runs(name: str, preset: dict[str, bool]) -> None:
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    exported = torch.export.export(Model(BODIES[name]).eval(), (x,)).module()
    assert isinstance(exported, GraphModule)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**preset))
    prepared = prepare_pt2e(exported, quantizer)
    prepared(x)
    converted = convert_pt2e(prepared).requires_grad_(False)
    # x[0] of conv1d is no operator of XNNPACK's.
    left = {d.node for d in decisions(converted) if d.status == "float"}
    assert left == ({"select"} if name.startswith("conv1d") else set())

    program = torch.export.export(converted, (x,))
    edge = to_edge_transform_and_lower(program, partitioner=[partitioner.XnnpackPartitioner()])
    called = [n for n in edge.exported_program().graph.nodes if n.op == "call_function"]
    outside = [n.name for n in called if n.target is not operator.getitem]
    assert outside[-1:] == ["executorch_call_delegate"]
    assert len(outside) == 1 + len(left)

    # A method keeps neither its program nor the bytes alive.
    file = edge.to_executorch()
    loaded = Runtime.get().load_program(file.buffer)
    (result,) = loaded.load_method("forward").execute([x])
    assert float((result - converted(x)).abs().max()) <= step(converted, x) * 1.001


def step(converted: GraphModule, x: torch.Tensor) -> float:
    """What one rounding the other way may change: the largest scale of a tensor.

    Where ranges are found at run time, XNNPACK finds one for each row. Then no input of a linear is further
    off than a step of all of ``x``, which a row of the weight adds up.
    """
    scales = [n.args[1] for n in converted.graph.nodes if n.target is qd.QUANTIZE_PER_TENSOR]
    if scales:
        return max(s for s in scales if isinstance(s, float))
    weight, scale = converted.get_buffer("linear.weight_int8"), converted.get_buffer("linear.weight_scale")
    low, high = x.aminmax()
    return float((high - low) / 255 * (weight.abs() * scale[:, None]).sum(1).max())
