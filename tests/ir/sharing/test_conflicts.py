"""Sharing that cannot be resolved: what is reported, and that all of it is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from lowbit.errors import SharingError
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.sharing import resolve_sharing
from lowbit.ir.specs import (
    DerivedQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from torch.fx import Graph, Node

aten = torch.ops.aten
INT8 = QuantizationSpec(torch.int8, torch.nn.Identity, -128, 127, torch.per_tensor_affine)


def annotate(
    node: Node,
    inputs: dict[Node, QuantizationSpecBase | None] | None = None,
    output: QuantizationSpecBase | None = None,
) -> None:
    set_annotation(node, QuantizationAnnotation(inputs or {}, output))


def derive(observers: list[object]) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("resolving derives nothing")


def row(count: int) -> tuple[Graph, list[Node]]:
    """A chain of relu; its nodes are named n0, n1, …"""
    graph = Graph()
    nodes = [graph.placeholder("n0")]
    for i in range(1, count):
        nodes.append(graph.call_function(aten.relu.default, (nodes[-1],), name=f"n{i}"))
    graph.output(nodes[-1])
    return graph, nodes


def error_of(graph: Graph) -> SharingError:
    with pytest.raises(SharingError) as caught:
        resolve_sharing(graph)
    return caught.value


def sentence(nodes: Sequence[Node], verb: str = "shares with") -> str:
    """``output of %a shares with output of %b, which shares with …``, the way a person would write it."""
    text = f"output of %{nodes[0].name}"
    for i, node in enumerate(nodes[1:]):
        text += f"{', which' if i else ''} {verb} output of %{node.name}"
    return text


def share_along(nodes: Sequence[Node]) -> None:
    """Let each node but the last share with the next."""
    for node, anchor in itertools.pairwise(nodes):
        annotate(node, output=SharedQuantizationSpec(anchor))


# Named after defects that the peer has.


def test_peer_defect_shared_spec_whose_anchor_is_not_annotated() -> None:
    graph, (x, relu, _) = row(3)
    relu.meta["nn_module_stack"] = {"key": ("layer1.0.relu", torch.nn.ReLU)}
    relu.meta["stack_trace"] = 'File "/home/me/model.py", line 31, in forward\n    return self.relu(x)'
    annotate(relu, output=SharedQuantizationSpec((x, relu)))
    error = error_of(graph)
    assert error.found == "output of %n1 shares with edge %n0 → %n1, which is not annotated"
    assert str(error) == (
        "output of %n1 shares with edge %n0 → %n1, which is not annotated\n"
        "  at: %n1 (aten.relu.default)\n"
        "      module layer1.0.relu\n"
        "      /home/me/model.py:31: return self.relu(x)\n"
        "  do: give that point a spec of its own, or refer to a point that has one"
    )


def test_peer_defect_shared_spec_that_is_part_of_a_cycle() -> None:
    graph, (_, relu, max_pool2d) = row(3)
    relu.name, max_pool2d.name = "relu", "max_pool2d"
    annotate(
        max_pool2d,
        {relu: SharedQuantizationSpec(max_pool2d)},
        SharedQuantizationSpec((relu, max_pool2d)),
    )
    error = error_of(graph)
    assert error.found == (
        "output of %max_pool2d shares with edge %relu → %max_pool2d, "
        "which shares with output of %max_pool2d: a cycle"
    )
    assert error.where == ("%max_pool2d (aten.relu.default)",)
    assert error.hint == "give one of these points a spec of its own"


@pytest.mark.parametrize("length", [1, 5000])
def test_peer_defect_a_cycle_overflows_the_stack(length: int) -> None:
    graph, nodes = row(length)
    ring = nodes[::-1]
    share_along([*ring, ring[0]])
    error = error_of(graph)
    assert error.found == f"{sentence([*ring, ring[0]])}: a cycle"


def test_all_that_lead_into_a_cycle_are_listed_behind_it() -> None:
    graph, n = row(7)
    share_along([n[2], n[4], n[2]])  # the cycle
    share_along([n[1], n[0], n[2]])  # a tail of two
    share_along([n[6], n[0]])  # a branch of the tail
    annotate(n[5], output=INT8)
    assert error_of(graph).found == (
        "output of %n4 shares with output of %n2, which shares with output of %n4: a cycle\n"
        "  likewise output of %n1 shares with output of %n0, which shares with output of %n2\n"
        "  likewise output of %n6 shares with output of %n0"
    )


def test_all_that_lead_to_one_bad_anchor_are_one_problem() -> None:
    graph, n = row(6)
    share_along([n[1], n[2], n[0]])
    share_along([n[4], n[0]])
    share_along([n[5], n[2]])
    assert error_of(graph).found == (
        "output of %n1 shares with output of %n2, which shares with output of %n0, which is not annotated\n"
        "  likewise output of %n4 shares with output of %n0\n"
        "  likewise output of %n5 shares with output of %n2"
    )


@pytest.mark.parametrize(
    ("anchor", "clause"),
    [
        (lambda n, other: "n0", "a str, which is not a point"),
        (lambda n, other: [n[0], n[1]], "a list, which is not a point"),
        (lambda n, other: other, "output of %gone, which names %gone, a node that is not in this graph"),
        (lambda n, other: (n[0], n[2]), "edge %n0 → %n2, which is not an edge: %n0 is not an input of %n2"),
        (lambda n, other: (n[2], n[1]), "edge %n2 → %n1, which is not an edge: %n2 is not an input of %n1"),
    ],
)
def test_bad_anchors(anchor, clause: str) -> None:
    graph, n = row(3)
    value = anchor(n, Graph().placeholder("gone"))
    annotate(n[1], output=SharedQuantizationSpec(value))
    annotate(n[2], output=DerivedQuantizationSpec([n[1], value], derive, torch.int32))
    error = error_of(graph)
    assert f"1. output of %n1 shares with {clause}" in error.found
    assert f"2. output of %n2 derives from {clause}" in error.found


def test_a_node_that_was_erased_is_no_anchor() -> None:
    graph, n = row(3)
    dead = graph.call_function(aten.neg.default, (n[0],), name="dead")
    annotate(dead, output=INT8)
    annotate(n[1], output=SharedQuantizationSpec(dead))
    graph.erase_node(dead)
    assert "names %dead, a node that is not in this graph" in error_of(graph).found


# Derived specs.


def test_a_derived_spec_needs_annotated_sources() -> None:
    graph, n = row(3)
    annotate(n[1], output=INT8)
    annotate(n[2], output=DerivedQuantizationSpec([n[1], n[0]], derive, torch.int32))
    error = error_of(graph)
    assert error.found == "output of %n2 derives from output of %n0, which is not annotated"
    assert error.where == ("%n2 (aten.relu.default)",)


def test_a_cycle_of_derived_groups_is_a_chain_through_their_links() -> None:
    graph, n = row(5)
    annotate(n[1], output=DerivedQuantizationSpec([n[3]], derive, torch.int32))
    annotate(n[2], {n[1]: SharedQuantizationSpec(n[1])})
    annotate(n[3], output=SharedQuantizationSpec(n[4]))
    annotate(n[4], output=DerivedQuantizationSpec([(n[1], n[2])], derive, torch.int8))
    assert error_of(graph).found == (
        "output of %n1 derives from output of %n3, which shares with output of %n4, which derives from "
        "edge %n1 → %n2, which shares with output of %n1: a cycle"
    )


def test_a_group_that_derives_from_itself() -> None:
    graph, n = row(2)
    annotate(n[0], output=DerivedQuantizationSpec([n[1]], derive, torch.int32))
    annotate(n[1], output=SharedQuantizationSpec(n[0]))
    assert error_of(graph).found == (
        "output of %n0 derives from output of %n1, which shares with output of %n0: a cycle"
    )


def test_two_knots_of_derived_groups_are_two_problems_and_what_hangs_on_them_is_none() -> None:
    graph, n = row(6)
    for node, source in [(0, 1), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]:
        annotate(n[node], output=DerivedQuantizationSpec([n[source]], derive, torch.int32))
    annotate(n[4], output=DerivedQuantizationSpec([n[3], n[5]], derive, torch.int32))
    assert error_of(graph).found.startswith("2 problems")
    assert [line for line in error_of(graph).found.splitlines() if "a cycle" in line] == [
        "1. output of %n0 derives from output of %n1, which derives from output of %n0: a cycle",
        "2. output of %n4 derives from output of %n5, which derives from output of %n4: a cycle",
    ]


def test_a_source_whose_own_sharing_failed_is_reported_once() -> None:
    graph, n = row(3)
    annotate(n[1], output=SharedQuantizationSpec(n[0]))
    annotate(n[2], output=DerivedQuantizationSpec([n[1]], derive, torch.int32))
    assert error_of(graph).found == "output of %n1 shares with output of %n0, which is not annotated"


# Tensors.


def test_an_integer_tensor_cannot_be_quantized() -> None:
    graph, n = row(3)
    n[0].meta["val"] = torch.empty(2, dtype=torch.int64)
    annotate(n[0], output=INT8)
    annotate(n[1], {n[0]: INT8})  # the same tensor: the same problem
    error = error_of(graph)
    assert error.found == (
        "output of %n0 is to be quantized to torch.int8, but %n0 is not floating-point: torch.int64"
    )


def test_an_integer_tensor_may_have_a_spec_that_leaves_it_as_it_is() -> None:
    graph, n = row(2)
    n[0].meta["val"] = torch.empty(2, dtype=torch.int64)
    annotate(n[0], output=QuantizationSpec(torch.float32, torch.nn.Identity))
    assert len(resolve_sharing(graph).groups) == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_tensor_that_shares_its_way_into_quantization(dtype: torch.dtype) -> None:
    graph, n = row(4)
    n[1].meta["val"] = torch.empty(2, dtype=dtype)
    n[3].meta["val"] = torch.empty(2, dtype=torch.float32)
    share_along([n[1], n[2], n[3]])
    annotate(n[3], output=INT8)
    assert error_of(graph).found == (
        "output of %n1 shares with output of %n2, which shares with output of %n3, which is to be "
        f"quantized to torch.int8, but %n1 is not floating-point: {dtype}"
    )


def test_channel_counts_of_one_group_must_agree() -> None:
    graph, n = row(4)
    spec = QuantizationSpec(torch.int8, torch.nn.Identity, qscheme=torch.per_channel_symmetric, ch_axis=1)
    for node, channels in zip(n, (3, 3, 5, 5), strict=True):
        node.meta["val"] = torch.empty(4, channels)
    annotate(n[0], output=spec)
    share_along([n[3], n[2], n[1], n[0]])
    annotate(n[0], output=spec)
    assert error_of(graph).found == (
        "output of %n0 shares with output of %n1, which shares with output of %n2: "
        "one scale for what differs, %n0 (3 channels on its channel axis) and "
        "%n2, %n3 (5 channels on its channel axis)"
    )


def test_other_axes_may_differ() -> None:
    graph, n = row(2)
    spec = QuantizationSpec(torch.int8, torch.nn.Identity, qscheme=torch.per_channel_symmetric, ch_axis=0)
    n[0].meta["val"], n[1].meta["val"] = torch.empty(4, 3), torch.empty(4, 5, 6)
    annotate(n[0], output=spec)
    share_along([n[1], n[0]])
    annotate(n[0], output=spec)
    assert len(resolve_sharing(graph).groups) == 1


def test_a_channel_axis_that_the_tensor_does_not_have() -> None:
    graph, n = row(2)
    n[0].meta["val"] = torch.empty(4)
    spec = QuantizationSpec(torch.int8, torch.nn.Identity, qscheme=torch.per_channel_affine, ch_axis=1)
    annotate(n[1], {n[0]: spec})
    assert error_of(graph).found == (
        "edge %n0 → %n1 is to be quantized per channel on axis 1, but %n0 has 1 dimensions: (4,)"
    )


def test_symbolic_channel_counts_are_not_compared() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.cat([x, x]))

    batch = {0: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(Model(), (torch.empty(4, 3),), dynamic_shapes=(batch,)).graph
    x, _, relu, _ = graph.nodes
    assert isinstance(x.meta["val"].shape[0], torch.SymInt)
    env = x.meta["val"].fake_mode.shape_env
    guards = list(env.guards)
    spec = QuantizationSpec(torch.int8, torch.nn.Identity, qscheme=torch.per_channel_affine, ch_axis=0)
    annotate(x, output=spec)
    annotate(relu, output=SharedQuantizationSpec(x))  # 2·s0 channels against s0
    assert len(resolve_sharing(graph).groups) == 1
    assert env.guards == guards
    assert isinstance(x.meta["val"].shape[0], torch.SymInt)


# All at once.


def test_problems_are_sorted_by_the_first_point_they_concern() -> None:
    graph, n = row(6)
    share_along([n[3], n[4], n[3]])
    share_along([n[0], n[4]])  # leads into the cycle
    share_along([n[1], n[2]])
    found = error_of(graph).found
    assert found.index("1. output of %n4 shares with output of %n3") < found.index("2. output of %n1")


def test_problems_of_every_kind_are_reported_at_once_in_graph_order() -> None:
    graph, n = row(12)
    for i, dtype in [(5, torch.float32), (6, torch.bfloat16), (11, torch.bool)]:
        n[i].meta["val"] = torch.empty(2, dtype=dtype)
    share_along([n[0], n[1], n[0]])
    share_along([n[2], n[3]])
    annotate(n[4], output=DerivedQuantizationSpec([n[4]], derive, torch.int32))
    annotate(n[5], output=INT8)
    annotate(n[6], output=SharedQuantizationSpec(n[5]))
    annotate(n[7], output=DerivedQuantizationSpec([n[8]], derive, torch.int32))
    annotate(n[11], output=INT8)
    error = error_of(graph)
    lines = error.found.splitlines()
    assert lines[0] == "6 problems with the sharing of quantization parameters"
    assert [line[:21] for line in lines if line[0].isdigit()][1:] == [
        "1. output of %n1 shar",
        "2. output of %n2 shar",
        "3. output of %n4 deri",
        "4. output of %n5 shar",
        "5. output of %n7 deri",
        "6. output of %n11 is ",
    ]
    assert sum(line.startswith("     do: ") for line in lines) == 6
    assert sum(line.startswith("     at: ") for line in lines) >= 6


# Generated conflicts: in each, the expected sentence is known from how it was made.


def generated(seed: int, longest: int) -> tuple[Graph, list[Node], random.Random]:
    """A graph with some healthy sharing, and nodes for a conflict in random order."""
    rng = random.Random(seed)
    length = rng.randint(2, longest)
    graph, nodes = row(length + 6)
    rng.shuffle(nodes)
    healthy, conflicting = nodes[:5], nodes[5:]
    share_along(healthy)
    annotate(healthy[-1], output=INT8)
    return graph, conflicting, rng


def order(graph: Graph) -> dict[Node, int]:
    return {node: i for i, node in enumerate(graph.nodes)}


@pytest.mark.parametrize("longest", [12, 2500])
@pytest.mark.parametrize("seed", range(30))
def test_generated_cycle(seed: int, longest: int) -> None:
    graph, ring, _ = generated(seed, longest)
    start = ring.index(max(ring, key=order(graph).__getitem__))
    ring = ring[start:] + ring[:start]
    share_along([*ring, ring[0]])
    assert error_of(graph).found == f"{sentence([*ring, ring[0]])}: a cycle"


@pytest.mark.parametrize("longest", [12, 2500])
@pytest.mark.parametrize("seed", range(30))
def test_generated_dangling_anchor(seed: int, longest: int) -> None:
    graph, chain, _ = generated(seed, longest)
    share_along(chain)  # the last one has no annotation
    assert error_of(graph).found == f"{sentence(chain)}, which is not annotated"


@pytest.mark.parametrize("seed", range(60))
def test_generated_contradicting_dtypes(seed: int) -> None:
    graph, chain, rng = generated(seed, 40)
    share_along(chain)
    annotate(chain[-1], output=INT8)
    odd = rng.randrange(len(chain))
    for i, node in enumerate(chain):
        node.meta["val"] = torch.empty(1, dtype=torch.float16 if i == odd else torch.float32)
    position = order(graph)
    plain = min((node for node in chain if node is not chain[odd]), key=position.__getitem__)
    first, second = sorted([plain, chain[odd]], key=position.__getitem__)
    a, b = chain.index(first), chain.index(second)
    path = chain[a : b + 1] if a < b else chain[b : a + 1][::-1]
    found = error_of(graph).found
    assert found.startswith(f"{sentence(path)}: one scale for what differs, %{first.name} (")
    assert f"%{chain[odd].name} (torch.float16)" in found


@pytest.mark.parametrize("seed", range(60))
def test_generated_cycle_of_derived_specs(seed: int) -> None:
    graph, ring, _ = generated(seed, 40)
    start = ring.index(min(ring, key=order(graph).__getitem__))
    ring = ring[start:] + ring[:start]
    for node, source in zip(ring, [*ring[1:], ring[0]], strict=True):
        annotate(node, output=DerivedQuantizationSpec([source], derive, torch.int32))
    assert error_of(graph).found == f"{sentence([*ring, ring[0]], 'derives from')}: a cycle"
