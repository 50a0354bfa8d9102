"""Fake quantizers: when they observe, what they quantize with, how they are switched, copied and stored."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from lowbit.errors import CalibrationDataError, NotCalibratedError, SpecError, UnsupportedError
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.clone import clone_graph_module
from lowbit.ir.observers import (
    DerivedFakeQuantize,
    FakeQuantize,
    FakeQuantizeBase,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    observing,
)
from lowbit.ir.verifiers import is_observer
from torch import nn
from torch.fx import Graph, GraphModule

PER_CHANNEL = {"dtype": torch.int8, "qscheme": torch.per_channel_symmetric}
WITH_STATISTIC = {
    "averages": FakeQuantize.with_args(dtype=torch.uint8),
    "fused": FusedMovingAvgObsFakeQuantize.with_args(averaging_constant=0.1, eps=2**-12),
    "histogram": FakeQuantize.with_args(observer=HistogramObserver.with_args(bins=64)),
    "channels": FakeQuantize.with_args(observer=PerChannelMinMaxObserver, ch_axis=1, **PER_CHANNEL),
    "fused channels": FusedMovingAvgObsFakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, **PER_CHANNEL
    ),
    "learnable": LearnableFakeQuantize.with_args(dtype=torch.uint8),
    "learnable channels": LearnableFakeQuantize.with_args(
        observer=PerChannelMinMaxObserver, channels=4, **PER_CHANNEL
    ),
}
with_statistic = pytest.mark.parametrize("make", WITH_STATISTIC.values(), ids=WITH_STATISTIC)


def data(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def state(module: nn.Module) -> dict[str, Any]:
    return {name: (v.dtype, v.shape, v.tolist()) for name, v in module.state_dict().items()}


def qparams(module: Any) -> tuple[list[float], list[int]]:
    scale, zero_point = module.calculate_qparams()
    return scale.tolist(), zero_point.tolist()


def converted(module: Any, x: torch.Tensor) -> torch.Tensor:
    """What the operators that conversion writes make of ``x``."""
    scale, zero_point = module.calculate_qparams()
    bounds = module.quant_min, module.quant_max, module.dtype
    if module.ch_axis is None:
        arguments = (float(scale), int(zero_point), *bounds)
        return qd.DEQUANTIZE_PER_TENSOR(qd.QUANTIZE_PER_TENSOR(x, *arguments), *arguments)
    arguments = (scale, zero_point, module.ch_axis, *bounds)
    return qd.DEQUANTIZE_PER_CHANNEL(qd.QUANTIZE_PER_CHANNEL(x, *arguments), *arguments)


# -- when they observe


@with_statistic
def test_training_observes_before_it_quantizes(make: Any) -> None:
    module = make()
    assert is_observer(module)
    assert not module.has_data
    reference = copy.deepcopy(module.activation_post_process)
    for seed in range(3):
        x = data(seed) * (seed + 1)
        found = module(x)
        assert torch.equal(found, converted(module, x))
        if not isinstance(module, LearnableFakeQuantize) or seed == 0:
            reference(x)
        scale, zero_point = reference.calculate_qparams()
        assert qparams(module) == (scale.tolist(), zero_point.tolist())


@with_statistic
def test_eval_changes_nothing(make: Any) -> None:
    module = make()
    module(data())
    module.eval()
    before = state(module)
    x = data(1) * 100
    assert torch.equal(module(x), converted(module, x))
    assert state(module) == before


@with_statistic
def test_without_data_there_is_nothing_to_quantize_with(make: Any) -> None:
    module = make().eval()
    before = state(module)
    with pytest.raises(NotCalibratedError, match="saw no data") as caught:
        module(data())
    assert "calibrate(prepared, loader)" in caught.value.hint
    with pytest.raises(NotCalibratedError, match="saw no data"):
        module.calculate_qparams()
    assert state(module) == before
    module.train()
    module.disable_observer()
    with pytest.raises(NotCalibratedError):
        module(data())
    empty = torch.empty(0, 6)
    assert module(empty) is empty


@with_statistic
def test_empty_tensors_do_not_count(make: Any) -> None:
    module = make()
    empty = torch.empty(0, 6)
    assert module(empty) is empty
    assert not module.has_data
    module(data())
    before = state(module)
    assert module(empty) is empty
    assert state(module) == before


@with_statistic
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_data_are_refused_and_change_nothing(make: Any, bad: float) -> None:
    module = make()
    x = data()
    x[2, 3] = bad
    before = state(module)
    with pytest.raises(CalibrationDataError, match="among the 24 values"):
        module(x)
    assert state(module) == before


def test_weights_are_observed_in_every_step() -> None:
    module = FakeQuantize(PerChannelMinMaxObserver, **PER_CHANNEL)
    # What makes the observers of constants look once only.
    assert not hasattr(module, "observe_once")
    weight = nn.Parameter(data())
    module(weight)
    first = qparams(module)
    with torch.no_grad():
        weight.mul_(2.0)
    module(weight)
    assert qparams(module)[0] == [2.0 * s for s in first[0]]


def test_observing_works_in_either_mode_and_puts_modes_back() -> None:
    model = nn.Sequential(FakeQuantize(), FakeQuantize(), nn.ReLU()).eval()
    model[1].train()
    with observing(model):
        model(data())
    assert [m.training for m in model] == [False, True, False]
    assert model[0].has_data
    with pytest.raises(CalibrationDataError), observing(model):
        model(data() * math.nan)
    assert [m.training for m in model] == [False, True, False]


# -- switches


@with_statistic
def test_switched_off_fake_quantization_returns_the_tensor_itself(make: Any) -> None:
    module = make()
    module.disable_fake_quant()
    for x in (data().requires_grad_(), data().double(), data().half()):
        assert module(x) is x
    observed = make()
    observed(data())
    assert module.has_data
    module.enable_fake_quant()
    module.eval()
    assert module(data()) is not None
    with pytest.raises(UnsupportedError, match=r"torch\.float64"):
        module(data().double())


@with_statistic
def test_switched_off_observers_keep_the_parameters(make: Any) -> None:
    module = make()
    module(data())
    module.disable_observer()
    before = state(module)
    module(data(1) * 100)
    assert state(module) == before
    module.enable_observer()
    module(data(1) * 100)
    assert state(module) != before


class Own(nn.Module):
    """A user's own fake quantizer, known by its methods."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def disable_observer(self) -> None:
        self.calls.append("disable_observer")

    def enable_fake_quant(self) -> None:
        self.calls.append("enable_fake_quant")


def test_switches_of_a_whole_model() -> None:
    source = FakeQuantize()
    quantizers = [
        source,
        FakeQuantize(is_dynamic=True, averaging_constant=1.0),
        FixedQParamsFakeQuantize(FixedQParamsObserver, scale=1.0, zero_point=0),
        LearnableFakeQuantize(),
        DerivedFakeQuantize([source], lambda sources: sources[0].calculate_qparams()),
    ]
    own = Own()
    model = nn.Sequential(nn.Linear(2, 2), MinMaxObserver(), own, nn.ModuleList(quantizers))
    shared = quantizers[0].observer_enabled
    for switch, name, on in (
        (disable_observer, "observer_enabled", 0),
        (enable_observer, "observer_enabled", 1),
        (disable_fake_quant, "fake_quant_enabled", 0),
        (enable_fake_quant, "fake_quant_enabled", 1),
    ):
        assert model.apply(switch) is model
        for quantizer in quantizers:
            buffer = getattr(quantizer, name)
            assert (buffer.dtype, buffer.tolist()) == (torch.uint8, [on])
    assert own.calls == ["disable_observer", "enable_fake_quant"]
    # Never written into: copies of a model share it.
    assert shared.tolist() == [1]


# -- what they quantize with


def test_attributes_and_shapes() -> None:
    module = FakeQuantize(
        PerChannelMinMaxObserver,
        -127,
        127,
        ch_axis=1,
        eps=2**-12,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    assert isinstance(module.activation_post_process, PerChannelMinMaxObserver)
    assert (module.dtype, module.quant_min, module.quant_max) == (torch.int8, -127, 127)
    assert (module.qscheme, module.ch_axis, module.eps) == (torch.per_channel_symmetric, 1, 2**-12)
    assert not module.is_dynamic
    assert module.scale.shape == module.zero_point.shape == (0,)
    module(data())
    for scale, zero_point in ((module.scale, module.zero_point), module.calculate_qparams()):
        assert (scale.shape, scale.dtype) == ((6,), torch.float32)
        assert (zero_point.shape, zero_point.dtype) == ((6,), torch.int32)
    assert module.scale.grad_fn is None
    default = FakeQuantize()
    assert isinstance(default.activation_post_process, MovingAverageMinMaxObserver)
    assert (default.dtype, default.quant_min, default.quant_max, default.ch_axis) == (
        torch.uint8,
        0,
        255,
        None,
    )


def test_parameters_are_handed_out_as_copies() -> None:
    module = FakeQuantize()
    module(data())
    before = state(module)
    for parameter in module.calculate_qparams():
        parameter.zero_()
    assert state(module) == before


@pytest.mark.parametrize("channels", [False, True])
def test_the_fused_one_finds_the_same_numbers(channels: bool) -> None:
    arguments = {"observer": MovingAveragePerChannelMinMaxObserver, **PER_CHANNEL} if channels else {}
    one, other = FakeQuantize(**arguments), FusedMovingAvgObsFakeQuantize(**arguments)
    for seed in range(4):
        x = data(seed)
        assert torch.equal(one(x), other(x))
    assert state(one) == state(other)


def test_the_fused_one_takes_moving_averages_only() -> None:
    with pytest.raises(SpecError, match="has a MinMaxObserver"):
        FusedMovingAvgObsFakeQuantize(MinMaxObserver)


def test_fixed_parameters() -> None:
    make = FixedQParamsFakeQuantize.with_args(
        observer=FixedQParamsObserver.with_args(scale=1 / 256, zero_point=0), dtype=torch.uint8
    )
    module = make()
    assert module.eval().has_data
    x = torch.tensor([0.5, 2.0, -1.0, 0.123])
    assert torch.equal(module(x), converted(module, x))
    assert module(x).tolist() == [0.5, 255 / 256, 0.0, 31 / 256]
    module.train()(data() * 100)
    assert qparams(module) == ([1 / 256], [0])
    with pytest.raises(SpecError, match="has a MinMaxObserver"):
        FixedQParamsFakeQuantize(MinMaxObserver)


@pytest.mark.parametrize(
    "observer", [MovingAverageMinMaxObserver.with_args(averaging_constant=1.0), PlaceholderObserver]
)
@pytest.mark.parametrize("qscheme", [torch.per_tensor_affine, torch.per_tensor_symmetric])
def test_dynamic_parameters_are_those_of_each_tensor(observer: Any, qscheme: torch.qscheme) -> None:
    module = FakeQuantize(observer, -128, 127, is_dynamic=True, dtype=torch.int8, qscheme=qscheme, eps=2**-12)
    assert module.has_data
    before = state(module)
    operator = qd.CHOOSE_QPARAMS_SYMMETRIC if qscheme == torch.per_tensor_symmetric else qd.CHOOSE_QPARAMS
    for training in (True, False):
        module.train(training)
        for seed in range(3):
            x = data(seed) * 10**seed
            chosen = operator(x, -128, 127, 2**-12, torch.int8)
            arguments = (*chosen, -128, 127, torch.int8)
            quantized = qd.QUANTIZE_PER_TENSOR_DYNAMIC(x, *arguments)
            assert torch.equal(module(x), qd.DEQUANTIZE_PER_TENSOR_DYNAMIC(quantized, *arguments))
    # Nothing is kept.
    assert state(module) == before
    with pytest.raises(UnsupportedError, match="before run time"):
        module.calculate_qparams()


def test_dynamic_averages_are_refused() -> None:
    with pytest.raises(SpecError, match=r"averaging_constant=0\.01"):
        FakeQuantize(is_dynamic=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts(dtype: torch.dtype) -> None:
    module = FakeQuantize(PlaceholderObserver, dtype=dtype)
    assert (module.dtype, module.has_data) == (dtype, True)
    x = data()
    for training in (True, False):
        assert torch.equal(module.train(training)(x), x.to(dtype).float())
    with pytest.raises(UnsupportedError):
        module.calculate_qparams()
    module.disable_fake_quant()
    assert module(x) is x


def test_a_dtype_without_integers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.float32"):
        FakeQuantize(PlaceholderObserver)
    with pytest.raises(UnsupportedError, match="no scale and zero point"):
        FakeQuantize(PlaceholderObserver, dtype=torch.int8)
    with pytest.raises(TypeError, match="averaging"):
        FakeQuantize(MinMaxObserver, averaging_constant=0.5)


# -- derived


def bias_qparams(sources: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    activation, weight = (source.calculate_qparams()[0] for source in sources)
    return activation * weight, torch.zeros_like(weight, dtype=torch.int32)


def derived_model() -> tuple[FakeQuantize, FakeQuantize, DerivedFakeQuantize]:
    activation = FakeQuantize()
    weight = FakeQuantize(PerChannelMinMaxObserver, **PER_CHANNEL)
    bias = DerivedFakeQuantize(
        [activation, weight], bias_qparams, torch.int32, qscheme=torch.per_channel_symmetric, ch_axis=0
    )
    return activation, weight, bias


def test_derived_parameters_follow_their_sources() -> None:
    activation, weight, bias = derived_model()
    b = torch.tensor([0.3, -0.2, 0.1, 4.0])
    assert not bias.has_data
    assert (bias.quant_min, bias.quant_max) == (-(2**31), 2**31 - 1)
    # In training the sources may have their first data later in the same step.
    assert bias(b) is b
    with pytest.raises(NotCalibratedError, match="DerivedFakeQuantize saw no data"):
        bias.eval()(b)
    with pytest.raises(NotCalibratedError):
        bias.calculate_qparams()
    for seed in range(2):
        activation(data(seed))
        weight(data(seed + 2))
        expected = activation.scale * weight.scale
        assert qparams(bias) == (expected.tolist(), [0] * 4)
        for training in (True, False):
            assert torch.equal(bias.train(training)(b), converted(bias, b))
    bias.disable_fake_quant()
    assert bias(b) is b


def test_copies_of_a_model_derive_from_their_own_sources() -> None:
    activation, weight, bias = derived_model()
    activation(data())
    weight(data(1))
    model = nn.ModuleList([activation, weight, bias])
    before = qparams(bias)
    copied = copy.deepcopy(model)
    copied[0](data(2) * 1000)
    assert qparams(copied[2]) != before
    assert qparams(bias) == before


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [(0.0, 0, "derived the scale"), (math.nan, 0, "derived the scale"), (1.0, 300, "derived the zero point")],
)
def test_impossible_derived_parameters_are_refused(scale: float, zero_point: int, message: str) -> None:
    source = FixedQParamsFakeQuantize(FixedQParamsObserver, scale=1.0, zero_point=0)
    module = DerivedFakeQuantize([source], lambda _: (torch.tensor(scale), torch.tensor(zero_point)))
    with pytest.raises(SpecError, match=message):
        module(data())


# -- copies and checkpoints


def round_trip(module: nn.Module, fresh: nn.Module) -> nn.Module:
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    return fresh


@with_statistic
def test_a_checkpoint_continues_where_it_was(make: Any) -> None:
    trained = make()
    untrained = round_trip(trained, make())
    assert not untrained.has_data
    assert state(untrained) == state(trained)
    for seed in range(3):
        trained(data(seed) * (seed + 1))
    resumed = round_trip(trained, make())
    assert state(resumed) == state(trained)
    assert qparams(resumed) == qparams(trained)
    x = data(3) * 2
    assert torch.equal(copy.deepcopy(resumed).eval()(x), copy.deepcopy(trained).eval()(x))
    for seed in range(3, 6):
        x = data(seed) * 9
        assert torch.equal(resumed(x), trained(x))
    assert state(resumed) == state(trained)
    # Frozen before it was stored, it stays so.
    trained.apply(disable_observer)
    frozen = round_trip(trained, make())
    before = state(frozen)
    frozen(data(7) * 100)
    assert state(frozen) == before
    # And back to what it was at first.
    assert state(round_trip(make(), trained)) == state(make())


@with_statistic
def test_copies_are_equal_and_independent(make: Any) -> None:
    module = make()
    module(data())
    module.enable_observer()
    before = state(module)
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    for copied in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(stored, weights_only=False),
    ):
        assert state(copied) == before
        copied(data(1) * 100)
        copied.disable_fake_quant()
        assert state(copied) != before
    assert state(module) == before


def graph_module_of(module: nn.Module) -> GraphModule:
    root = nn.Module()
    root.add_module("quantize", module)
    graph = Graph()
    graph.output(graph.call_module("quantize", (graph.placeholder("x"),)))
    return GraphModule(root, graph)


@pytest.mark.parametrize("make", [m for k, m in WITH_STATISTIC.items() if "learnable" not in k])
def test_clones_of_a_graph_share_tensors_and_no_changes(make: Any) -> None:
    original = graph_module_of(make())
    original(data())
    before = state(original)
    clone = clone_graph_module(original)
    clone.recompile()
    assert clone.quantize.scale is original.quantize.scale
    clone(data(1) * 100)
    clone.apply(disable_fake_quant)
    assert state(original) == before
    changed = state(clone)
    assert changed != before
    second = clone_graph_module(original)
    second.load_state_dict(clone.state_dict())
    assert state(second) == changed
    assert state(original) == before


def test_clones_share_the_parameters_that_are_learned() -> None:
    original = graph_module_of(LearnableFakeQuantize())
    original(data())
    before = original.quantize.activation_post_process.min_val
    clone = clone_graph_module(original)
    clone.recompile()
    # As they share the weights of the model.
    assert clone.quantize.scale is original.quantize.scale
    clone.apply(enable_observer)
    clone(data(1) * 100)
    assert original.quantize.activation_post_process.min_val is before


@with_statistic
def test_converting_the_model_leaves_the_parameters_exact(make: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), make())
    model[1](data() + 1000.123)
    before = state(model[1])
    model.half().to(torch.bfloat16).double()
    assert model[0].weight.dtype is torch.float64
    assert state(model[1]) == before


def test_constructors_compare_by_value() -> None:
    one, other = (
        FakeQuantize.with_args(observer=MinMaxObserver.with_args(eps=2**-12), dtype=torch.int8) for _ in "ab"
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one != one.with_args(dtype=torch.uint8)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one().eps == 2**-12


def test_a_users_own_observer_serves() -> None:
    class OwnObserver(nn.Module):
        dtype, quant_min, quant_max, qscheme = torch.int8, -128, 127, torch.per_tensor_symmetric

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.largest = float(x.abs().max())
            return x

        def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor(self.largest / 127, dtype=torch.float64).view(1), torch.zeros(
                1, dtype=torch.int64
            )

    module = FakeQuantize(OwnObserver)
    assert not module.has_data
    module(torch.tensor([127.0, -3.3]))
    assert (module.scale.dtype, module.zero_point.dtype) == (torch.float32, torch.int32)
    assert module.eval()(torch.tensor([3.3, 500.0])).tolist() == [3.0, 127.0]


def test_users_write_their_own_fake_quantizer() -> None:
    class Halving(FakeQuantizeBase):
        has_data = True

        def __init__(self) -> None:
            super().__init__(
                dtype=torch.int8, quant_min=None, quant_max=None, qscheme=torch.per_tensor_affine
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2 if self.fake_quant_enabled else x

        def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones(1), torch.zeros(1, dtype=torch.int32)

    module = Halving()
    assert (module.quant_min, module.quant_max) == (-128, 127)
    assert module(torch.ones(1)).item() == 0.5
    assert module.apply(disable_fake_quant)(torch.ones(1)).item() == 1.0
