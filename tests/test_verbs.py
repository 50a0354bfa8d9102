"""The verbs at their edges: what they refuse and in which words, and that it stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs
import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    MinMaxObserver,
    Pipeline,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
    Stage,
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    get_stage,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import X86_INDUCTOR, has_vnni
from lowbit.errors import (
    AnnotationError,
    GraphInputError,
    LowbitError,
    NotCalibratedError,
    NothingQuantizedWarning,
    PassFailedError,
    PipelineError,
    SharingError,
    StageError,
    UnknownNameError,
)
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.snapshot import take_snapshot
from lowbit.passes.instruments import Timing
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        return self.linear(y.mean((2, 3)))


def x86() -> X86InductorQuantizer:
    return X86InductorQuantizer().set_global(
        get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    )


def batch() -> Tensor:
    return torch.randn(2, 3, 6, 6)


def export(model: nn.Module | None = None) -> GraphModule:
    exported = torch.export.export((model or Net()).eval(), (batch(),)).module()
    assert isinstance(exported, GraphModule)
    return exported


@pytest.fixture
def stages() -> dict[Stage, GraphModule]:
    """One model at each of its stages."""
    torch.manual_seed(0)
    exported = export()
    prepared = calibrate(prepare_pt2e(exported, x86()), [batch()], progress=False)
    converted = convert_pt2e(prepared)
    return {
        Stage.FLOAT: exported,
        Stage.OBSERVED: prepared,
        Stage.QDQ: converted,
        Stage.LOWERED: lower_pt2e(converted),
    }


Fingerprint = tuple[Any, ...]


def fingerprint(model: GraphModule) -> Fingerprint:
    """All of a model that a verb could change: graph, code, tensors by identity and version, metadata."""
    tensors = [(name, id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()]
    meta = {key: value for key, value in model.meta.items() if key != "lowbit.ledger"}
    return take_snapshot(model).digest, model.code, tensors, meta, decisions(model), model.training


def raises_and_changes_nothing(
    error: type[LowbitError], model: GraphModule, call: Callable[[], object]
) -> LowbitError:
    """The error of ``call``, which says what to do and leaves ``model`` as it was."""
    before = fingerprint(model)
    with pytest.raises(error) as caught:
        call()
    assert fingerprint(model) == before
    assert caught.value.hint
    return caught.value


# What is no exported model.


@pytest.mark.parametrize("verb", [lambda m: prepare_pt2e(m, x86()), convert_pt2e, lower_pt2e, calibrate])
@pytest.mark.parametrize(
    ("model", "hint"),
    [
        (Net(), "torch.export.export"),
        (lambda: torch.export.export(Net().eval(), (batch(),)), "exported_program.module()"),
        (None, "torch.export.export"),
        (torch.fx.symbolic_trace(Net().eval()), "torch.export.export"),
    ],
    ids=["module", "exported program", "none", "symbolic trace"],
)
def test_what_is_no_exported_model(verb: Callable[..., object], model: object, hint: str) -> None:
    handed = model() if callable(model) and not isinstance(model, nn.Module) else model
    with pytest.raises((GraphInputError, StageError)) as caught:
        verb(handed, *([[batch()]] if verb is calibrate else []))
    if verb is calibrate:
        assert "prepare_pt2e" in caught.value.hint
    else:
        assert isinstance(caught.value, TypeError)
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    "quantizer", [None, X86InductorQuantizer, get_default_x86_inductor_quantization_config(), "x86_inductor"]
)
def test_what_is_no_quantizer(quantizer: Any) -> None:
    model = export()
    error = raises_and_changes_nothing(GraphInputError, model, lambda: prepare_pt2e(model, quantizer))
    assert f" {type(quantizer).__name__}, not a Quantizer" in error.found


# Verbs out of order.


@pytest.mark.parametrize("stage", [Stage.OBSERVED, Stage.QDQ, Stage.LOWERED])
def test_prepare_takes_float_models(stages: dict[Stage, GraphModule], stage: Stage) -> None:
    model = stages[stage]
    error = raises_and_changes_nothing(StageError, model, lambda: prepare_pt2e(model, x86()))
    assert stage.name in error.found


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.QDQ, Stage.LOWERED])
def test_convert_takes_prepared_models(stages: dict[Stage, GraphModule], stage: Stage) -> None:
    model = stages[stage]
    error = raises_and_changes_nothing(StageError, model, lambda: convert_pt2e(model))
    assert stage.name in error.found
    assert "prepare_pt2e" in error.hint


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.OBSERVED, Stage.LOWERED])
def test_lower_takes_converted_models(stages: dict[Stage, GraphModule], stage: Stage) -> None:
    model = stages[stage]
    error = raises_and_changes_nothing(StageError, model, lambda: lower_pt2e(model, "x86_inductor"))
    assert stage.name in error.found
    assert "convert_pt2e" in error.hint


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.QDQ, Stage.LOWERED])
def test_calibrate_takes_prepared_models(stages: dict[Stage, GraphModule], stage: Stage) -> None:
    model = stages[stage]
    raises_and_changes_nothing(StageError, model, lambda: calibrate(model, [batch()]))


def test_converting_without_calibration() -> None:
    model = prepare_pt2e(export(), x86())
    error = raises_and_changes_nothing(NotCalibratedError, model, lambda: convert_pt2e(model))
    assert error.pass_name == "observers-to-qdq"
    assert "%x" in str(error)
    assert "calibrate(" in error.hint


def test_a_training_export_is_refused() -> None:
    model = torch.export.export(Net().train(), (batch(),)).module()
    assert isinstance(model, GraphModule)
    error = raises_and_changes_nothing(GraphInputError, model, lambda: prepare_pt2e(model, x86()))
    assert "model.eval()" in error.hint


# Names that are nowhere.


def test_an_unknown_backend(stages: dict[Stage, GraphModule]) -> None:
    model = stages[Stage.QDQ]
    error = raises_and_changes_nothing(UnknownNameError, model, lambda: lower_pt2e(model, "x86_inducter"))
    assert error.hint.startswith("did you mean 'x86_inductor'")


def test_no_backend_at_all() -> None:
    prepared = prepare_pt2e(export(), Annotates(lambda n: {n.args[0]: SPEC}))
    converted = convert_pt2e(calibrate(prepared, [batch()], progress=False))
    error = raises_and_changes_nothing(UnknownNameError, converted, lambda: lower_pt2e(converted))
    assert "x86_inductor" in error.hint
    assert get_stage(lower_pt2e(converted, "x86_inductor")) is Stage.LOWERED
    assert get_stage(lower_pt2e(converted, X86_INDUCTOR)) is Stage.LOWERED


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p.without("fold-batchnorm"),
        lambda p: p.until("fold-batchnorm"),
        lambda p: Pipeline.parse("normalize, fold-batchnorm"),
    ],
)
def test_an_unknown_pass(edit: Callable[[Pipeline], Pipeline]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        edit(X86_INDUCTOR.prepare)
    assert "fold-batch-norm" in caught.value.hint


def test_a_pipeline_that_cannot_run_on_the_model() -> None:
    model = export()
    raises_and_changes_nothing(
        StageError, model, lambda: prepare_pt2e(model, x86(), pipeline=X86_INDUCTOR.convert)
    )


def test_lowering_without_patterns(stages: dict[Stage, GraphModule]) -> None:
    model = stages[Stage.QDQ]
    empty = attrs.evolve(X86_INDUCTOR, patterns=())
    raises_and_changes_nothing(PipelineError, model, lambda: lower_pt2e(model, empty))


# Quantizers of the user's own that go wrong.

SPEC = QuantizationSpec(
    dtype=torch.uint8, observer_or_fake_quant_ctr=MinMaxObserver, qscheme=torch.per_tensor_affine
)


class Annotates(Quantizer):
    """Annotates the input edges of the first convolution."""

    def __init__(
        self,
        input_specs: Callable[[Node], dict[Any, Any]],
        output: Callable[[Node], Any] = lambda node: None,
    ) -> None:
        self.input_specs = input_specs
        self.output = output

    def annotate(self, model: GraphModule) -> GraphModule:
        conv = model.graph.find_nodes(op="call_function", target=aten.conv2d.default)[0]
        conv.meta["quantization_annotation"] = QuantizationAnnotation(
            self.input_specs(conv), self.output(conv)
        )
        return model


def relu_of(conv: Node) -> Node:
    return next(iter(conv.users))


def test_sharing_with_what_is_not_annotated() -> None:
    model = export()
    quantizer = Annotates(lambda n: {n.args[0]: SharedQuantizationSpec(relu_of(n))})
    error = raises_and_changes_nothing(SharingError, model, lambda: prepare_pt2e(model, quantizer))
    assert "edge %x → %conv2d shares with output of %relu, which is not annotated" in str(error)
    assert error.pass_name == "resolve-sharing"
    assert "test_verbs.py" in str(error)


def test_a_cycle() -> None:
    model = export()
    quantizer = Annotates(
        lambda n: {n.args[0]: SharedQuantizationSpec(n)},
        lambda n: SharedQuantizationSpec((n.args[0], n)),
    )
    error = raises_and_changes_nothing(SharingError, model, lambda: prepare_pt2e(model, quantizer))
    assert "a cycle" in str(error)
    assert "edge %x → %conv2d" in str(error)


def test_an_edge_that_is_not_there() -> None:
    model = export()
    quantizer = Annotates(lambda n: {relu_of(n): SPEC})
    error = raises_and_changes_nothing(AnnotationError, model, lambda: prepare_pt2e(model, quantizer))
    assert "%conv2d is annotated at an input edge from %relu, which is not an input of it" in str(error)
    assert "%x" in error.hint


def test_a_spec_that_is_none() -> None:
    model = export()
    quantizer = Annotates(lambda n: {n.args[0]: torch.uint8})
    raises_and_changes_nothing(AnnotationError, model, lambda: prepare_pt2e(model, quantizer))


def test_a_quantizer_that_raises() -> None:
    def fail(node: Node) -> dict[Any, Any]:
        node.graph.erase_node(node)  # on its working copy
        return {}

    model = export()
    error = raises_and_changes_nothing(PassFailedError, model, lambda: prepare_pt2e(model, Annotates(fail)))
    assert error.pass_name == "annotate" or "annotate" in error.found
    assert isinstance(error.__cause__, RuntimeError)


def test_a_quantizer_that_returns_another_module() -> None:
    class Returns(Annotates):
        def annotate(self, model: GraphModule) -> GraphModule:
            return copy.deepcopy(super().annotate(model))

    model = export()
    quantizer = Returns(lambda n: {n.args[0]: SPEC})
    raises_and_changes_nothing(AnnotationError, model, lambda: prepare_pt2e(model, quantizer))


@pytest.mark.parametrize(
    "quantizer", [X86InductorQuantizer(), X86InductorQuantizer().set_global(None), Annotates(lambda n: {})]
)
def test_nothing_quantized_is_a_warning(quantizer: Quantizer) -> None:
    model = export()
    with pytest.warns(NothingQuantizedWarning, match="annotated no tensor"):
        prepared = prepare_pt2e(model, quantizer)
    x = batch()
    converted = convert_pt2e(calibrate(prepared, [x], progress=False))
    torch.testing.assert_close(converted(x), model(x))
    lowered = lower_pt2e(converted, "x86_inductor")
    torch.testing.assert_close(lowered(x), model(x))


# What the verbs do when all is well.


def test_verbs_change_nothing_they_are_handed() -> None:
    exported = export()
    before = [fingerprint(exported)]
    prepared = prepare_pt2e(exported, x86())
    calibrate(prepared, [batch()], progress=False)
    before.append(fingerprint(prepared))
    converted = convert_pt2e(prepared)
    before.append(fingerprint(converted))
    lowered = lower_pt2e(converted)
    before.append(fingerprint(lowered))
    assert before == [fingerprint(model) for model in (exported, prepared, converted, lowered)]
    assert len({id(model) for model in (exported, prepared, converted, lowered)}) == 4


def test_one_prepared_model_converts_again_after_more_data() -> None:
    torch.manual_seed(0)
    prepared = prepare_pt2e(export(), x86())
    first = convert_pt2e(calibrate(prepared, [batch()], progress=False))
    again = convert_pt2e(prepared)
    x = batch()
    assert torch.equal(first(x), again(x))
    calibrate(prepared, [10 * x], progress=False)
    assert not torch.equal(convert_pt2e(prepared)(x), first(x))
    assert torch.equal(first(x), again(x))


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.OBSERVED, Stage.QDQ, Stage.LOWERED])
def test_models_can_be_copied_at_every_stage(stages: dict[Stage, GraphModule], stage: Stage) -> None:
    x = batch()
    # Packed weights are opaque tensors, which torch cannot copy.
    unpacked = lower_pt2e(stages[Stage.QDQ], pack_weights=False)
    model = unpacked if stage is Stage.LOWERED else stages[stage]
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))
    assert get_stage(copied) is stage
    assert decisions(copied) == decisions(model)
    if stage is Stage.OBSERVED:
        # Both have observed one more batch by now.
        copied, model = convert_pt2e(copied), convert_pt2e(model)
    if stage in {Stage.OBSERVED, Stage.QDQ}:
        assert torch.equal(lower_pt2e(copied)(x), lower_pt2e(model)(x))


def test_the_backend_is_remembered(stages: dict[Stage, GraphModule]) -> None:
    x = batch()
    named = lower_pt2e(stages[Stage.QDQ], "x86_inductor")
    assert torch.equal(named(x), stages[Stage.LOWERED](x))


def test_pipelines_are_edited_as_values(stages: dict[Stage, GraphModule]) -> None:
    model = export()
    unfolded = prepare_pt2e(model, x86(), pipeline=X86_INDUCTOR.prepare.without("fold-batch-norm"))
    assert unfolded.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    folded = prepare_pt2e(model, x86())
    assert not folded.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    assert get_stage(prepare_pt2e(model, x86(), pipeline=Pipeline())) is Stage.FLOAT


def test_weights_can_be_left_float(stages: dict[Stage, GraphModule]) -> None:
    x = batch()
    unfolded = convert_pt2e(stages[Stage.OBSERVED], fold_quantize=False)
    assert unfolded.graph.find_nodes(op="call_function", target=qd.QUANTIZE_PER_CHANNEL)
    assert unfolded.state_dict()["conv.weight"].dtype is torch.float32
    assert torch.equal(unfolded(x), stages[Stage.QDQ](x))


def test_instruments_see_every_pass() -> None:
    timing = Timing()
    prepared = prepare_pt2e(export(), x86(), instruments=(timing,))
    calibrate(prepared, [batch()], progress=False)
    lower_pt2e(convert_pt2e(prepared, instruments=(timing,)), instruments=(timing,))
    pipelines = (X86_INDUCTOR.prepare, X86_INDUCTOR.convert, X86_INDUCTOR.lower)
    assert [r.pass_name for r in timing.records] == [name for p in pipelines for name in p.names]


def test_decisions_of_a_model_no_verb_has_seen() -> None:
    assert decisions(export()) == ()


def test_train_and_eval_may_be_called_on_what_the_verbs_return(stages: dict[Stage, GraphModule]) -> None:
    for stage in (Stage.OBSERVED, Stage.QDQ, Stage.LOWERED):
        assert stages[stage].eval() is stages[stage]


def test_every_public_name_is_there() -> None:
    assert [name for name in lowbit.__all__ if not hasattr(lowbit, name)] == []
