"""Symbolic sizes are written as arithmetic and read back; what breaks when ``torch.utils._sympy`` moves."""

from __future__ import annotations

import pytest
import torch
from lowbit.errors import GraphTextError
from lowbit.ir.text import parse, to_text
from torch import Tensor, nn
from torch.fx import GraphModule


class Model(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        n, m = x.shape
        return (
            torch.cat([x, y]).reshape(-1),
            x.new_zeros(n * 2 + m, m // 2),
            x.new_zeros((n + 3) % 4 + 1, max(m, 5)),
            x[: n - 1],
            torch.nonzero(x)[:, 0] + 1,
        )


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    n, m = torch.export.Dim("n", min=2, max=100), torch.export.Dim("m", min=4)
    inputs = (torch.ones(3, 6), torch.ones(3, 6))
    return torch.export.export(
        Model(),
        inputs,
        dynamic_shapes=({0: n, 1: m}, {0: n, 1: m}),
        prefer_deferred_runtime_asserts_over_guards=True,
    ).module(check_guards=False)


def sizes(gm: GraphModule) -> dict[str, str]:
    values = {node.name: node.meta.get("val") for node in gm.graph.nodes}
    return {k: str([*v.shape, *v.stride()]) for k, v in values.items() if isinstance(v, Tensor)}


def test_sizes_are_the_same_expressions(gm, again) -> None:
    assert sizes(again(gm)) == sizes(gm)
    text = to_text(gm)
    assert to_text(again(gm)) == text
    assert "range=interval(2, 100)" in text
    assert "size" in text[text.index("symbols") : text.index("\ngraph")]  # u0, decided by the data


def test_symbols_keep_their_ranges_and_example_values(gm, again) -> None:
    def known(gm: GraphModule) -> list[object]:
        (x, _) = gm.graph.find_nodes(op="placeholder")
        symbols = [size.node for size in x.meta["val"].shape]
        return [(str(s.expr), s.hint, str(s.shape_env.var_to_range[s.expr])) for s in symbols]

    assert known(again(gm)) == known(gm)


def test_other_sizes_compute_the_same(gm, again) -> None:
    inputs = (torch.arange(42.0).reshape(6, 7), torch.ones(6, 7))
    for one, other in zip(gm(*inputs), again(gm)(*inputs), strict=True):
        assert torch.equal(one, other)


TEXT = """lowbit-graph 1

graph self "G"
  %x: f32[SIZE] = input x
  %output = return %x

modules
  self = graph() eval
"""


@pytest.mark.parametrize(
    ("size", "said"),
    [("unknown0", "there is no symbol unknown0"), ("__import__(2)", "this is no size")],
)
def test_what_is_no_size_is_refused(size: str, said: str) -> None:
    parse(TEXT.replace("SIZE", "2"))
    with pytest.raises(GraphTextError, match=said):
        parse(TEXT.replace("SIZE", size))
