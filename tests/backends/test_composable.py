"""Several quantizers on one model, and several backends as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    ComposableQuantizer,
    EmbeddingQuantizer,
    QuantizationAnnotation,
    Quantizer,
    X86InductorQuantizer,
    XNNPACKQuantizer,
    XPUInductorQuantizer,
    decisions,
    get_default_x86_inductor_quantization_config,
    get_symmetric_quantization_config,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends import compose_backends, get_backend
from lowbit.backends.arm_inductor import ArmInductorQuantizer
from lowbit.backends.x86_inductor import has_vnni
from lowbit.errors import AnnotationError, GraphInputError, PipelineError, UnsupportedError
from lowbit.passes import Pipeline
from torch import Tensor, nn
from torch.fx import GraphModule, Node

X86 = get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
XNNPACK = get_symmetric_quantization_config()


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, i: Tensor) -> Tensor:
        return self.second(F.relu(self.first(self.embedding(i))))


INDICES = torch.arange(12).reshape(3, 4)


def prepared(quantizer: Quantizer) -> GraphModule:
    exported = torch.export.export(Text().eval(), (INDICES,)).module()
    assert isinstance(exported, GraphModule)
    return prepare_pt2e(exported, quantizer)


def reasons(model: GraphModule) -> dict[str, str]:
    return {d.node: d.reason for d in decisions(model)}


@attrs.define
class Takes(Quantizer):
    """Annotates the linear of one name, marked as taken or not."""

    path: str
    mark: bool = True
    edit: Callable[[QuantizationAnnotation, Node], Any] = lambda annotation, node: None

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
            annotation = node.meta.get("quantization_annotation")
            if annotation is not None:
                self.edit(annotation, node)
            elif str(node.args[1]).startswith(self.path):
                specs = {node.args[0]: XNNPACK.input_activation, node.args[1]: XNNPACK.weight}
                node.meta["quantization_annotation"] = QuantizationAnnotation(specs, _annotated=self.mark)
        return model


@pytest.mark.usefixtures("linears_stay")
def test_each_takes_what_the_ones_before_it_left(run_flow: Any) -> None:
    torch.manual_seed(0)
    quantizer = ComposableQuantizer([EmbeddingQuantizer(), X86InductorQuantizer().set_global(X86)])
    assert quantizer.backend_name == "embedding+x86_inductor"
    flow = run_flow(Text(), INDICES, quantizer=quantizer)
    assert {d.node: d.detail for d in decisions(flow.lowered)} == {
        "embedding": "runs as aten.embedding of integers",
        "linear": "runs as onednn.qlinear_pointwise",
        "relu": "runs as onednn.qlinear_pointwise",
        "linear_1": "runs as onednn.qlinear_pointwise",
    }
    assert flow.difference() < 0.01
    with torch.no_grad():
        assert (torch.compile(flow.lowered)(INDICES) - flow.lowered(INDICES)).abs().max() < 1e-5


def test_the_order_decides_who_has_what() -> None:
    x86, first = X86InductorQuantizer().set_global(X86), Takes("first")
    assert reasons(prepared(ComposableQuantizer([x86, first])))["linear"] == "linear-relu"
    with_first = prepared(ComposableQuantizer([first, x86]))
    # The ReLU would have been part of it.
    assert reasons(with_first)["relu"] == "overlap"
    observers = [m for m in with_first.modules() if hasattr(m, "quant_min")]
    assert {(m.dtype, m.quant_min) for m in observers if m.ch_axis is None} == {
        (torch.int8, -128), (torch.int8, -127), (torch.uint8, 0),
    }  # fmt: skip


@pytest.mark.parametrize("is_qat", [False, True])
def test_one_may_follow_the_tensors_of_another(is_qat: bool) -> None:
    class Flattens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).sum() + self.second(self.drop(torch.flatten(x, 1, 1))).sum()

    exported = torch.export.export(Flattens().train(is_qat), (torch.zeros(2, 8),)).module()
    assert isinstance(exported, GraphModule)
    config = get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=not has_vnni())
    x86 = X86InductorQuantizer().set_global(config).set_module_name("first", None)
    prepare = prepare_qat_pt2e if is_qat else prepare_pt2e
    assert reasons(prepare(exported, x86))["flatten"] == "float-input"
    assert reasons(prepare(exported, ComposableQuantizer([Takes("first"), x86])))["flatten"] == "flatten"


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda a, n: setattr(a, "output_qspec", XNNPACK.input_activation), "changed"),
        (lambda a, n: a.input_qspec_map.clear(), "changed"),
        (lambda a, n: setattr(a, "allow_implicit_sharing", False), "changed"),
        (lambda a, n: n.meta.pop("quantization_annotation"), "took away"),
        (lambda a, n: n.meta.update(quantization_annotation=QuantizationAnnotation()), "changed"),
    ],
)
def test_changing_what_another_annotated_is_an_error_that_names_both(
    edit: Callable[[QuantizationAnnotation, Node], Any], what: str
) -> None:
    class Second(Takes):
        pass

    with pytest.raises(AnnotationError) as caught:
        prepared(ComposableQuantizer([Takes("first"), Second("nowhere", edit=edit)]))
    text = str(caught.value)
    assert "Second annotates what Takes had annotated before it" in text
    assert f"{what} the annotation that Takes made" in text
    assert "%linear" in text
    assert caught.value.hint


def test_compositions_of_compositions_name_both_too() -> None:
    x86 = X86InductorQuantizer().set_global(X86)
    nested = ComposableQuantizer(
        [ComposableQuantizer([Takes("first", mark=False)]), ComposableQuantizer([x86])]
    )
    with pytest.raises(AnnotationError, match="X86InductorQuantizer annotates what Takes had"):
        prepared(nested)


def test_annotations_that_are_not_marked_as_taken_are_a_conflict() -> None:
    x86 = X86InductorQuantizer().set_global(X86)
    with pytest.raises(AnnotationError, match="X86InductorQuantizer annotates what Takes had"):
        prepared(ComposableQuantizer([Takes("first", mark=False), x86]))


@pytest.mark.parametrize("quantizers", [[], [None], [X86InductorQuantizer], ["x86_inductor"]])
def test_what_is_no_list_of_quantizers(quantizers: Any) -> None:
    with pytest.raises(GraphInputError):
        ComposableQuantizer(quantizers)


# Backends.


def test_a_composition_is_found_by_its_name() -> None:
    both = get_backend("embedding+x86_inductor")
    embedding, x86 = get_backend("embedding"), get_backend("x86_inductor")
    assert both.name == "embedding+x86_inductor"
    assert both.patterns == (*embedding.patterns, *x86.patterns)
    assert (both.lower, both.prepare_qat, both.device) == (x86.lower, x86.prepare_qat, "cpu")
    assert isinstance(both.quantizer(), ComposableQuantizer)
    assert both.quantizer().backend_name == both.name


def test_backends_of_which_one_is_lowered_elsewhere(run_flow: Any) -> None:
    quantizer = ComposableQuantizer([EmbeddingQuantizer(), XNNPACKQuantizer().set_global(XNNPACK)])
    with pytest.raises(UnsupportedError, match="XnnpackPartitioner"):
        run_flow(Text(), INDICES, quantizer=quantizer)
    # The part that is lowered here still may be, by its name.
    flow = run_flow(Text(), INDICES, quantizer=quantizer, backend="embedding")
    assert flow.decision("embedding").detail == "runs as aten.embedding of integers"


def test_backends_that_do_not_go_together() -> None:
    both = ComposableQuantizer(
        [X86InductorQuantizer().set_global(X86), XPUInductorQuantizer().set_global(XNNPACK)]
    )
    with pytest.raises(PipelineError, match="x86_inductor and xpu_inductor run on different devices"):
        prepared(both)
    x86 = get_backend("x86_inductor")
    shorter = attrs.evolve(x86, name="shorter", prepare=Pipeline(tuple(x86.prepare)[1:]))
    with pytest.raises(PipelineError, match="x86_inductor and shorter have different prepare pipelines"):
        compose_backends(x86, shorter)


def test_backends_of_different_processors_do_not_go_together() -> None:
    both = ComposableQuantizer([X86InductorQuantizer().set_global(X86), ArmInductorQuantizer()])
    with pytest.raises(PipelineError, match="x86_inductor and arm_inductor run on different processors: x86"):
        prepared(both)
    with pytest.raises(PipelineError, match="x86_inductor and arm_inductor run on different processors"):
        get_backend("x86_inductor+embedding+arm_inductor")
    # What runs on any processor goes with either, and the composition is of that one.
    for name, architecture in (("x86_inductor", "x86"), ("arm_inductor", "arm")):
        assert get_backend(f"embedding+xnnpack+{name}").architecture == architecture
    assert get_backend("embedding+xnnpack").architecture is None


def test_backends_that_do_not_go_together_behind_one_that_goes_with_both() -> None:
    embedding, x86 = get_backend("embedding"), get_backend("x86_inductor")
    with pytest.raises(PipelineError, match="x86_inductor and xpu_inductor run on different devices"):
        get_backend("embedding+x86_inductor+xpu_inductor")
    assert x86.prepare_qat is not None
    shorter = attrs.evolve(x86, name="shorter", prepare_qat=Pipeline(tuple(x86.prepare_qat)[1:]))
    with pytest.raises(PipelineError, match="x86_inductor and shorter have different prepare_qat pipelines"):
        compose_backends(embedding, x86, shorter)
