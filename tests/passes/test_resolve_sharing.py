"""The resolve-sharing pass: groups as labels on the nodes, and nothing left behind on the module."""

from __future__ import annotations

import copy

import pytest
import torch
from lowbit.errors import SharingError
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.observers import MinMaxObserver
from lowbit.ir.snapshot import GROUPS_KEY, take_snapshot
from lowbit.ir.specs import QuantizationSpec, SharedQuantizationSpec
from lowbit.ir.stages import Stage, get_stage
from lowbit.passes import Annotate, PassContext, PassManager, Pipeline, ResolveSharing
from lowbit.passes.instruments import Timing
from torch import nn
from torch.fx import GraphModule

aten = torch.ops.aten
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver)
INT8 = QuantizationSpec(torch.int8, MinMaxObserver)


class Model(nn.Module):
    def forward(self, x, y):
        return torch.cat([x.relu(), y], 0) + x


@pytest.fixture
def gm(export) -> GraphModule:
    return export(Model(), torch.ones(1, 2), torch.ones(1, 2))


def resolve(gm: GraphModule, quantizer, *instruments) -> GraphModule:
    pipeline = Pipeline((Annotate(), ResolveSharing()))
    return PassManager(instruments).run(gm, pipeline, PassContext(quantizer=quantizer))


def annotate_node(node) -> None:
    if node.target is aten.cat.default:
        first, second = node.args[0]
        shared = SharedQuantizationSpec((first, node))
        set_annotation(node, QuantizationAnnotation({first: UINT8, second: shared}, shared))
    elif node.target is aten.relu.default:
        set_annotation(node, QuantizationAnnotation({node.args[0]: UINT8}))
    elif node.target is aten.add.Tensor:
        set_annotation(node, QuantizationAnnotation({node.args[1]: INT8}))


def test_nodes_are_labelled_with_the_groups_of_their_points(gm: GraphModule, quantizer) -> None:
    resolved = resolve(gm, quantizer(annotate_node))
    labels = {n.name: n.meta[GROUPS_KEY] for n in resolved.graph.nodes if GROUPS_KEY in n.meta}
    assert labels == {"relu": "%x g0", "cat": "%relu g1, %y g1, out g1", "add": "%x g2"}
    assert get_stage(resolved) is Stage.ANNOTATED
    assert "{groups: %x g0}" in "\n".join(take_snapshot(resolved).lines())
    assert not any(GROUPS_KEY in node.meta for node in gm.graph.nodes)


def test_labels_are_a_change_and_their_absence_is_none(gm: GraphModule, quantizer) -> None:
    timing = Timing()
    resolve(gm, quantizer(annotate_node), timing)
    assert [r.changed for r in timing.records] == [True, True]
    timing = Timing()
    with pytest.warns(UserWarning, match="annotated no tensor"):
        resolve(gm, quantizer(lambda node: None), timing)
    assert [r.changed for r in timing.records] == [False, False]


def test_conflicts_are_reported_together_and_change_nothing(gm: GraphModule, quantizer) -> None:
    def annotate_badly(node):
        if node.target is aten.relu.default:
            dangling = SharedQuantizationSpec(node.args[0])
            set_annotation(node, QuantizationAnnotation({node.args[0]: dangling}))
        elif node.target is aten.add.Tensor:
            around = SharedQuantizationSpec((node.args[0], node))
            set_annotation(node, QuantizationAnnotation({node.args[0]: around}))

    before = take_snapshot(gm)
    with pytest.raises(SharingError) as caught:
        resolve(gm, quantizer(annotate_badly))
    text = str(caught.value)
    assert text.startswith("2 problems with the sharing of quantization parameters")
    assert "output of %x, which is not annotated" in text
    assert "a cycle" in text
    assert caught.value.pass_name == "resolve-sharing"
    assert take_snapshot(gm).same_as(before)


def test_a_resolved_model_can_be_copied_and_goes_on(gm: GraphModule, quantizer) -> None:
    resolved = resolve(gm, quantizer(annotate_node))
    copied = copy.deepcopy(resolved)
    x, y = torch.ones(1, 2), torch.ones(1, 2)
    assert torch.equal(copied(x, y), gm(x, y))
