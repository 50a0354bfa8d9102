"""Reasons that point to a neighbour are followed to the operators that stay float for one of their own."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    MinMaxObserver,
    X86InductorQuantizer,
    convert_pt2e,
    decisions,
    explain,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.ir.reasons import REASONS
from lowbit.tools.explain import Because
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")


class Residual(nn.Module):
    """The sum of two convolutions, and what moves its values, are read by a normalization in float."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.left(x) + self.right(x))
        return self.norm(F.max_pool2d(y, 2).flatten(2).transpose(1, 2))


class Reader(nn.Module):
    """Pools, and hands the result to ``read``."""

    def __init__(self, read) -> None:
        super().__init__()
        self.read, self.conv = read, nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor):
        return self.read(F.max_pool2d(self.conv(x), 2))


def prepared_for_x86(model: nn.Module):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    activation = attrs.evolve(preset.input_activation, observer_or_fake_quant_ctr=MinMaxObserver)
    quick = attrs.evolve(preset, input_activation=activation, output_activation=activation)
    exported = torch.export.export(model.eval(), (x,)).module()
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(quick))
    prepared(x)
    return prepared


@pytest.fixture(scope="module")
def residual():
    prepared = prepared_for_x86(Residual())
    converted = convert_pt2e(prepared)
    return {"prepared": prepared, "converted": converted, "lowered": lower_pt2e(converted)}


def only(model, about):
    (operator,) = explain(model, about).operators
    return operator


@pytest.mark.parametrize("stage", ["prepared", "converted", "lowered"])
def test_readers_are_followed_to_the_one_with_a_reason_of_its_own(residual, stage: str) -> None:
    found = only(residual[stage], "max_pool2d")
    assert found.reason == "no-low-precision-reader"
    (cause,) = found.because
    assert (cause.node, cause.role, cause.reason) == ("layer_norm", "reads", "no-pattern")
    assert (cause.module, cause.through) == ("norm", ("flatten", "transpose"))
    (line,) = [line for line in str(found).splitlines() if line.startswith("  because: ")]
    assert line.startswith("  because: %layer_norm (norm, test_because.py:")
    assert line.endswith(") reads it in float, through %flatten, %transpose: no-pattern")
    assert only(residual[stage], "transpose").because[0].through == ()
    assert only(residual[stage], "layer_norm").because == ()


def test_a_sum_that_is_read_in_float_once_it_is_lowered(residual) -> None:
    found = only(residual["lowered"], "add")
    assert found.reason == "sum-read-in-float"
    (cause,) = found.because
    assert (cause.node, cause.through) == ("layer_norm", ("relu", "max_pool2d", "flatten", "transpose"))
    assert "through %relu, %max_pool2d, %flatten, 1 more: no-pattern" in str(cause)


def test_no_pattern_of_float_operators_fails_at_a_kernel(residual) -> None:
    for node in ("add", "relu"):
        found = only(residual["lowered"], node)
        assert found.nearest == ()
        assert "nearest" not in str(found)
        assert "qconv_pointwise_default" not in str(found).partition("tensor:")[0]


def test_the_meaning_of_a_refusal_comes_before_the_kernel(residual) -> None:
    meaning = REASONS["sum-read-in-float"].meaning
    (made,) = [d for d in decisions(residual["lowered"]) if d.node == "add"]
    assert made.detail == f"{meaning}; tried onednn.qconv2d_pointwise.binary as conv2d-add"
    lines = str(only(residual["lowered"], "add")).splitlines()
    assert lines[1:3] == [
        f"  why:     {meaning}",
        "  found:   tried onednn.qconv2d_pointwise.binary as conv2d-add",
    ]


def test_inputs_are_followed_too() -> None:
    class Inputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.max_pool2d(self.norm(x).flatten(2).unflatten(2, (4, 4)), 2))

    prepared = prepared_for_x86(Inputs())
    found = only(prepared, "max_pool2d")
    assert found.reason == "float-input"
    (cause,) = found.because
    assert (cause.node, cause.role, cause.reason) == ("group_norm", "makes", "no-pattern")
    assert "%group_norm (norm, test_because.py:" in str(cause)
    assert ") hands it a float tensor" in str(cause)


def test_a_reader_is_float_for_another_thing_that_it_reads() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(torch.cat([F.max_pool2d(y, 2), F.max_pool2d(self.norm(y), 2)], 1))

    prepared = prepared_for_x86(Beside())
    (cause,) = only(prepared, "max_pool2d").because
    assert (cause.node, cause.through) == ("group_norm", ("cat", "max_pool2d_1"))
    assert str(cause).endswith(") keeps what reads it float, through %cat, %max_pool2d_1: no-pattern")
    assert str(only(prepared, "cat").because[0]).endswith(
        ") hands it a float tensor, through %max_pool2d_1: no-pattern"
    )
    said = {each.node: str(each.because[0]) for each in explain(prepared).operators if each.because}
    assert said["max_pool2d"].endswith(") keeps what reads it float: no-pattern")
    assert said["cat"].endswith(") hands it a float tensor: no-pattern")


def test_the_ends_of_the_model() -> None:
    (cause,) = only(prepared_for_x86(Reader(nn.Identity())), "max_pool2d").because
    assert (cause, str(cause)) == (Because("output", "output"), "the model returns it, in float")

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, 2)

    (cause,) = only(prepared_for_x86(First()), "max_pool2d").because
    assert (cause, str(cause)) == (Because("x", "input"), "%x, an input of the model, is float")


def test_the_nearest_three_of_many() -> None:
    def read(y: Tensor):
        return [torch.softmax(y, 1), torch.softmax(y, 2), torch.softmax(y, 3), torch.cumsum(y, 1)]

    found = only(prepared_for_x86(Reader(read)), "max_pool2d")
    assert [cause.node for cause in found.because] == ["softmax", "softmax_1", "softmax_2"]


def test_many_ways_are_walked_once() -> None:
    """Forty diamonds of concatenations: 2 to the 40 ways from the first to the normalization."""

    def read(y: Tensor) -> Tensor:
        for _ in range(40):
            y = torch.cat([F.max_pool2d(y, 1), F.max_pool2d(y, 1)], 1)[:, :4]
        return torch.softmax(y, 1)

    (cause,) = only(prepared_for_x86(Reader(read)), "max_pool2d").because
    assert (cause.node, cause.reason) == ("softmax", "no-pattern")
    assert len(cause.through) <= 3 * 40


class Attention(nn.Module):
    """Attention between linears, with a normalization in float behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_around_attention_the_reason_is_attention_itself() -> None:
    exported = torch.export.export(Attention().eval(), (torch.randn(2, 3, 8),)).module()
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(preset))
    whole = explain(prepared)
    asked = [each for each in whole.operators if each.reason in {"no-low-precision-reader", "float-input"}]
    assert len(asked) == 8, "unflatten and transpose of three, transpose and flatten behind"
    attention = "%scaled_dot_product_attention (test_because.py:"
    advice = f"as for %scaled_dot_product_attention: {REASONS['two-activations'].advice}"
    for each in asked:
        (decides,) = each.because
        assert str(decides).startswith(attention)
        assert decides.reason == "two-activations"
        assert each.advice == only(prepared, each.node).advice == advice
        assert each.more == "", "the detail says no more than who decides"
    assert str(whole).count("it in float: two-activations") == 6
    assert str(whole).count("hands it a float tensor: two-activations") == 2


def test_the_nearest_causes_are_those_of_each(residual) -> None:
    for model in residual.values():
        for each in explain(model).operators:
            alone = only(model, each.node).because
            assert [cause.node for cause in each.because] == [cause.node for cause in alone[:1]]
