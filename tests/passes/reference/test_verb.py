"""The reference representation as users get it: convert_pt2e(…, use_reference_representation=True)."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import convert_pt2e, get_stage, lower_pt2e
from lowbit.errors import GraphInputError, StageError
from lowbit.ir.meta import REFERENCE_KEY
from lowbit.ir.snapshot import take_snapshot
from lowbit.ir.stages import Stage
from lowbit.ir.verifiers import verify
from lowbit.passes import PassManager, Pipeline, ReferenceRepresentation
from torch import Tensor, nn

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = F.relu(self.block(y) + y)
        y = torch.cat([F.max_pool2d(y, 2), F.avg_pool2d(y, 2)], 1)[:, 4:12]
        return F.gelu(self.head(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)))


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def forms(make_forms: Any, image: Tensor) -> Any:
    torch.manual_seed(0)
    return make_forms(Net(), image, leave=(aten.gelu.default,), output="activation")


def test_a_network_in_integers(forms: Any, image: Tensor) -> None:
    assert forms.float_operators() == ["gelu"]
    assert sorted(set(forms.rules)) == [
        "adaptive_avg_pool2d",
        "avg_pool2d",
        "cat",
        "conv2d",
        "conv2d-add",
        "linear",
        "max_pool2d",
        "movement",
    ]
    want, got = forms.qdq(image), forms.reference(image)
    assert (want - got).abs().max() <= 0.02 * want.abs().max()


def test_it_compiles(make_forms: Any, image: Tensor) -> None:
    torch.manual_seed(0)
    forms = make_forms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), image)
    assert torch.equal(torch.compile(forms.reference)(image), forms.reference(image))


def test_it_is_saved_and_loaded(forms: Any, image: Tensor) -> None:
    file = io.BytesIO()
    torch.export.save(torch.export.export(forms.reference, (image,)), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(image), forms.reference(image))


def test_it_holds_integers_only_once(forms: Any) -> None:
    state = forms.reference.state_dict()
    assert {name for name, tensor in state.items() if tensor.dtype is torch.int8} == {
        name for name, tensor in forms.qdq.state_dict().items() if tensor.dtype is torch.int8
    }
    assert not [name for name in state if name.endswith(("weight_scale", "weight_zero_point"))]


def test_it_is_not_lowered(forms: Any) -> None:
    with pytest.raises(StageError, match="REFERENCE"):
        lower_pt2e(forms.reference, "x86_inductor")


def test_the_prepared_model_and_the_converted_one_stay_as_they_are(forms: Any, image: Tensor) -> None:
    prepared, qdq = take_snapshot(forms.prepared), take_snapshot(forms.qdq)
    convert_pt2e(forms.prepared, use_reference_representation=True)
    PassManager().run(forms.qdq, Pipeline((ReferenceRepresentation(),)))
    assert take_snapshot(forms.prepared).same_as(prepared)
    assert take_snapshot(forms.qdq).same_as(qdq)


def test_a_converted_model_that_was_saved_has_the_same_reference(forms: Any, image: Tensor) -> None:
    file = io.BytesIO()
    torch.export.save(torch.export.export(forms.qdq, (image,)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    reference = PassManager().run(loaded, Pipeline((ReferenceRepresentation(),)))
    assert torch.equal(reference(image), forms.reference(image))


def test_it_is_the_same_each_time(forms: Any) -> None:
    again = convert_pt2e(forms.prepared, use_reference_representation=True)
    assert take_snapshot(again).digest == take_snapshot(forms.reference).digest


def test_any_batch_size(make_forms: Any) -> None:
    torch.manual_seed(0)
    batch = torch.export.Dim.DYNAMIC
    x = torch.randn(3, 3, 8, 8)
    forms = make_forms(Net(), x, leave=(aten.gelu.default,), dynamic_shapes=({0: batch},))
    assert forms.float_operators() == ["gelu"]
    for size in (0, 1, 5):
        inputs = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(forms.reference(inputs), forms.qdq(inputs), rtol=0, atol=0.02)


def test_nodes_say_where_they_come_from(forms: Any) -> None:
    for node in forms.reference.graph.nodes:
        if node.op == "call_function":
            assert "nn_module_stack" in node.meta, node


# The rules of the stage.


def broken(forms: Any) -> Any:
    copy = convert_pt2e(forms.prepared, use_reference_representation=True)
    assert get_stage(copy) is Stage.REFERENCE
    verify(copy, Stage.REFERENCE)
    return copy


def test_a_quantize_that_is_not_written_out_breaks_the_stage(forms: Any) -> None:
    with pytest.raises(StageError, match="not written out"):
        verify(forms.qdq, Stage.REFERENCE)


def test_an_accumulator_of_floats_breaks_the_stage(forms: Any) -> None:
    gm = broken(forms)
    accumulator = next(n for n in gm.graph.nodes if n.target is torch.ops.higher_order.out_dtype)
    x = accumulator.args[2]
    with gm.graph.inserting_before(accumulator):
        real = gm.graph.call_function(aten.mul.Tensor, (x, 0.5))
    real.meta[REFERENCE_KEY] = "dequantize"
    accumulator.replace_input_with(x, real)
    with pytest.raises(StageError, match="which is float"):
        verify(gm, Stage.REFERENCE)


def test_a_linear_in_float_without_a_reason_breaks_the_stage(forms: Any) -> None:
    gm = broken(forms)
    node = next(n for n in gm.graph.nodes if n.name == "gelu")
    (x,) = node.all_input_nodes
    with gm.graph.inserting_before(node):
        real = gm.graph.call_function(aten.mul.Tensor, (x, 1.0))
        real.meta[REFERENCE_KEY] = "dequantize"
        linear = gm.graph.call_function(aten.linear.default, (real, real))
    with pytest.raises(StageError, match="does not say why"):
        verify(gm, Stage.REFERENCE)
    linear.meta[REFERENCE_KEY] = "float: weight-not-quantized"
    verify(gm, Stage.REFERENCE)


def test_a_model_that_is_not_prepared_is_refused(image: Tensor) -> None:
    exported = torch.export.export(Net().eval(), (image,)).module()
    with pytest.raises((StageError, GraphInputError)):
        convert_pt2e(exported, use_reference_representation=True)  # type: ignore[arg-type]
