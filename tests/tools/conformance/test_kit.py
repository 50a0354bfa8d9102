"""The kit itself: that a backend that is wrong is told so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import QuantizationAnnotation, QuantizationConfig, get_symmetric_quantization_config
from lowbit.backends import Backend, Preset, get_backend, register_backend, registry
from lowbit.backends.by_hand import ByHand
from lowbit.backends.guards import constant_weight, float32_activations
from lowbit.backends.pattern_quantizer import PatternQuantizer
from lowbit.backends.pipelines import CONVERT, PREPARE, PREPARE_QAT
from lowbit.ir.annotation import set_annotation
from lowbit.ir.ledger import Ledger
from lowbit.matchers.operator_pattern import KernelCall, Mode, OperatorPattern, Refusal, Role, Sharing
from lowbit.passes import EmitInductor, Pipeline
from lowbit.tools.conformance import check_backend
from torch import Tensor
from torch.fx import Graph, GraphModule, Node


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = dict(registry._backends)
    yield
    registry._backends.clear()
    registry._backends.update(before)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


LINEAR = OperatorPattern(
    "linear",
    linear,
    lambda: (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)),
    (Role.ACTIVATION, Role.WEIGHT, Role.BIAS),
    guards=(constant_weight(1), float32_activations(0)),
)


def backend(*patterns: OperatorPattern, **changes: object) -> Backend:
    """A backend that has linear in int8, or other patterns, registered."""

    class Mine(PatternQuantizer):
        backend_name = "mine"

    Mine.patterns = patterns or (LINEAR,)
    made = Backend(
        name="mine",
        patterns=Mine.patterns,
        quantizer=lambda: Mine().set_global(get_symmetric_quantization_config()),
        prepare=PREPARE,
        convert=CONVERT,
        lower=None,
        lowered_by="somebody",
        presets=(Preset("static", get_symmetric_quantization_config),),
    )
    return register_backend(attrs.evolve(made, **changes))


def failures(backend: Backend) -> dict[str, str]:
    """What does not hold of ``backend``: the property → the reason."""
    failed: dict[str, str] = {}
    for check in check_backend(backend):
        try:
            check()
        except Exception as error:  # noqa: BLE001  (to pytest, too, whatever is raised is a failure)
            failed[check.name] = str(error)
    return failed


def test_a_backend_of_one_pattern_has_forty_properties() -> None:
    checks = check_backend(backend())
    assert len(checks) >= 40
    assert len({check.name for check in checks}) == len(checks)
    assert failures(get_backend("mine")) == {}


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"lowered_by": ""}, "lowers or says who does"),
        ({"prepare_qat": PREPARE_QAT}, "trains if it has presets for it"),
        ({"prepare": CONVERT}, "prepares float models"),
        ({"presets": ()}, "has presets with names of their own"),
        (
            {"presets": (Preset("a", get_symmetric_quantization_config),) * 2},
            "has presets with names of their own",
        ),
        ({"patterns": (LINEAR, LINEAR)}, "has patterns with names of their own"),
        (
            {"presets": (Preset("dynamic", lambda: get_symmetric_quantization_config(is_dynamic=True)),)},
            "has a pattern for each preset",
        ),
    ],
)
def test_backends_that_contradict_themselves(changes: dict[str, object], failed: str) -> None:
    wrong = backend(**changes)
    (check,) = [check for check in check_backend(wrong) if check.name == failed]
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize(
    ("pattern", "failed"),
    [
        # Its guard never lets it through, so the table promises what does not happen.
        (
            attrs.evolve(LINEAR, guards=(lambda occurrence: "never",)),
            {"linear is annotated where the table says", "linear lets its own example through"},
        ),
        # Nothing asks what its inputs are.
        (attrs.evolve(LINEAR, guards=()), {"leaves float64 alone"}),
        # What moves values has no weight.
        (
            attrs.evolve(LINEAR, sharing=Sharing.SAME_AS_INPUT),
            {"linear names the role of each parameter"},
        ),
    ],
)
def test_patterns_that_are_declared_wrong(pattern: OperatorPattern, failed: set[str]) -> None:
    assert failed <= set(failures(backend(pattern)))


@attrs.frozen
class WrongKernel:
    """Doubles what it should leave alone, or is for nothing that comes."""

    refusal: Refusal | None = None
    name: str = "aten.linear twice"

    def refuses(self, call: KernelCall) -> Refusal | None:
        return self.refusal

    def emit(self, call: KernelCall) -> Node:
        x, weight = (call.quantized(name) for name in ("x", "weight"))
        floats = [
            call.graph.call_function(torch.ops.aten.to.dtype, (o.node, torch.float32)) for o in (x, weight)
        ]
        result = call.graph.call_function(torch.ops.aten.linear.default, tuple(floats))
        if call.quantization is None:
            return result
        return call.graph.call_function(torch.ops.aten.to.dtype, (result, torch.int8))


LOWERS = Pipeline((EmitInductor(),))


def test_a_kernel_that_computes_something_else() -> None:
    wrong = backend(attrs.evolve(LINEAR, kernel=WrongKernel()), lower=LOWERS)
    assert set(failures(wrong)) == {"linear computes the same lowered"}


def test_a_kernel_that_refuses_without_a_reason() -> None:
    wrong = backend(attrs.evolve(LINEAR, kernel=WrongKernel(Refusal(""))), lower=LOWERS)
    assert "linear is lowered or says why not" in failures(wrong)


def test_a_kernel_that_takes_nothing() -> None:
    wrong = backend(attrs.evolve(LINEAR, kernel=WrongKernel(Refusal("never"))), lower=LOWERS)
    assert set(failures(wrong)) == {"linear runs on its kernel under some preset"}


def test_a_quantizer_that_annotates_what_no_pattern_is_about() -> None:
    class Greedy(PatternQuantizer):
        backend_name = "mine"
        patterns = (LINEAR,)

        def annotate(self, model: GraphModule) -> GraphModule:
            config = get_symmetric_quantization_config()
            for node in model.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default):
                set_annotation(node, QuantizationAnnotation({node.args[0]: config.input_activation}))
            return super().annotate(model)

    quantizer = lambda: Greedy().set_global(get_symmetric_quantization_config())  # noqa: E731
    assert "annotates nothing but patterns" in failures(backend(quantizer=quantizer))


def test_a_mode_that_is_not_there() -> None:
    wrong = backend(attrs.evolve(LINEAR, modes=(Mode.DYNAMIC,)))
    assert "has a pattern for each preset" in failures(wrong)


def quantizer_class(**members: object) -> type[PatternQuantizer]:
    return type("Wrong", (PatternQuantizer,), {"backend_name": "mine", "patterns": (LINEAR,), **members})


@pytest.mark.parametrize(
    ("setter", "failed"),
    [
        ("set_module_name", {"leaves excluded parts float", "quantizes selected parts"}),
        ("set_module_type", {"selects by module class"}),
        ("set_function_type", {"selects by function"}),
    ],
)
def test_a_setter_that_does_nothing(setter: str, failed: set[str]) -> None:
    wrong = quantizer_class(**{setter: lambda self, what, config: self})
    made = backend(quantizer=lambda: wrong().set_global(get_symmetric_quantization_config()))
    assert failed | {"refuses selections of nothing"} <= set(failures(made))


def test_a_setter_that_selects_too_much() -> None:
    wrong = quantizer_class(set_function_type=lambda self, what, config: self.set_global(config))
    twice = attrs.evolve(LINEAR, name="sum", function=torch.add, example_inputs=lambda: (torch.zeros(2),) * 2,
                         roles=(Role.ACTIVATION,) * 2, guards=(float32_activations(0, 1),))  # fmt: skip
    wrong.patterns = (LINEAR, twice)
    made = backend(LINEAR, twice, quantizer=lambda: wrong().set_global(get_symmetric_quantization_config()))
    assert "selects by function" in failures(made)


def by_hand(**changes: object) -> ByHand:
    """The square of a tensor, which is read in low precision."""

    def annotate(graph: Graph, config_of: Callable[..., QuantizationConfig | None], ledger: Ledger) -> None:
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.square.default):
            config = config_of((node,))
            if config is not None and not config.input_activation.is_dynamic:
                specs = {node.args[0]: config.input_activation}
                set_annotation(node, QuantizationAnnotation(specs, _annotated=True))
                ledger.quantized(node, "square-inputs", intended=True)

    class Square(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.square(x),)

    made = ByHand("square-inputs", (Mode.STATIC,), annotate, lambda: (Square(), (torch.randn(3, 4),)))
    return attrs.evolve(made, **changes)


def with_by_hand(each: ByHand, **changes: object) -> Backend:
    made = quantizer_class(by_hand=(each,))
    return backend(
        quantizer=lambda: made().set_global(get_symmetric_quantization_config()), by_hand=(each,), **changes
    )


def test_what_is_annotated_by_hand() -> None:
    right = with_by_hand(by_hand())
    assert failures(right) == {}
    assert "square-inputs" in str(right.capabilities())
    assert {check.name for check in check_backend(right)} >= {
        "square-inputs is quantized where the table says",
        "square-inputs stays close to the float model",
    }


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        # In no mode of the presets, so the table says float.
        ({"modes": (Mode.WEIGHT_ONLY,)}, "square-inputs is quantized where the table says"),
        ({"annotate": lambda *args: None}, "square-inputs is quantized where the table says"),
        ({"name": "linear"}, "has patterns with names of their own"),
    ],
)
def test_what_is_annotated_by_hand_otherwise_than_the_table_says(changes: dict, failed: str) -> None:
    assert failed in failures(with_by_hand(by_hand(**changes)))
