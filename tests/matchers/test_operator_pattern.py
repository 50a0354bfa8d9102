"""Operator patterns: one declaration, and what is read from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lowbit.errors import PatternError
from lowbit.matchers.match import Match
from lowbit.matchers.operator_pattern import Occurrence, OperatorPattern, Role
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
WEIGHTED = (Role.ACTIVATION, Role.WEIGHT, Role.BIAS)


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.linear(x, weight, bias))


def scaled_add(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(x, y, alpha=2)


def linear_inputs() -> tuple[Tensor, ...]:
    return torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)


def pair() -> tuple[Tensor, ...]:
    return torch.zeros(2), torch.zeros(2)


LINEAR_RELU = OperatorPattern("linear-relu", linear_relu, linear_inputs, WEIGHTED)


def exported(model: nn.Module, *inputs: Tensor) -> GraphModule:
    module = torch.export.export(model.eval(), inputs).module()
    assert isinstance(module, GraphModule)
    return module


def test_what_is_read_from_the_declaration() -> None:
    assert LINEAR_RELU.parameters == ("x", "weight", "bias")
    assert LINEAR_RELU.anchor is aten.relu.default
    assert LINEAR_RELU.size == 2
    assert [n.target for n in LINEAR_RELU.captured.graph.find_nodes(op="placeholder")] == [
        "args_0",
        "args_1",
        "args_2",
    ]


def test_a_pattern_is_captured_when_asked_for_and_once() -> None:
    calls: list[int] = []

    def inputs() -> tuple[Tensor, ...]:
        calls.append(1)
        return linear_inputs()

    pattern = OperatorPattern("linear-relu", linear_relu, inputs, WEIGHTED)
    assert not calls
    assert pattern.captured is pattern.captured
    assert pattern.matcher is pattern.matcher
    assert len(calls) == 1


def test_each_parameter_has_a_role() -> None:
    pattern = OperatorPattern("linear-relu", linear_relu, linear_inputs, WEIGHTED[:2])
    with pytest.raises(PatternError, match="gives 2 roles to 3 parameters"):
        _ = pattern.parameters


def test_the_first_guard_that_refuses_gives_the_reason() -> None:
    asked: list[Occurrence] = []

    def note(occurrence: Occurrence) -> None:
        asked.append(occurrence)

    pattern = OperatorPattern(
        "linear-relu",
        linear_relu,
        linear_inputs,
        WEIGHTED,
        guards=(note, lambda _: "first", lambda _: "second"),
    )
    model = exported(nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU()), torch.zeros(2, 3))
    (relu,) = model.graph.find_nodes(op="call_function", target=aten.relu.default)
    match = pattern.matcher.match_at(relu)
    assert isinstance(match, Match)
    assert pattern.match_refusal(match) == "first"
    (occurrence,) = asked
    x, weight, bias = occurrence.inputs
    assert isinstance(x, Node)
    assert x.op == "placeholder"
    assert isinstance(weight, Node)
    assert weight.op == "get_attr"
    assert bias is None
    assert occurrence.output is relu


class Adds(nn.Module):
    def __init__(self, alpha: int) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.add(x, y, alpha=self.alpha)


@pytest.mark.parametrize(
    ("alpha", "refusal"), [(2, None), (1, "different-literal"), (3, "different-literal")]
)
def test_keyword_only_literals_choose_the_function(alpha: int, refusal: str | None) -> None:
    pattern = OperatorPattern("scaled-add", scaled_add, pair, (Role.ACTIVATION, Role.ACTIVATION))
    model = exported(Adds(alpha), *pair())
    (add,) = model.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    # Of a canonical graph no argument is left to its default.
    add.kwargs = {"alpha": alpha}
    match = pattern.matcher.match_at(add)
    assert isinstance(match, Match)
    assert pattern.match_refusal(match) == (None if alpha == 2 else "different-literal")
