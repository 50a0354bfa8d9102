"""Near misses: the pattern that an operator is almost part of, and what is in the way."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit.backends.guards import constant_weight
from lowbit.ir.near_miss import NearMiss
from lowbit.matchers import near_miss
from lowbit.matchers.near_miss import NearMisses
from lowbit.matchers.operator_pattern import OperatorPattern, Role, Sharing
from lowbit.passes import Normalize, PassManager, Pipeline
from torch import Tensor, nn
from torch.fx import GraphModule, Node

IMAGE = torch.zeros(1, 3, 8, 8)
WEIGHTED = (Role.ACTIVATION, Role.WEIGHT, Role.BIAS)


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias)


CONV = OperatorPattern(
    "conv2d",
    conv,
    lambda: (IMAGE, torch.zeros(3, 3, 1, 1), torch.zeros(3)),
    WEIGHTED,
    guards=(constant_weight(1),),
)


def behind(name: str, function: Callable[[Tensor], Tensor]) -> OperatorPattern:
    return attrs.evolve(CONV, name=name, function=lambda x, weight, bias: function(conv(x, weight, bias)))


PATTERNS = (
    CONV,
    behind("conv2d-relu", F.relu),
    behind("conv2d-gelu", F.gelu),
    behind("conv2d-tanh-relu", lambda y: F.relu(torch.tanh(y))),
    OperatorPattern(
        "flatten",
        lambda x: x.flatten(1),
        lambda: (IMAGE,),
        (Role.ACTIVATION,),
        sharing=Sharing.SAME_AS_INPUT,
    ),
)


class Net(nn.Module):
    def __init__(self, function: Callable[[Net, Tensor], object], **options: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, **{"kernel_size": 1, **options})  # pyright: ignore[reportArgumentType]
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def graph_of(function: Callable[[Net, Tensor], object], **options: object) -> dict[str, Node]:
    exported = torch.export.export(Net(function, **options).eval(), (IMAGE,)).module()
    assert isinstance(exported, GraphModule)
    gm = PassManager().run(exported, Pipeline((Normalize(),)))
    return {node.name: node for node in gm.graph.nodes}


def test_a_value_inside_the_pattern_with_a_second_reader() -> None:
    nodes = graph_of(lambda m, x: F.relu(y := m.conv(x)) + y)
    miss = NearMisses(PATTERNS).of(nodes["conv2d"], larger_than=1)
    assert miss == NearMiss(
        "conv2d-relu", 1, 2, "second-user", "conv2d",
        "%conv2d has 2 readers (%relu, %add), and fused only one of them could read it",
    )  # fmt: skip
    assert NearMisses(PATTERNS).of(nodes["relu"]) == miss
    assert str(miss).startswith("conv2d-relu: %conv2d has 2 readers")


def test_of_many_readers_a_few_are_named() -> None:
    nodes = graph_of(lambda m, x: F.relu(y := m.conv(x)) + y + y.sin() + y.cos() + y.tan())
    miss = NearMisses(PATTERNS).of(nodes["conv2d"], larger_than=1)
    assert miss is not None
    assert "has 5 readers (%relu, %add, %sin and 2 more)" in miss.detail


def test_another_literal() -> None:
    nodes = graph_of(lambda m, x: F.gelu(m.conv(x), approximate="tanh"))
    miss = NearMisses(PATTERNS).of(nodes["gelu"])
    assert miss is not None
    assert (miss.pattern, miss.found, miss.size, miss.reason) == ("conv2d-gelu", 2, 2, "different-literal")
    assert miss.detail == "approximate of %gelu is 'tanh', in the pattern 'none'"


def test_a_condition_that_is_not_met_is_nearer_than_operators_that_are_missing() -> None:
    nodes = graph_of(lambda m, x: F.conv2d(x, m.conv.weight * 2, m.conv.bias).sigmoid())
    miss = NearMisses(PATTERNS).of(nodes["conv2d"])
    assert miss is not None
    assert (miss.pattern, miss.found, miss.size, miss.reason) == ("conv2d", 1, 1, "weight-not-constant")
    assert miss.detail.endswith(": %mul (aten.mul.Tensor)")


def test_of_patterns_with_other_operators_the_one_with_fewest_missing() -> None:
    nodes = graph_of(lambda m, x: torch.tanh(m.conv(x)).sigmoid())
    miss = NearMisses(PATTERNS).of(nodes["conv2d"], larger_than=1)
    assert miss is not None
    assert (miss.pattern, miss.found, miss.size) == ("conv2d-tanh-relu", 2, 3)
    assert miss.detail == "%sigmoid (aten.sigmoid.default) reads %tanh, not aten.relu.default"
    assert miss.reason == "different-target"


def test_the_last_operator_of_the_model() -> None:
    miss = NearMisses(PATTERNS).of(graph_of(lambda m, x: m.conv(x))["conv2d"], larger_than=1)
    assert miss is not None
    assert miss.detail == "no aten.relu.default reads %conv2d, which the model returns"


def test_another_overload_of_the_operator() -> None:
    # Of an even kernel the two ends are padded by different amounts, which numbers cannot say.
    miss = NearMisses((CONV,)).of(graph_of(lambda m, x: m.conv(x), kernel_size=2, padding="same")["conv2d"])
    assert miss is not None
    assert (miss.found, miss.reason) == (0, "different-target")
    assert miss.detail == "%conv2d is aten.conv2d.padding, not aten.conv2d.default"


def test_no_near_miss_of_what_fits_or_of_what_no_pattern_has() -> None:
    nodes = graph_of(lambda m, x: F.relu(m.conv(x)).softmax(1).flatten(1))
    assert NearMisses(PATTERNS).of(nodes["conv2d"]) is None
    assert NearMisses(PATTERNS).of(nodes["relu"]) is None
    assert NearMisses(PATTERNS).of(nodes["softmax"]) is None
    # What moves values follows its inputs; there is no structure to miss.
    assert NearMisses(PATTERNS).of(nodes["flatten"]) is None


def test_the_work_does_not_depend_on_the_size_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Node] = []

    class Counting(near_miss.Search):
        def match_at(self, anchor):
            looked.append(anchor)
            return super().match_at(anchor)

    monkeypatch.setattr(near_miss, "Search", Counting)
    counts = []
    for length in (2, 20):
        nodes = graph_of(
            lambda m, x, length=length: [x := F.relu(y := m.conv(x)) + y for _ in range(length)][-1]
        )
        looked.clear()
        assert NearMisses(PATTERNS).of(nodes["conv2d"], larger_than=1) is not None
        counts.append(len(looked))
    assert counts[0] == counts[1] <= len(PATTERNS)
