"""What ``torch.export`` puts on a module besides its graph; what breaks here when its private names move."""

from __future__ import annotations

import pytest
import torch
from lowbit.errors import UnsupportedError
from lowbit.ir.text import parse, to_text
from lowbit.ir.text.exported import checks_inputs, is_guards, read_signature
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Tracer
from torch.fx.graph import CodeGen


class Model(nn.Module):
    def forward(self, x: Tensor, *, rest: dict[str, list[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        return x + rest["a"][0], {"b": x * rest["a"][1]}


INPUTS = (torch.ones(4, 3),)
KEYWORDS = {"rest": {"a": [torch.ones(4, 3), torch.full((4, 3), 2.0)]}}


def exported(*, check_guards: bool = True, largest: int | None = None) -> GraphModule:
    size = torch.export.Dim("size", min=2, max=largest)
    shapes = {"x": {0: size}, "rest": {"a": [{0: size}, {0: size}]}}
    program = torch.export.export(Model(), INPUTS, KEYWORDS, dynamic_shapes=shapes)
    return program.module(check_guards=check_guards)


def test_structures_of_inputs_and_outputs_are_kept(again) -> None:
    gm = exported()
    read = again(gm)
    assert read_signature(read.graph) == read_signature(gm.graph)
    sum_, others = read(*INPUTS, **KEYWORDS)
    assert torch.equal(sum_, torch.full((4, 3), 2.0))
    assert torch.equal(others["b"], torch.full((4, 3), 2.0))


@pytest.mark.parametrize("check_guards", [True, False])
def test_inputs_are_checked_as_before(again, check_guards: bool) -> None:
    gm = exported(check_guards=check_guards, largest=8)
    read = again(gm)
    assert checks_inputs(gm)
    assert checks_inputs(read)
    assert any(map(is_guards, gm.modules())) == check_guards
    for module in (gm, read):
        module(*INPUTS, **KEYWORDS)
        with pytest.raises((ValueError, TypeError), match=r"tree|structure|keyword"):
            module(*INPUTS, rest={"a": [INPUTS[0]]})
        large = torch.ones(9, 3)
        with pytest.raises((RuntimeError, AssertionError)):
            module(large, rest={"a": [large, large]})


def test_checks_are_written_again(again) -> None:
    gm = exported()
    text = to_text(gm)
    assert to_text(again(gm)) == text
    assert to_text(again(again(gm))) == text


def test_the_provenance_of_nodes_is_kept(again) -> None:
    gm = exported()
    first = next(n for n in gm.graph.nodes if n.target is torch.ops.aten.mul.Tensor)
    read = next(n for n in again(gm).graph.nodes if n.name == first.name)
    assert [s.name for s in read.meta["from_node"]] == [s.name for s in first.meta["from_node"]]
    assert read.meta["stack_trace"] == first.meta["stack_trace"]


def test_code_that_something_else_generates_is_refused() -> None:
    class Other(CodeGen):
        pass

    graph = Tracer().trace(nn.Identity())
    graph.set_codegen(Other())
    with pytest.raises(UnsupportedError, match="Other"):
        to_text(GraphModule(nn.Module(), graph))


def test_a_graph_that_takes_nothing_apart_has_no_signature() -> None:
    graph = Graph()
    graph.output(graph.placeholder("x"))
    assert read_signature(graph) is None
    assert "inputs" not in to_text(GraphModule(nn.Module(), graph))
    assert torch.equal(parse(to_text(GraphModule(nn.Module(), graph)))(torch.ones(1)), torch.ones(1))
