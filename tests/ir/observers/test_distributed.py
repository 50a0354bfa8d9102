"""Observers and fake quantizers agree between the processes of DistributedDataParallel."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lowbit import freeze_bn_stats
from lowbit.errors import CalibrationDataError, UnsupportedError
from lowbit.ir.observers import FakeQuantize, MinMaxObserver
from lowbit.ir.observers.distributed import extremes_of_all_ranks, running_group, sum_of_all_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

WORKER = Path(__file__).with_name("ddp_worker.py")
RANKS = 2


def load_worker() -> Any:
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes, one a rank, report."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(RANKS), str(folder)],
            env=environment,
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


def bits(states: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    return [{k: (v.dtype, v.shape, v.tolist()) for k, v in state.items()} for state in states]


def test_two_ranks_find_what_one_process_finds_in_all_of_the_data(reports: list[dict[str, Any]]) -> None:
    worker = load_worker()
    model = worker.Observed()
    expected = bits(worker.observe(model, model, 0, 1))
    for report in reports:
        assert bits(report["observed"]) == expected
    # Something was found, and more at each step.
    scales = [tuple(state["input.scale"].tolist()) for state in reports[0]["observed"]]
    assert len(set(scales)) == worker.STEPS


def test_learned_parameters_agree_and_start_from_all_of_the_data(reports: list[dict[str, Any]]) -> None:
    worker = load_worker()
    first, second = (bits(report["learned"]) for report in reports)
    assert first == second
    model = worker.Learned()
    alone = bits(worker.learn(model, model, 0, 1))
    assert first[0] == alone[0]
    for name in ("input.scale", "input.zero_point", "of_weight.scale", "linear.weight"):
        assert first[-1][name] != first[0][name], name


def test_bad_data_of_one_rank_stop_all(reports: list[dict[str, Any]]) -> None:
    found = [report["bad data"] for report in reports]
    assert "another rank" in found[0]
    assert "1 NaN" in found[1]


def without(states: list[dict[str, Any]], *suffixes: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in state.items() if not k.endswith(suffixes)} for state in states]


def test_a_prepared_model_trains_as_in_one_process(reports: list[dict[str, Any]]) -> None:
    """Each rank has half of the rows. BatchNorm is frozen: its statistics would be those of a rank's own."""
    first, second = (without(report["frozen"], "loss") for report in reports)
    assert bits(first) == bits(second)
    assert torch.equal(reports[0]["frozen evaluated"], reports[1]["frozen evaluated"])

    worker = load_worker()
    model = freeze_bn_stats(worker.prepared_model())
    alone = worker.train(model, model, 0, 1)
    for i, state in enumerate(first):
        assert state.keys() == alone[i].keys() - {"loss"}
        for name, value in state.items():
            torch.testing.assert_close(value, alone[i][name], rtol=1e-4, atol=1e-5, msg=f"{name} of step {i}")
        losses = [report["frozen"][i]["loss"] for report in reports]
        torch.testing.assert_close(sum(losses) / RANKS, alone[i]["loss"], rtol=1e-5, atol=1e-6)
        assert losses[0] != losses[1]
    torch.testing.assert_close(worker.evaluate(model, model), reports[0]["frozen evaluated"])
    # Ranges moved in every step.
    scales = [name for name in first[0] if name.endswith("post_process.scale")]
    assert scales
    assert len({tuple(state[scales[0]].tolist()) for state in first}) == worker.STEPS


def test_observers_agree_where_batch_norms_differ(reports: list[dict[str, Any]]) -> None:
    first, second = (report["trained"] for report in reports)
    own = ("loss", "running_mean", "running_var")
    assert bits(without(first, *own)) == bits(without(second, *own))
    assert any("activation_post_process" in name for name in without(first, *own)[0])
    # DistributedDataParallel hands out those of rank 0 before each step, and each rank updates them.
    differing = [name for name in first[0] if not torch.equal(first[0][name], second[0][name])]
    assert {name.rpartition(".")[2] for name in differing} == set(own)


# -- in this process, as the only rank


class Spy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(running_group())
        return x * self.weight


@pytest.fixture
def only_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("only_rank")
def test_torch_still_says_which_module_is_running() -> None:
    """Fails when the private interfaces named in ``ir/observers/distributed.py`` move."""
    spy = Spy()
    running = DistributedDataParallel(spy)
    spy(torch.ones(1))
    running(torch.ones(1))
    assert spy.seen == [None, running.process_group]
    assert running_group() is None
    assert running._join_config.enable is False


@pytest.mark.usefixtures("only_rank")
def test_uneven_inputs_are_refused_rather_than_waited_for() -> None:
    running = DistributedDataParallel(Spy())
    with pytest.raises(UnsupportedError, match=r"under DistributedDataParallel\.join"), running.join():
        running(torch.ones(1))
    assert running_group() is None


@pytest.mark.usefixtures("only_rank")
def test_empty_and_bad_data_in_a_distributed_forward() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.observer = MinMaxObserver()
            self.quantize = FakeQuantize()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.quantize(self.observer(x)) * self.weight

    model = Model()
    running = DistributedDataParallel(model)
    running(torch.empty(0, 2))
    assert not model.observer.has_data
    assert not model.quantize.has_data
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(CalibrationDataError, match="among the 2 values"):
            running(torch.tensor([1.0, bad]))
    assert not model.observer.has_data
    running(torch.tensor([-1.0, 2.0]))
    running(torch.empty(0, 2))
    assert (model.observer.min_val.item(), model.observer.max_val.item()) == (-1.0, 2.0)
    assert model.quantize.activation_post_process.tensors_seen == 1


def test_outside_of_a_distributed_forward_nothing_is_shared() -> None:
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    assert extremes_of_all_ranks(low, high) == (low, high)
    assert sum_of_all_ranks(low) is low
