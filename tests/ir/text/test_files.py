"""Graphs in files: which file has whose tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lowbit.errors import GraphInputError
from lowbit.ir.text import load_graph, save_graph
from torch import nn
from torch.fx import GraphModule


def linear(seed: int) -> GraphModule:
    torch.manual_seed(seed)
    return torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)).module()


def test_names_with_dots_have_tensors_of_their_own(tmp_path: Path) -> None:
    names = ("m.v1", "m.v2", "m", "n.v1.lowbit", "n.lowbit.lowbit", "n.lowbit")
    graphs = {name: linear(seed) for seed, name in enumerate(names)}
    for name, gm in graphs.items():
        save_graph(gm, tmp_path / name)
    for name, gm in graphs.items():
        assert torch.equal(load_graph(tmp_path / name).state_dict()["weight"], gm.state_dict()["weight"])
    beside = ("m.v1", "m.v2", "m", "n.v1", "n.lowbit", "n")
    assert sorted(each.name for each in tmp_path.glob("*.safetensors")) == sorted(
        f"{name}.safetensors" for name in beside
    )


@pytest.mark.parametrize(("first", "second"), [("m", "m.lowbit"), ("m.lowbit", "m")])
def test_tensors_of_another_graph_are_not_replaced(tmp_path: Path, first: str, second: str) -> None:
    gm = linear(0)
    save_graph(gm, tmp_path / first)
    with pytest.raises(GraphInputError, match="choose another name"):
        save_graph(linear(1), tmp_path / second)
    assert torch.equal(load_graph(tmp_path / first).state_dict()["weight"], gm.state_dict()["weight"])
    assert not (tmp_path / second).exists()
    (tmp_path / first).write_text("something else", encoding="utf-8")
    save_graph(gm, tmp_path / second)
    save_graph(gm, tmp_path / second)


def test_tensors_are_not_written_where_the_text_goes(tmp_path: Path) -> None:
    with pytest.raises(GraphInputError, match="where the tensors would go"):
        save_graph(linear(0), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
