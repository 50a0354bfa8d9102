"""Small flows through the verbs with a report looking on, and a reader of what reports are encoded as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest
import torch
from lowbit import (
    HistogramObserver,
    PerChannelMinMaxObserver,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    calibrate,
    convert_pt2e,
    prepare_pt2e,
)
from lowbit.passes.instruments import Change, Instrument
from lowbit.tools.report import Report
from torch import Tensor, nn
from torch.fx import GraphModule

# With the search for the best range, converting a deep model would take most of the time of these tests.
HISTOGRAM = HistogramObserver.with_args(range_rule="min-max")
ACTIVATION = QuantizationSpec(torch.uint8, HISTOGRAM, 0, 255, torch.per_tensor_affine)
WEIGHT = QuantizationSpec(
    torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, ch_axis=0
)


class WeightedQuantizer(Quantizer):
    """Annotates convolutions and linears; needs no patterns, which take seconds to capture."""

    def annotate(self, model: GraphModule) -> GraphModule:
        for op in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            for node in model.graph.find_nodes(op="call_function", target=op):
                x, weight = node.args[:2]
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    {x: ACTIVATION, weight: WEIGHT}, _annotated=True
                )
        return model

    def validate(self, model: GraphModule) -> None: ...


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).mean((2, 3)))


@attrs.define
class Diffs:
    """Keeps the diff of every pass."""

    changes: list[Change] = attrs.Factory(list)

    def before(self, pass_: object, gm: GraphModule) -> None: ...

    def after(self, pass_: object, gm: GraphModule, change: Change) -> None:
        self.changes.append(change)


@attrs.frozen(eq=False)
class Flow:
    report: Report
    changes: list[Change]
    inputs: tuple[Tensor, ...]
    prepared: GraphModule
    converted: GraphModule


def run_flow(model: nn.Module | None = None, *inputs: Tensor) -> Flow:
    torch.manual_seed(0)
    model = (model or Net()).eval()
    inputs = inputs or (torch.randn(2, 3, 8, 8),)
    report, diffs = Report(), Diffs()
    instruments: Sequence[Instrument] = (report, diffs)
    exported = torch.export.export(model, inputs).module()
    prepared = prepare_pt2e(exported, WeightedQuantizer(), instruments=instruments)
    calibrate(prepared, [inputs], progress=False)
    converted = convert_pt2e(prepared, instruments=instruments)
    return Flow(report, diffs.changes, inputs, prepared, converted)


@pytest.fixture(name="run_flow")
def run_flow_fixture() -> Callable[..., Flow]:
    return run_flow


@pytest.fixture(scope="session")
def flow() -> Flow:
    return run_flow()


def read(data: dict[str, Any]) -> Iterator[dict[int, list[Any]]]:
    """The rows of each moment by node, in the order of the graph: what the page does, once more."""
    order: list[int] = []
    rows: dict[int, list[Any]] = {}
    for run in data["runs"]:
        for moment in run["moments"]:
            pieces = moment["order"]
            now: list[int] = []
            for at, count in zip(pieces[::2], pieces[1::2], strict=True):
                now += [count] if at == -1 else order[at : at + count]
            changed = moment["rows"]
            new = {k: data["rows"][r] for k, r in zip(changed[::2], changed[1::2], strict=True)}
            order, rows = now, {key: new.get(key) or rows[key] for key in now}
            yield rows


@pytest.fixture(name="read")
def read_fixture() -> Callable[[dict[str, Any]], Iterator[dict[int, list[Any]]]]:
    return read
