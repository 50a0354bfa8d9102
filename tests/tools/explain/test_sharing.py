"""``why_shared``: the chain of annotations behind one scale, from a prepared model."""

from __future__ import annotations

import copy

import pytest
import torch
from lowbit import (
    X86InductorQuantizer,
    explain,
    get_default_x86_inductor_quantization_config,
    prepare_pt2e,
    prepare_qat_pt2e,
    why_shared,
)
from lowbit.errors import StageError, UnknownNameError
from lowbit.ir.text.files import load_graph, save_graph
from torch import Tensor, nn
from torch.fx import GraphModule


class Joined(nn.Module):
    """Two convolutions, joined and pooled for a third: one scale from their outputs to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)
        self.bn, self.pool = nn.BatchNorm2d(4), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.pool(torch.cat([self.bn(self.a(x)), self.b(x)], 1)))


def quantizer(*, is_qat: bool) -> X86InductorQuantizer:
    preset = get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=True)
    return X86InductorQuantizer().set_global(preset)


def exported(*, training: bool) -> GraphModule:
    torch.manual_seed(0)
    return torch.export.export(Joined().train(training), (torch.randn(2, 3, 4, 4),)).module()  # pyright: ignore


@pytest.fixture(scope="module")
def prepared() -> GraphModule:
    return prepare_pt2e(exported(training=False), quantizer(is_qat=False))


def test_two_that_share(prepared: GraphModule) -> None:
    found = why_shared(prepared, "conv2d", "max_pool2d")
    assert found.shares
    assert found.a == "edge %conv2d → %cat"
    assert found.b == "output of %max_pool2d"
    assert found.chain
    # Each reason begins or ends where its neighbour does: it is a chain.
    text = str(found)
    assert text.startswith(f"{found.a} and {found.b} share one scale and zero point (group {found.group}):\n")
    for node in ("%cat", "%max_pool2d"):
        assert node in text
    assert "(explicit)" in text


def test_the_group_is_the_one_that_explain_shows(prepared: GraphModule) -> None:
    group = why_shared(prepared, "conv2d", "conv2d_1").group
    (cat,) = explain(prepared, "cat").operators
    assert {tensor.group for tensor in cat.tensors} == {group}
    assert {tensor.shared_by for tensor in cat.tensors} == {6}


def test_edges_and_observers_can_be_asked_about(prepared: GraphModule) -> None:
    by_name = why_shared(prepared, "conv2d -> cat", ("%conv2d_1", "cat"))
    assert by_name.shares
    assert (by_name.a, by_name.b) == ("edge %conv2d → %cat", "edge %conv2d_1 → %cat")
    observer = next(
        node.name for node in prepared.graph.nodes if node.args[:1] and node.args[0].name == "conv2d"
    )
    assert why_shared(prepared, observer, "conv2d_1") == why_shared(prepared, "conv2d", "conv2d_1")


def test_two_that_do_not_share(prepared: GraphModule) -> None:
    found = why_shared(prepared, "x", "cat")
    assert not found.shares
    assert found.chain == ()
    assert str(found) == (
        "edge %x → %conv2d and output of %cat do not share: no chain of annotations links the two tensors"
    )


def test_a_tensor_that_stays_float(prepared: GraphModule) -> None:
    found = why_shared(prepared, "conv2d_2", "x")
    assert not found.shares
    assert found.why_not == "output of %conv2d_2 is not annotated, so it shares with nothing"


def test_a_point_and_itself(prepared: GraphModule) -> None:
    found = why_shared(prepared, "conv2d -> cat", "conv2d -> cat")
    assert str(found) == f"edge %conv2d → %cat and edge %conv2d → %cat are one point, in group {found.group}"


@pytest.mark.parametrize(("asked", "hint"), [("conv3d", "conv2d"), ("x -> cat", "%conv2d, %conv2d_1")])
def test_an_unknown_point(prepared: GraphModule, asked: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        why_shared(prepared, asked, "x")
    assert hint in caught.value.hint


def test_in_training_it_is_the_same() -> None:
    trained = prepare_qat_pt2e(exported(training=True), quantizer(is_qat=True))
    found = why_shared(trained, "batch_norm", "conv2d_2")
    assert not found.shares  # the last convolution returns float
    found = why_shared(trained, "batch_norm", "conv2d_1")
    assert found.shares
    assert found.chain


def test_copies_and_saved_models_say_the_same(prepared: GraphModule, tmp_path) -> None:
    save_graph(prepared, tmp_path / "prepared")
    expected = why_shared(prepared, "conv2d", "max_pool2d"), explain(prepared, "cat")
    for again in (copy.deepcopy(prepared), load_graph(tmp_path / "prepared")):
        assert (why_shared(again, "conv2d", "max_pool2d"), explain(again, "cat")) == expected


def test_a_model_without_annotations(prepared: GraphModule) -> None:
    with pytest.raises(StageError, match="not prepared"):
        why_shared(exported(training=False), "x", "cat")
