"""``calibrate``: which data it takes, which it refuses, and that a refusal leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    get_default_x86_inductor_quantization_config,
    prepare_pt2e,
)
from lowbit.errors import CalibrationDataError, GraphInputError, LowbitError, StageError
from lowbit.ir.observers import FakeQuantize
from lowbit.ir.verifiers import is_observer
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x)).log()
        return self.second(hidden)


class Pair(nn.Module):
    """Two inputs, of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(3, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(x) + self.right(y)


class Nested(Pair):
    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return super().forward(*both)


def prepare(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, **options: Any
) -> GraphModule:
    exported = torch.export.export(model.eval(), args, kwargs, **options).module()
    assert isinstance(exported, GraphModule)
    preset = get_default_x86_inductor_quantization_config()
    return prepare_pt2e(exported, X86InductorQuantizer().set_global(preset))


def statistics(model: GraphModule) -> dict[str, Tensor]:
    """All that the observers know."""
    return {
        f"{name}.{key}": value.clone()
        for name, module in model.named_modules()
        if is_observer(module)
        for key, value in module.state_dict().items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refused(model: GraphModule, data: Any, **options: Any) -> LowbitError:
    """The error that ``data`` gets, after which the observers are as they were."""
    before = statistics(model)
    with pytest.raises(CalibrationDataError) as caught:
        calibrate(model, data, progress=False, **options)
    assert same(statistics(model), before)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def pair() -> GraphModule:
    torch.manual_seed(0)
    return prepare(Pair(), (torch.randn(2, 4), torch.randn(2, 3)))


X, Y = torch.arange(8.0).reshape(2, 4), torch.arange(6.0).reshape(2, 3)


def reference() -> dict[str, Tensor]:
    """The statistics of one batch of X and Y, by calling the model as the tutorials do."""
    torch.manual_seed(0)
    model = prepare(Pair(), (torch.randn(2, 4), torch.randn(2, 3)))
    with torch.no_grad():
        model(X, Y)
    return statistics(model)


# What it takes.


@pytest.mark.parametrize(
    "data",
    [
        [(X, Y)],
        [[X, Y]],
        iter([(X, Y)]),
        [(X, Y, torch.zeros(2))],
        DataLoader(TensorDataset(X, Y), batch_size=2),
        DataLoader(TensorDataset(X, Y, torch.zeros(2)), batch_size=2),
    ],
    ids=["tuples", "lists", "iterator", "labels", "loader", "loader with labels"],
)
@pytest.mark.parametrize("progress", [False, True])
def test_batches(pair: GraphModule, data: Any, progress: bool) -> None:
    if isinstance(data, Iterator):
        data = iter([(X, Y)])  # parametrized values are shared by the tests, and an iterator is used up
    assert calibrate(pair, data, progress=progress) is pair
    assert same(statistics(pair), reference())


def test_a_model_of_one_input_takes_tensors() -> None:
    model = prepare(nn.Linear(4, 2), (X,))
    calibrate(model, [X, 2 * X], progress=False)
    other = prepare(nn.Linear(4, 2), (X,))
    calibrate(other, [(X, "label"), (2 * X, "label")], progress=False)
    observed = [s["activation_post_process.max_val"] for s in map(statistics, (model, other))]
    assert observed[0] == observed[1] == 14


def test_nested_inputs_are_one_each() -> None:
    class Model(nn.Module):
        def forward(self, named: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return F.linear(named["first"], self.weight) + named["second"] + x

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    x = torch.randn(4, 4)
    inputs = ({"first": x, "second": x}, x)
    prepared = prepare(Model(), inputs)
    calibrate(prepared, [inputs, (*inputs, "a label")], progress=False)
    with pytest.raises(CalibrationDataError, match="the batch has 1 entries, and the model takes 2 inputs"):
        calibrate(prepared, [(x,)], progress=False)


def test_an_input_that_is_a_tuple_stands_alone_in_its_batch() -> None:
    torch.manual_seed(0)
    model = prepare(Nested(), ((torch.randn(2, 4), torch.randn(2, 3)),))
    calibrate(model, [((X, Y),)], progress=False)
    name = "activation_post_process.max_val"
    assert statistics(model)[name] == reference()[name]


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_keyword_arguments_in_any_order(order: str) -> None:
    torch.manual_seed(0)
    model = prepare(Pair(), (), {"x": torch.randn(2, 4), "y": torch.randn(2, 3)})
    values = {"x": X, "y": Y}
    calibrate(model, [{name: values[name] for name in order}], progress=False)
    assert same(statistics(model), reference())


def test_steps(pair: GraphModule) -> None:
    taken: list[int] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for scale in (1, 2, 3):
            taken.append(scale)
            yield scale * X, scale * Y

    source = batches()
    calibrate(pair, source, steps=2)
    assert taken == [1, 2], "a batch beyond the last step was taken from the source"
    assert statistics(pair)["activation_post_process.max_val"] == 14
    calibrate(pair, source)
    assert statistics(pair)["activation_post_process.max_val"] == 21


def test_sources_without_a_length(pair: GraphModule) -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(zip(X, Y, strict=True))

    # A loader of these has __len__, which raises.
    calibrate(pair, DataLoader(Stream(), batch_size=2), progress=True)
    assert same(statistics(pair), reference())


def test_calibrating_goes_on_where_it_was(pair: GraphModule) -> None:
    for _ in range(2):
        calibrate(pair, [(X, Y)], progress=False)
    histogram = pair.get_submodule("activation_post_process")
    assert isinstance(histogram, HistogramObserver)
    assert histogram.histogram.sum() == 2 * X.numel()


def test_gradients_are_off(pair: GraphModule) -> None:
    modes: list[bool] = []
    observer = pair.get_submodule("activation_post_process")
    observer.register_forward_pre_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    assert torch.is_grad_enabled()
    calibrate(pair, [(X, Y)], progress=False)
    assert modes == [False]
    assert torch.is_grad_enabled()


# What it refuses.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers(pair: GraphModule, value: float) -> None:
    calibrate(pair, [(X, Y)], progress=False)
    bad = Y.clone()
    bad[1, 2] = value
    error = refused(pair, [(2 * X, 2 * Y), (X, bad)])
    kind = {"nan": "NaN", "inf": "+inf", "-inf": "-inf"}[str(value)]
    assert error.found == (
        f"the input 'y' has 1 {kind} among the 6 values of a tensor of shape [2, 3], the first at [1, 2]"
    )
    assert error.where == ("batch 1",)
    assert (error.batch, error.input, error.index) == (1, "y", (1, 2))
    # Nothing of either batch is left, nor of the weights' being looked at.
    converted = convert_pt2e(pair)
    expected = prepare(Pair(), (X, Y))
    expected.load_state_dict(pair.state_dict())
    assert torch.equal(converted(X, Y), convert_pt2e(expected)(X, Y))


def test_values_that_become_no_numbers_name_the_operator_and_its_line() -> None:
    torch.manual_seed(0)
    model = prepare(Net(), (X,))
    error = refused(model, [X - 100])  # ReLU gives zeros, and their logarithm is -inf
    text = str(error)
    assert "batch 0" in error.where
    assert "%log" in text
    assert "test_calibration.py" in text
    assert "hidden = F.relu(self.first(x)).log()" in text


def test_values_of_the_data_are_told_also_where_an_operator_passed_them_on() -> None:
    """Of a mask infinity is meant, so what is refused behind it is the operator's."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.linear((x + mask).softmax(-1))

    x, mask = torch.zeros(2, 3), torch.zeros(2, 3)
    model = prepare(Masked(), (x, mask))
    mask[0, 2] = float("-inf")
    calibrate(model, [(x, mask)], progress=False)
    mask[0] = float("-inf")
    error = refused(model, [(x, mask)])
    assert error.found.startswith("an observer met 3 NaN among the 6 values of a tensor of shape [2, 3], ")
    assert error.where[0] == "batch 0"
    assert error.where[1].startswith("%softmax")
    assert error.where[-1].startswith("the input 'mask' has 3 -inf among the 6 values of a tensor of shape")
    assert error.hint.startswith("find the batch (or the operator) that makes them")
    assert (error.input, error.index) == ("", ())  # infinity in the mask may be meant


def test_values_in_nested_inputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, named: dict[str, Tensor], y: Tensor) -> Tensor:
            return named["a"] + self.linear(named["b"]) + y

    x = torch.zeros(2, 3)
    model = prepare(Named(), ({"a": x.clone(), "b": x.clone()}, x))
    error = refused(model, [({"a": x, "b": x + float("nan")}, x)])
    assert error.found.startswith("the input 'named_b' has 6 NaN")


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_the_place_is_found_with_keyword_arguments_too(order: str) -> None:
    model = prepare(Pair(), (), {"x": X, "y": Y})
    values = {"x": X, "y": Y * float("nan")}
    error = refused(model, [{name: values[name] for name in order}])
    assert error.found.startswith("the input 'y' has 6 NaN")


def test_a_failed_run_may_be_the_first() -> None:
    torch.manual_seed(0)
    model = prepare(Pair(), (X, Y))
    refused(model, [(X, Y), (X, Y * float("nan"))])
    calibrate(model, [(X, Y)], progress=False)
    again = prepare(Pair(), (X, Y))
    again.load_state_dict(model.state_dict())
    # Weights are observed once: that the failed run saw them must not count.
    assert same(statistics(model), reference())
    convert_pt2e(model)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((X,), "takes 2 inputs"),
        (X, "does not run on the batch"),
        ((Y, X), "does not run on the batch"),
        ((X.double(), Y), "does not run on the batch"),
        ((X[:, :2], Y), "does not run on the batch"),
        (("x", "y"), "an observer was handed a str"),
        ({"x": X, "y": Y}, "does not run on the batch"),
        ({"x": X, "z": Y}, "does not run on the batch"),
        ("xy", "is a str"),
        (3, "is an int"),
        (None, "is a NoneType"),
        ((), "takes 2 inputs"),
    ],
)
def test_batches_that_do_not_fit(pair: GraphModule, batch: Any, words: str) -> None:
    error = refused(pair, [(X, Y), batch])
    assert words in error.found
    assert (error.where[0], error.batch) == ("batch 1", 1)


def test_one_sample_in_place_of_a_batch(pair: GraphModule) -> None:
    error = refused(pair, [(X[0], Y)])
    assert error.hint == (
        "x has 1 axes and the model takes 2: if it is one sample, give it an axis of samples, x.unsqueeze(0)"
    )


def test_values_that_are_out_of_range() -> None:
    tokens = torch.tensor([[0, 3]])
    model = prepare(torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 4)), (tokens,))
    error = refused(model, [(tokens,), (tokens + 7,)])
    assert error.found == (
        "the input 'input' has 10 at [0, 1], and the embedding that looks it up has 10 rows, 0 to 9"
    )
    assert error.where == ("batch 1",)
    assert (error.batch, error.input, error.index) == (1, "input", (0, 1))
    assert "-1 at [0, 0]" in refused(model, [(tokens - 1,)]).found


def test_values_that_are_out_of_range_after_an_operator() -> None:
    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(10, 4), nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.linear(self.table(ids + 2))

    tokens = torch.tensor([[0, 3]])
    error = refused(prepare(Offset(), (tokens,)), [(tokens + 5,)])
    assert "does not run on the batch: IndexError" in error.found
    assert error.hint == "look for values that are out of range: ids has 5 to 8"


@pytest.mark.parametrize("data", [[], iter(()), (), DataLoader(TensorDataset(X[:0]), batch_size=2)])
def test_no_data(pair: GraphModule, data: Any) -> None:
    assert "no batch" in refused(pair, data).found


def test_no_steps(pair: GraphModule) -> None:
    assert "no batch" in refused(pair, [(X, Y)], steps=0).found


def test_a_source_that_fails_half_way(pair: GraphModule) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield X, Y
        raise OSError("the disk is gone")

    before = statistics(pair)
    with pytest.raises(OSError, match="the disk is gone"):
        calibrate(pair, batches(), progress=False)
    assert same(statistics(pair), before)


def test_an_interrupt(pair: GraphModule) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield X, Y
        raise KeyboardInterrupt

    before = statistics(pair)
    with pytest.raises(KeyboardInterrupt):
        calibrate(pair, batches(), progress=False)
    assert same(statistics(pair), before)


@pytest.mark.parametrize("model", [Pair(), None, "prepared"])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(GraphInputError, match="not a prepared model"):
        calibrate(model, [(X, Y)])


@pytest.mark.parametrize("verb", [lambda p: torch.export.export(Pair(), (X, Y)).module(), convert_pt2e])
def test_models_without_observers(pair: GraphModule, verb: Callable[[GraphModule], GraphModule]) -> None:
    calibrate(pair, [(X, Y)], progress=False)
    with pytest.raises(StageError, match="no observers"):
        calibrate(verb(pair), [(X, Y)])


def with_fake_quantizers(model: GraphModule) -> GraphModule:
    """``model`` with a fake quantizer in the place of each observer."""
    for name, observer in list(model.named_children()):
        if isinstance(observer, PerChannelMinMaxObserver):
            weight = {"dtype": torch.int8, "qscheme": torch.per_channel_symmetric}
            model.add_module(name, FakeQuantize(PerChannelMinMaxObserver, **weight))
        elif is_observer(observer):
            model.add_module(name, FakeQuantize(MinMaxObserver))
    return model


@pytest.mark.parametrize("training", [False, True])
def test_fake_quantizers_observe_in_either_mode(training: bool) -> None:
    model = with_fake_quantizers(prepare(Pair(), (torch.rand(2, 4), torch.rand(2, 3))))
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuantize)]
    assert len(quantizers) >= 4
    for quantizer in quantizers:
        quantizer.train(training)
    data = [(torch.rand(2, 4) * i, torch.rand(2, 3)) for i in (1, 2, 3)]
    calibrate(model, data, progress=False)
    assert all(quantizer.has_data for quantizer in quantizers)
    assert {quantizer.training for quantizer in quantizers} == {training}
    for quantizer in quantizers:
        quantizer.eval()
    before = statistics(model)
    converted = convert_pt2e(model)
    for args in data:
        assert torch.equal(model(*args), converted(*args))
    assert same(statistics(model), before)


def test_bad_data_of_fake_quantizers_have_a_place_and_leave_no_trace() -> None:
    model = with_fake_quantizers(prepare(Net(), (torch.rand(2, 4),))).requires_grad_(False)
    model.first.weight.fill_(-1.0)
    error = refused(model, [torch.rand(2, 4)])
    assert any("log" in place for place in error.where), error.where
    assert not any(m.has_data for m in model.modules() if isinstance(m, FakeQuantize))
