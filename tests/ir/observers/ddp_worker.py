"""One rank of the distributed tests: ``python ddp_worker.py RANK RANKS FOLDER``.

Run as a script by ``test_distributed.py``, which compares what the ranks write into FOLDER.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lowbit import (
    X86InductorQuantizer,
    freeze_bn_stats,
    get_default_x86_inductor_quantization_config,
    prepare_qat_pt2e,
)
from lowbit.errors import CalibrationDataError
from lowbit.ir.observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 3
PER_CHANNEL = {"dtype": torch.int8, "qscheme": torch.per_channel_symmetric}
# How many rows of each batch go to rank 0 of 2: uneven, and once none at all.
SHARES = (4, 7, 0)


class Observed(nn.Module):
    """All element by element, so that no rounding depends on how a batch is divided."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 3, generator=generator))
        self.input = FusedMovingAvgObsFakeQuantize(averaging_constant=0.25, dtype=torch.uint8)
        self.of_weight = FakeQuantize(MovingAveragePerChannelMinMaxObserver, **PER_CHANNEL)
        self.columns = FakeQuantize(PerChannelMinMaxObserver, ch_axis=1, dtype=torch.int8)
        self.output = FakeQuantize(HistogramObserver, dtype=torch.uint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.columns(self.input(x)) * self.of_weight(self.weight).sum(1))


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 4)
        self.input = LearnableFakeQuantize(dtype=torch.uint8)
        self.of_weight = LearnableFakeQuantize(PerChannelMinMaxObserver, channels=4, **PER_CHANNEL)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.of_weight(self.linear.weight)
        return nn.functional.linear(self.input(x), weight, self.linear.bias)


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(step)) * (step + 1)


def share(step: int, rank: int, ranks: int) -> torch.Tensor:
    rows = SHARES[step]
    return batch(step) if ranks == 1 else batch(step)[:rows] if rank == 0 else batch(step)[rows:]


def observe(model: Observed, run: nn.Module, rank: int, ranks: int) -> list[dict[str, Any]]:
    """The state after each step; the weight changes between steps, the same way on every rank."""
    states = []
    for step in range(STEPS):
        run(share(step, rank, ranks)).sum().backward()
        with torch.no_grad():
            model.weight.mul_(1.5)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return states


def learn(model: Learned, run: nn.Module, rank: int, ranks: int) -> list[dict[str, Any]]:
    # Made before there are data, as users do.
    zero_points = [p for name, p in model.named_parameters() if name.endswith("zero_point")]
    others = [p for name, p in model.named_parameters() if not name.endswith("zero_point")]
    # Zero points are in units of integers, and their gradients in units of the loss a scale.
    groups = [{"params": others}, {"params": zero_points, "lr": 100.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    states = []
    for step in range(STEPS):
        loss = run(batch(step) if ranks == 1 else batch(step)[rank::ranks]).square().mean()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    states.append({name: value.clone() for name, value in model.state_dict().items()})
    return states


def prepared_model() -> nn.Module:
    """A network as users prepare it, trained for a step on data that are no rank's own."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    x = torch.randn(8, 2, 5, 5)
    dynamic = ({0: torch.export.Dim("batch", min=2)},)
    exported = torch.export.export(nn.Sequential(*layers).train(), (x,), dynamic_shapes=dynamic).module()
    config = get_default_x86_inductor_quantization_config(is_qat=True)
    model = prepare_qat_pt2e(exported, X86InductorQuantizer().set_global(config))
    model(x)
    return model


def train(model: nn.Module, run: nn.Module, rank: int, ranks: int) -> list[dict[str, Any]]:
    """The state, the gradients and this rank's loss after each step of training on its rows."""
    optimizer = torch.optim.SGD(run.parameters(), lr=0.05, momentum=0.9)
    states = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 2, 5, 5, generator=generator) * (step + 1)
        labels = torch.randint(3, (8,), generator=generator)
        loss = F.cross_entropy(run(x[rank::ranks]), labels[rank::ranks])
        optimizer.zero_grad()
        loss.backward()
        gradients = {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        states.append(state | gradients | {"loss": loss.detach()})
    return states


def evaluate(model: nn.Module, run: nn.Module) -> torch.Tensor:
    """What all ranks see of the same data, by the switch of the module that trains."""
    run.eval()
    with torch.no_grad():
        y = model(torch.ones(2, 2, 5, 5))
    run.train()
    return y


def meet_bad_data(run: nn.Module, rank: int) -> str:
    x = batch(0)
    if rank == 1:
        x[0, 0] = float("nan")
    try:
        run(x)
    except CalibrationDataError as error:
        return error.found
    return "nothing"


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    observed, learned, alone = Observed(), Learned(), Observed()
    run = DistributedDataParallel(observed)
    report = {
        "observed": observe(observed, run, rank, ranks),
        "learned": learn(learned, DistributedDataParallel(learned), rank, ranks),
        "bad data": meet_bad_data(run, rank),
    }
    prepared = prepared_model()
    for name, model in (("frozen", freeze_bn_stats(copy.deepcopy(prepared))), ("trained", prepared)):
        run = DistributedDataParallel(model)
        report[name] = train(model, run, rank, ranks)
        report[f"{name} evaluated"] = evaluate(model, run)
    if rank == 0:
        # Outside of a distributed forward nobody waits for the others.
        alone(batch(0))
        observed.eval()(batch(0))
    torch.save(report, folder / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
