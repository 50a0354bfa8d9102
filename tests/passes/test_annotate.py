"""The annotate pass: the quantizer's steps in order, and what is refused of it."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from lowbit.errors import AnnotationError, NothingQuantizedWarning, PassFailedError, PipelineError
from lowbit.ir.annotation import QuantizationAnnotation, get_annotation, set_annotation
from lowbit.ir.ledger import Ledger
from lowbit.ir.observers import MinMaxObserver
from lowbit.ir.quantizer import Quantizer
from lowbit.ir.specs import QuantizationSpec
from lowbit.ir.stages import Stage, get_stage
from lowbit.passes import Annotate, PassContext, PassManager, Pipeline
from torch import nn
from torch.fx import GraphModule

aten = torch.ops.aten
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver)


@pytest.fixture
def gm(export) -> GraphModule:
    return export(nn.ReLU(), torch.ones(2))


def annotate(gm: GraphModule, quantizer: Quantizer | None, ledger: Ledger | None = None) -> GraphModule:
    context = PassContext(quantizer=quantizer, ledger=ledger or Ledger())
    return PassManager().run(gm, Pipeline((Annotate(),)), context)


def annotate_relu(model: GraphModule) -> GraphModule:
    for node in model.graph.find_nodes(op="call_function", target=aten.relu.default):
        set_annotation(node, QuantizationAnnotation({node.args[0]: UINT8}, _annotated=True))
    return model


class Recording(Quantizer):
    """Writes down who was called with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def bind_ledger(self, ledger):
        self.calls.append(("bind_ledger", ledger))

    def transform_for_annotation(self, model):
        self.calls.append(("transform_for_annotation", model))
        return model

    def annotate(self, model):
        self.calls.append(("annotate", model))
        return annotate_relu(model)

    def validate(self, model):
        self.calls.append(("validate", model))


def test_the_steps_of_a_quantizer_run_in_order_on_a_copy(gm: GraphModule) -> None:
    quantizer, ledger = Recording(), Ledger()
    annotated = annotate(gm, quantizer, ledger)
    assert [name for name, _ in quantizer.calls] == [
        *("bind_ledger", "transform_for_annotation", "annotate", "validate", "bind_ledger"),
    ]
    assert [module for _, module in quantizer.calls[1:4]] == [annotated] * 3
    assert get_stage(annotated) is Stage.ANNOTATED
    assert not any(get_annotation(node) for node in gm.graph.nodes)


@pytest.mark.parametrize("fails", [False, True])
def test_the_ledger_of_a_model_is_the_quantizers_for_that_model_only(gm: GraphModule, fails: bool) -> None:
    class Failing(Recording):
        def validate(self, model):
            if fails:
                raise AnnotationError("no")

    quantizer, ledger = Failing(), Ledger()
    with pytest.raises(AnnotationError) if fails else contextlib.nullcontext():
        annotate(gm, quantizer, ledger)
    (_, first), *_, (_, last) = quantizer.calls
    assert first is ledger
    assert last is not ledger


def test_a_quantizer_may_return_nothing_from_annotate(gm: GraphModule, quantizer) -> None:
    # As the tutorials' own do.
    class Silent(Recording):
        def annotate(self, model):
            annotate_relu(model)

    (relu,) = annotate(gm, Silent()).graph.find_nodes(op="call_function", target=aten.relu.default)
    assert get_annotation(relu).input_qspec_map == {relu.args[0]: UINT8}


def test_a_transformation_is_part_of_what_is_annotated(gm: GraphModule) -> None:
    class Transforming(Recording):
        def transform_for_annotation(self, model):
            (relu,) = model.graph.find_nodes(op="call_function", target=aten.relu.default)
            with model.graph.inserting_after(relu):
                relu.replace_all_uses_with(
                    again := model.graph.call_function(aten.relu.default, (relu,)),
                    delete_user_cb=lambda user: user is not again,
                )
            return model

    annotated = annotate(gm, Transforming())
    assert sum(get_annotation(node) is not None for node in annotated.graph.nodes) == 2


@pytest.mark.parametrize("step", ["transform_for_annotation", "annotate"])
@pytest.mark.parametrize("returned", [nn.ReLU(), 1, False])
def test_another_module_in_return_is_refused(gm: GraphModule, step: str, returned: object) -> None:
    quantizer = Recording()
    setattr(quantizer, step, type("Step", (), {"__call__": lambda self, model: returned, "__name__": step})())
    with pytest.raises(AnnotationError, match=rf"Recording\.{step} returned another module") as caught:
        annotate(gm, quantizer)
    assert caught.value.pass_name == "annotate"
    assert "working copy" in caught.value.hint


def test_a_run_without_a_quantizer_is_refused(gm: GraphModule) -> None:
    with pytest.raises(PipelineError, match="needs a quantizer") as caught:
        annotate(gm, None)
    assert caught.value.pass_name == "annotate"


def test_what_a_quantizer_raises_comes_with_its_cause(gm: GraphModule, quantizer) -> None:
    def refuse(node):
        raise KeyError("conv3")

    with pytest.raises(PassFailedError, match="raised KeyError: 'conv3'") as caught:
        annotate(gm, quantizer(refuse))
    assert isinstance(caught.value.__cause__, KeyError)


def test_validation_may_refuse(gm: GraphModule) -> None:
    class Strict(Recording):
        def validate(self, model):
            raise AnnotationError("int3 is not supported", hint="use int8")

    with pytest.raises(AnnotationError, match="int3"):
        annotate(gm, Strict())


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (QuantizationAnnotation({"relu": UINT8}), "%relu is annotated at an input edge from a str"),
        (
            QuantizationAnnotation(output_qspec=torch.uint8),
            "is annotated with a torch.dtype, which is not a spec",
        ),
        ({"output_qspec": UINT8}, "not with a QuantizationAnnotation of lowbit"),
    ],
)
def test_annotations_that_make_no_sense_are_refused(
    gm: GraphModule, quantizer, annotation, said: str
) -> None:
    def annotate_node(node):
        if node.target is aten.relu.default:
            node.meta["quantization_annotation"] = annotation

    with pytest.raises(AnnotationError) as caught:
        annotate(gm, quantizer(annotate_node))
    assert said in str(caught.value)
    assert "%relu (aten.relu.default)" in str(caught.value)
    assert not any("quantization_annotation" in node.meta for node in gm.graph.nodes)


@pytest.mark.parametrize("annotation", [None, QuantizationAnnotation(_annotated=True)])
def test_a_model_of_which_nothing_is_quantized_is_worth_a_warning(
    gm: GraphModule, quantizer, annotation
) -> None:
    def annotate_node(node):
        if annotation is not None:
            set_annotation(node, annotation)

    with pytest.warns(NothingQuantizedWarning, match="ByFunction annotated no tensor") as caught:
        annotated = annotate(gm, quantizer(annotate_node))
    assert len(caught) == 1
    assert get_stage(annotated) is Stage.ANNOTATED


def test_the_warning_arrives_as_itself_where_warnings_are_errors(gm: GraphModule, quantizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NothingQuantizedWarning):
            annotate(gm, quantizer(lambda node: None))


def test_one_quantized_tensor_is_worth_none(gm: GraphModule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        annotate(gm, Recording())
