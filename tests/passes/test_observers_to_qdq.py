"""What conversion writes in an observer's place, and what it reads from the observer."""

from __future__ import annotations

import copy
import operator
import threading

import pytest
import torch
from lowbit import convert_pt2e, prepare_pt2e
from lowbit.errors import CalibrationDataError, NotCalibratedError
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.annotation import QuantizationAnnotation, get_annotation, set_annotation
from lowbit.ir.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from lowbit.ir.specs import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    SharedQuantizationSpec,
)
from lowbit.ir.stages import Stage, get_stage
from lowbit.ir.verifiers import is_observer
from lowbit.passes import ObserversToQdq, PassManager, Pipeline
from torch import nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten
UINT8 = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
INT8 = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
WEIGHT = QuantizationSpec(
    torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, ch_axis=0
)


class Unary(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture
def prepare(export, quantizer):
    """``prepare(model, inputs, {target: function of its node that returns an annotation})``; sees no data."""

    def prepare(model, inputs, annotations) -> GraphModule:
        def annotate_node(node: Node) -> None:
            if node.target in annotations:
                set_annotation(node, annotations[node.target](node))

        return prepare_pt2e(export(model, *inputs), quantizer(annotate_node))

    return prepare


def to_qdq(prepared: GraphModule) -> GraphModule:
    """Only this pass: nothing folded or duplicated."""
    return PassManager().run(prepared, Pipeline((ObserversToQdq(),)))


def edges(*specs) -> object:
    """The first arguments of a node get these specs."""
    return lambda node: QuantizationAnnotation(dict(zip(node.args, specs, strict=False)))


def calls(gm: GraphModule, *targets: object) -> list[Node]:
    return [n for n in gm.graph.nodes if n.op == "call_function" and n.target in targets]


def only(gm: GraphModule, target: object) -> Node:
    (node,) = calls(gm, target)
    return node


X = torch.tensor([[-1.0, 0.5], [4.1, 2.0]])


# -- per tensor


def test_per_tensor_parameters_are_literals(prepare) -> None:
    prepared = prepare(nn.ReLU(), (X,), {aten.relu.default: edges(UINT8)})
    prepared(torch.tensor([[-1.0, 0.0], [254.0, 1.0]]))
    gm = to_qdq(prepared)
    q, dq = only(gm, qd.QUANTIZE_PER_TENSOR), only(gm, qd.DEQUANTIZE_PER_TENSOR)
    assert q.args[1:] == dq.args[1:] == (1.0, 1, 0, 255, torch.uint8)
    assert [type(a) for a in q.args[1:5]] == [float, int, int, int]
    assert q.args[0].op == "placeholder"
    assert dq.args[0] is q
    assert dq.kwargs == {}
    assert only(gm, aten.relu.default).args == (dq,)
    assert get_stage(gm) is Stage.QDQ


def test_nothing_of_preparation_is_left(prepare) -> None:
    prepared = prepare(nn.Linear(2, 2), (X,), {aten.linear.default: edges(UINT8, WEIGHT)})
    prepared(X)
    gm = to_qdq(prepared)
    assert not any(is_observer(module) for module in gm.modules())
    assert not any("activation_post_process" in name for name in gm.state_dict())
    assert not any(get_annotation(node) for node in gm.graph.nodes)
    gm.graph.lint()


def test_a_shared_observer_gives_the_same_literals_everywhere(prepare) -> None:
    class Cat(nn.Module):
        def forward(self, x, y):
            return torch.cat([x, y], 1)

    def cat(node):
        first, second = node.args[0]
        shared = SharedQuantizationSpec((first, node))
        return QuantizationAnnotation({first: UINT8, second: shared}, shared)

    prepared = prepare(Cat(), (X, -X), {aten.cat.default: cat})
    prepared(torch.tensor([[0.0, 255.0]] * 2), torch.tensor([[510.0, 0.0]] * 2))
    gm = to_qdq(prepared)
    quantizes = calls(gm, qd.QUANTIZE_PER_TENSOR)
    assert len(quantizes) == 3
    assert {q.args[1:] for q in quantizes} == {(2.0, 0, 0, 255, torch.uint8)}


def test_two_specs_on_one_tensor_are_two_pairs_in_a_row(prepare) -> None:
    prepared = prepare(
        Unary(lambda x: x.relu().tanh()),
        (X,),
        {
            aten.relu.default: lambda node: QuantizationAnnotation(output_qspec=UINT8),
            aten.tanh.default: edges(INT8),
        },
    )
    prepared(X)
    gm = to_qdq(prepared)
    chain = [n.target for n in gm.graph.nodes if n.op == "call_function"]
    assert chain == [
        aten.relu.default,
        *(qd.QUANTIZE_PER_TENSOR, qd.DEQUANTIZE_PER_TENSOR) * 2,
        aten.tanh.default,
    ]
    assert [q.args[5] for q in calls(gm, qd.QUANTIZE_PER_TENSOR)] == [torch.uint8, torch.int8]


def test_the_range_of_an_observer_that_names_none_is_its_dtypes(prepare) -> None:
    class Own(nn.Module):
        """As little as an observer of the user's own may be."""

        dtype = torch.qint8
        qscheme = torch.per_tensor_affine

        def __init__(self) -> None:
            super().__init__()

        def forward(self, x):
            return x

        def calculate_qparams(self):
            return torch.tensor([0.5]), torch.tensor([3])

    prepared = prepare(nn.ReLU(), (X,), {aten.relu.default: edges(QuantizationSpec(torch.int8, Own))})
    gm = to_qdq(prepared)
    assert only(gm, qd.QUANTIZE_PER_TENSOR).args[1:] == (0.5, 3, -128, 127, torch.int8)


# -- per channel


def test_per_channel_parameters_are_buffers_named_after_the_tensor(prepare) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.ModuleList([nn.Conv2d(2, 3, 1)])

        def forward(self, x):
            return self.block[0](x)

    model = Deep()
    with torch.no_grad():
        model.block[0].weight.copy_(torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1).expand(3, 2, 1, 1) * 127)
    prepared = prepare(model, (torch.ones(1, 2, 2, 2),), {aten.conv2d.default: edges(None, WEIGHT)})
    gm = to_qdq(prepared)
    q, dq = only(gm, qd.QUANTIZE_PER_CHANNEL), only(gm, qd.DEQUANTIZE_PER_CHANNEL)
    assert q.args[1:] == dq.args[1:]
    scale, zero_point, *rest = q.args[1:]
    assert (scale.target, zero_point.target) == ("block.0.weight_scale", "block.0.weight_zero_point")
    assert rest == [0, -127, 127, torch.int8]
    state = gm.state_dict()
    assert state["block.0.weight_scale"].tolist() == [1.0, 2.0, 4.0]
    assert state["block.0.weight_scale"].dtype is torch.float32
    assert state["block.0.weight_zero_point"].tolist() == [0, 0, 0]
    assert state["block.0.weight_zero_point"].dtype is torch.int32


def test_per_channel_parameters_of_activations_are_named_after_the_node(prepare) -> None:
    spec = QuantizationSpec(
        torch.uint8, PerChannelMinMaxObserver, 0, 255, torch.per_channel_affine, ch_axis=1
    )
    prepared = prepare(Unary(lambda x: x.relu().tanh()), (X,), {aten.tanh.default: edges(spec)})
    prepared(X)
    gm = to_qdq(prepared)
    assert {"relu_scale", "relu_zero_point"} <= set(gm.state_dict())
    assert only(gm, qd.QUANTIZE_PER_CHANNEL).args[3] == 1


def test_names_in_use_are_left_alone(prepare) -> None:
    model = nn.Linear(2, 2, bias=False)
    model.register_buffer("weight_scale", torch.tensor(7.0))
    model.forward = lambda x: nn.functional.linear(x, model.weight) * model.weight_scale
    prepared = prepare(model, (X,), {aten.linear.default: edges(None, WEIGHT)})
    gm = to_qdq(prepared)
    assert gm.weight_scale.item() == 7.0
    assert only(gm, qd.QUANTIZE_PER_CHANNEL).args[1].target == "weight_scale_1"


def test_a_weight_read_by_several_has_its_parameters_once(prepare) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 2))

        def forward(self, x):
            return nn.functional.linear(nn.functional.linear(x, self.weight), self.weight)

    gm = to_qdq(prepare(Twice(), (X,), {aten.linear.default: edges(None, WEIGHT)}))
    assert [name for name in gm.state_dict() if "scale" in name] == ["weight_scale"]
    assert len(calls(gm, qd.QUANTIZE_PER_CHANNEL)) == 1


# -- dynamic, casts, fixed, derived


@pytest.mark.parametrize(
    ("qscheme", "choose"),
    [
        (torch.per_tensor_affine, qd.CHOOSE_QPARAMS),
        (torch.per_tensor_symmetric, qd.CHOOSE_QPARAMS_SYMMETRIC),
        (None, qd.CHOOSE_QPARAMS),
    ],
)
@pytest.mark.parametrize("observer", [PlaceholderObserver, MinMaxObserver])
def test_dynamic_parameters_are_chosen_at_run_time(prepare, qscheme, choose, observer) -> None:
    spec = QuantizationSpec(torch.int8, observer.with_args(eps=2**-12), -128, 127, qscheme, is_dynamic=True)
    prepared = prepare(nn.ReLU(), (X,), {aten.relu.default: edges(spec)})
    gm = to_qdq(prepared)  # without calibration: there is nothing to calibrate
    chosen = only(gm, choose)
    assert chosen.args[0].op == "placeholder"
    assert chosen.args[1:] == (-128, 127, 2**-12, torch.int8)
    scale, zero_point = calls(gm, operator.getitem)
    assert (scale.args, zero_point.args) == ((chosen, 0), (chosen, 1))
    q, dq = only(gm, qd.QUANTIZE_PER_TENSOR_DYNAMIC), only(gm, qd.DEQUANTIZE_PER_TENSOR_DYNAMIC)
    assert q.args[1:] == dq.args[1:] == (scale, zero_point, -128, 127, torch.int8)
    for x in (X, 100 * X):
        step = (x.max() - x.min()) / 255 if choose is qd.CHOOSE_QPARAMS else 2 * x.abs().max() / 255
        error = (gm(x) - x.relu()).abs().max()
        assert error <= 0.501 * step


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_cast_there_and_back(prepare, dtype) -> None:
    prepared = prepare(
        nn.ReLU(), (X,), {aten.relu.default: edges(QuantizationSpec(dtype, PlaceholderObserver))}
    )
    gm = to_qdq(prepared)
    low, back = calls(gm, qd.CONVERT_ELEMENT_TYPE)
    assert (low.args[1], back.args) == (dtype, (low, torch.float32))
    assert torch.equal(gm(X), X.to(dtype).float().relu())


def test_a_cast_of_float64_comes_back_as_float64(prepare) -> None:
    spec = QuantizationSpec(torch.float16, PlaceholderObserver)
    gm = to_qdq(prepare(nn.ReLU(), (X.double(),), {aten.relu.default: edges(spec)}))
    assert gm(X.double()).dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_not_float32_says_so_when_it_is_dequantized(prepare, dtype) -> None:
    # PEER: "DQ names out_dtype when the input is not float32"; here with two pairs in a row, of which the
    # second one's input is the first one's output.
    prepared = prepare(
        Unary(lambda x: x.relu() @ x),
        (X.to(dtype),),
        {
            aten.relu.default: lambda node: QuantizationAnnotation(output_qspec=UINT8),
            aten.matmul.default: edges(INT8),
        },
    )
    prepared(X.to(dtype))
    gm = to_qdq(prepared)
    dequantizes = calls(gm, qd.DEQUANTIZE_PER_TENSOR)
    assert [n.kwargs for n in dequantizes] == [{"out_dtype": dtype}] * 2
    assert gm(X.to(dtype)).dtype is dtype


def test_fixed_parameters_are_those_of_the_spec(prepare) -> None:
    fixed = FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0)
    prepared = prepare(
        nn.Sigmoid(), (X,), {aten.sigmoid.default: lambda node: QuantizationAnnotation(output_qspec=fixed)}
    )
    gm = to_qdq(prepared)  # nothing to calibrate
    assert only(gm, qd.QUANTIZE_PER_TENSOR).args[1:] == (1 / 256, 0, 0, 255, torch.uint8)


def derive_bias(observers) -> tuple[torch.Tensor, torch.Tensor]:
    """The handbook's example: the bias's scale is that of the activation times that of the weight."""
    activation, weight = (observer.calculate_qparams()[0] for observer in observers)
    return activation * weight, torch.zeros_like(weight, dtype=torch.int32)


def linear_with_bias(weight_spec, qscheme, ch_axis, derive=derive_bias):
    def annotation(node):
        x, weight, bias = node.args
        derived = DerivedQuantizationSpec(
            [(x, node), (weight, node)], derive, torch.int32, qscheme=qscheme, ch_axis=ch_axis
        )
        return QuantizationAnnotation({x: UINT8, weight: weight_spec, bias: derived})

    return annotation


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.tensor(weight))
    layer.bias = nn.Parameter(torch.tensor(bias))
    return layer


def test_a_bias_derives_its_scale_from_activation_and_weight(prepare) -> None:
    model = linear([[-128.0, 0.0], [127.0, 0.0]], [7.3, -2.0])
    annotation = linear_with_bias(INT8, torch.per_tensor_symmetric, None)
    prepared = prepare(model, (X,), {aten.linear.default: annotation})
    prepared(torch.tensor([[0.0, 510.0]]).expand(2, 2))
    gm = to_qdq(prepared)
    arguments = {n.args[5]: n.args[1:] for n in calls(gm, qd.QUANTIZE_PER_TENSOR)}
    assert arguments[torch.uint8][0] == 2.0
    assert arguments[torch.int8][0] == 1.0
    assert arguments[torch.int32] == (2.0, 0, -(2**31), 2**31 - 1, torch.int32)
    # 7.3 rounds to 8, half of it to 4 steps of 2.
    assert gm(torch.zeros(2, 2)).tolist() == [[8.0, -2.0]] * 2


def test_a_bias_may_have_a_scale_a_channel(prepare) -> None:
    model = linear([[127.0, 0.0], [0.0, 254.0]], [7.3, 7.3])
    annotation = linear_with_bias(WEIGHT, torch.per_channel_symmetric, 0)
    prepared = prepare(model, (X,), {aten.linear.default: annotation})
    prepared(torch.tensor([[0.0, 255.0]]).expand(2, 2))
    gm = to_qdq(prepared)
    assert gm.bias_scale.tolist() == [1.0, 2.0]
    assert gm.bias_zero_point.dtype is torch.int32
    assert gm(torch.zeros(2, 2)).tolist() == [[7.0, 8.0]] * 2


# -- constants are read as they are now


@pytest.mark.parametrize("observer", [MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver])
def test_weights_loaded_after_calibration_count(prepare, observer) -> None:
    spec = QuantizationSpec(torch.int8, observer, -128, 127, torch.per_tensor_affine)
    model = linear([[-1.0, 0.0], [1.0, 0.0]], [0.0, 0.0])
    prepared = prepare(model, (X,), {aten.linear.default: edges(UINT8, spec)})
    prepared(X)
    first = to_qdq(prepared)
    statistics = copy.deepcopy(
        {k: v for k, v in prepared.state_dict().items() if "observer" in k or "post" in k}
    )

    prepared.load_state_dict({**prepared.state_dict(), "weight": torch.tensor([[-128.0, 0.0], [127.0, 0.0]])})
    second = to_qdq(prepared)

    def weight_scale(gm: GraphModule) -> float:
        return next(q.args[1] for q in calls(gm, qd.QUANTIZE_PER_TENSOR) if q.args[5] is torch.int8)

    # A histogram knows the range up to the width of a bin.
    assert weight_scale(first) == pytest.approx(2 / 255, rel=1e-2)
    assert weight_scale(second) == pytest.approx(1.0, rel=1e-2)
    if observer is MinMaxObserver:
        assert weight_scale(second) == 1.0
    # The prepared model's own observers keep what they saw: it can go on.
    for name, value in statistics.items():
        assert torch.equal(prepared.state_dict()[name], value), name


class InPlace(ObserverBase):
    """A user's own: writes what it sees into its buffer."""

    qscheme = torch.per_tensor_symmetric

    def __init__(self, dtype: torch.dtype = torch.int8) -> None:
        super().__init__(dtype)
        self.register_buffer("largest", torch.zeros(1))

    def forward(self, x):
        self.largest.copy_(x.detach().abs().max())
        return x

    def calculate_qparams(self):
        return self.largest / 128, torch.zeros(1, dtype=torch.int32)


def test_observers_that_write_in_place_keep_what_they_saw_too(prepare) -> None:
    model = linear([[-1.0, 0.0], [1.0, 0.0]], [0.0, 0.0])
    spec = QuantizationSpec(torch.int8, InPlace)
    prepared = prepare(model, (X,), {aten.linear.default: edges(None, spec)})
    prepared(X)
    with torch.no_grad():
        prepared.weight.mul_(256)
    assert only(to_qdq(prepared), qd.QUANTIZE_PER_TENSOR).args[1] == 2.0
    assert prepared.activation_post_process.largest.item() == 1.0


def test_what_derives_from_a_weight_loaded_later_follows_it(prepare) -> None:
    # The function belongs to something that cannot be copied, as a quantizer's own method may.
    class Deriving:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def derive(self, observers):
            return derive_bias(observers)

    model = linear([[-1.0, 0.0], [1.0, 0.0]], [7.3, -2.0])
    annotation = linear_with_bias(INT8, torch.per_tensor_symmetric, None, Deriving().derive)
    prepared = prepare(model, (X,), {aten.linear.default: annotation})
    prepared(torch.tensor([[0.0, 510.0]]).expand(2, 2))
    with torch.no_grad():
        prepared.weight.copy_(torch.tensor([[-128.0, 0.0], [127.0, 0.0]]))
    gm = to_qdq(prepared)
    assert next(q.args[1] for q in calls(gm, qd.QUANTIZE_PER_TENSOR) if q.args[5] is torch.int32) == 2.0


def test_a_weight_quantized_twice_is_read_as_it_is_now_by_both(prepare) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

        def forward(self, x):
            return x @ self.weight

    def annotate(node):
        set_annotation(node.args[1], QuantizationAnnotation(output_qspec=UINT8))
        return QuantizationAnnotation({node.args[1]: INT8})

    prepared = prepare(Model(), (X,), {aten.matmul.default: annotate})
    prepared(X)
    with torch.no_grad():
        prepared.weight.mul_(255)
    scales = {q.args[5]: q.args[1] for q in calls(to_qdq(prepared), qd.QUANTIZE_PER_TENSOR)}
    assert scales == {torch.uint8: 1.0, torch.int8: 1.0}


def test_weights_alone_need_no_calibration(prepare) -> None:
    prepared = prepare(nn.Linear(2, 2), (X,), {aten.linear.default: edges(None, WEIGHT)})
    gm = convert_pt2e(prepared)
    assert "weight_int8" in gm.state_dict()


def test_a_weight_that_is_not_finite_is_refused_with_its_name(prepare) -> None:
    prepared = prepare(nn.Linear(2, 2), (X,), {aten.linear.default: edges(None, WEIGHT)})
    with torch.no_grad():
        prepared.weight[0, 0] = float("nan")
    with pytest.raises(CalibrationDataError) as caught:
        convert_pt2e(prepared)
    assert "%weight (get_attr weight)" in str(caught.value)
    assert caught.value.pass_name == "observers-to-qdq"


# -- calibration


def test_a_model_that_saw_no_data_is_refused(prepare) -> None:
    # PEER: "Converting a model that never saw data yields scale 1, zero point 0."
    prepared = prepare(
        Unary(lambda x: x.relu().tanh().sigmoid()),
        (X,),
        {target: edges(UINT8) for target in (aten.tanh.default, aten.sigmoid.default)},
    )
    with pytest.raises(NotCalibratedError) as caught:
        convert_pt2e(prepared)
    text = str(caught.value)
    assert text.startswith(
        "2 of 2 observers never saw data, the first at %activation_post_process (of %relu)"
    )
    assert "  in pass: observers-to-qdq\n" in text
    assert "%relu (aten.relu.default)" in text
    assert "test_observers_to_qdq.py:" in text
    assert "calibrate(prepared, loader)" in caught.value.hint


def test_observers_and_not_their_calls_are_counted(prepare) -> None:
    class Cat(nn.Module):
        def forward(self, x, y):
            return torch.cat([x, y], 1), x.tanh()

    def cat(node):
        first, second = node.args[0]
        return QuantizationAnnotation({first: UINT8, second: SharedQuantizationSpec((first, node))})

    prepared = prepare(Cat(), (X, -X), {aten.cat.default: cat, aten.tanh.default: edges(INT8)})
    with pytest.raises(NotCalibratedError, match=r"^2 of 2 observers"):
        convert_pt2e(prepared)
    prepared.activation_post_process(X)
    with pytest.raises(NotCalibratedError, match=r"^1 of 2 observers .* \(of %x\)"):
        convert_pt2e(prepared)


def test_a_prepared_model_can_be_converted_again_and_calibrated_further(prepare) -> None:
    prepared = prepare(nn.Linear(2, 2), (X,), {aten.linear.default: edges(UINT8, WEIGHT)})
    prepared(X)
    before = copy.deepcopy(prepared.state_dict())
    code = prepared.code
    first, second = convert_pt2e(prepared), convert_pt2e(prepared)
    assert str(first.graph) == str(second.graph)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert torch.equal(first(X), second(X))
    assert prepared.code == code
    assert get_stage(prepared) is Stage.OBSERVED
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, before[name]), name
    prepared(10 * X)
    third = convert_pt2e(prepared)
    assert only(third, qd.QUANTIZE_PER_TENSOR).args[1] > only(first, qd.QUANTIZE_PER_TENSOR).args[1]
