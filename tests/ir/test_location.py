"""Where a node comes from, as real exports say it."""

from __future__ import annotations

import inspect
import operator
from pathlib import Path

import pytest
import torch
from lowbit.ir.location import (
    describe_node,
    describe_point,
    locate,
    module_path,
    module_stack,
    source_line,
    target_text,
)
from torch import nn
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.conv(x))
        return self.relu(-x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(), Block())
        self.heads = nn.ModuleDict({"main": nn.Linear(3, 2)})

    def forward(self, x):
        y = self.layers(x).mean((2, 3))
        return torch.sigmoid(self.heads["main"](y))


@pytest.fixture(scope="module", params=[False, True], ids=["non-strict", "strict"])
def gm(request) -> GraphModule:
    return torch.export.export(Model().eval(), (torch.ones(1, 3, 2, 2),), strict=request.param).module()


def calls(gm: GraphModule, target: object) -> list[Node]:
    return gm.graph.find_nodes(op="call_function", target=target)


def line_of(function, code: str) -> int:
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if code in line)


def test_module_paths_are_dotted_however_the_model_was_exported(gm: GraphModule) -> None:
    assert [module_path(n.meta) for n in calls(gm, aten.conv2d.default)] == ["layers.0.conv", "layers.1.conv"]
    # One ReLU called twice in each block.
    assert [module_path(n.meta) for n in calls(gm, aten.relu.default)] == [
        *("layers.0.relu", "layers.0.relu", "layers.1.relu", "layers.1.relu"),
    ]
    assert [module_path(n.meta) for n in calls(gm, aten.linear.default)] == ["heads.main"]
    assert [module_path(n.meta) for n in calls(gm, aten.sigmoid.default)] == [""]
    assert module_path({}) == ""


@pytest.mark.parametrize(
    ("path", "dotted"),
    [
        ("", ""),
        ("layer1.0.conv", "layer1.0.conv"),
        ("relu@1", "relu"),
        ("L['self']", ""),
        ("L['self'].layer1[0].conv", "layer1.0.conv"),
        ("L['self'].heads['main']", "heads.main"),
        ("L['self'].layer1[0].relu@2", "layer1.0.relu"),
    ],
)
def test_every_form_of_a_path_is_dotted(path: str, dotted: str) -> None:
    assert module_path({"nn_module_stack": {"key": (path, "torch.nn.Module")}}) == dotted


def test_module_stacks_tell_calls_apart(gm: GraphModule) -> None:
    first, second, *_ = calls(gm, aten.relu.default)
    stack = module_stack(first.meta)
    assert [m.path for m in stack] == ["", "layers", "layers.0", "layers.0.relu"]
    assert stack[-1].kind == "torch.nn.modules.activation.ReLU"
    assert stack[-1].call != module_stack(second.meta)[-1].call


@pytest.mark.parametrize(
    ("target", "function", "code"),
    [
        (aten.mean.dim, Model.forward, "self.layers(x).mean((2, 3))"),
        # Below these lines stand those of torch.nn, which tell a user nothing.
        (aten.conv2d.default, Block.forward, "self.conv(x)"),
        (aten.linear.default, Model.forward, 'self.heads["main"](y)'),
    ],
)
def test_the_source_line_is_the_users(gm: GraphModule, target, function, code: str) -> None:
    text = source_line(calls(gm, target)[0].meta)
    assert text.startswith(f"{Path(__file__)}:{line_of(function, code)}: ")
    assert code in text


def test_a_trace_of_torch_alone_is_better_than_none() -> None:
    torch_file = Path(torch.__file__).parent / "nn/functional.py"
    trace = f'File "{torch_file}", line 3, in relu\n    return torch.relu(input)'
    assert source_line({"stack_trace": trace}) == f"{torch_file}:3: return torch.relu(input)"


@pytest.mark.parametrize("meta", [{}, {"stack_trace": None}, {"stack_trace": "no frame in here"}])
def test_no_trace_is_no_line(meta) -> None:
    assert source_line(meta) == ""


def test_a_node_is_located_by_itself_its_module_and_its_line(gm: GraphModule) -> None:
    (place,) = locate(calls(gm, aten.conv2d.default)[1])
    node, module, line = place.splitlines()
    assert node == "%conv2d_1 (aten.conv2d.default)"
    assert module == "module layers.1.conv"
    assert line.endswith("x = self.relu(self.conv(x))")


def test_functions_are_named_as_they_are_imported() -> None:
    targets = (operator.getitem, torch.relu, torch.nn.functional.gelu, torch.ops.aten.relu.default)
    names = ["operator.getitem", "torch.relu", "torch._C._nn.gelu", "aten.relu.default"]
    assert [target_text(target) for target in targets] == names


def test_nodes_and_points_in_short() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    y = graph.create_node("call_module", "sub.layer", (x,), name="y")
    assert describe_node(x) == "%x (placeholder x)"
    assert describe_node(y) == "%y (call_module sub.layer)"
    assert describe_point(y) == "output of %y"
    assert describe_point((x, y)) == "edge %x → %y"
    assert locate(y) == ("%y (call_module sub.layer)",)
