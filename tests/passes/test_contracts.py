"""Contracts: what they let through is derived, and what they are to find they find."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import PassContext, Pipeline, Stage
from lowbit.errors import ContractError
from lowbit.ir.attributes import find_attribute, get_tensor, set_tensor
from lowbit.ir.clone import clone_graph_module
from lowbit.ir.verifiers import is_observer
from lowbit.passes import FoldConvBnQat, Normalize, PassManager, PropagateBf16
from lowbit.passes.contracts import EXACT, KERNELS, ONE_STEP, REAL, ROUNDED_TO_BF16, Contract, contract_of
from lowbit.passes.equivalence import check_contract
from lowbit.tools.testing import Choices, Program, Step, Subject
from lowbit.tools.testing.subjects import bring, place_of
from torch import Tensor, nn
from torch.fx import GraphModule

aten = torch.ops.aten
UNIT = 2.0**-8  # half the distance of neighbouring bfloat16 numbers from 1 on

# Of this block float32 takes one integer of the folded weight to the other side of half a step.
TIE = Subject(Program((2, 3), (Step("block", option=177),), seed=23, is_training=True), (Choices(weight=1),))


def folded(change: Callable[[GraphModule], None]) -> None:
    """Check ``fold-conv-bn-qat`` where ``change`` is made to what it makes."""
    place = place_of(FoldConvBnQat(), is_training=True, backend=None)
    before, _ = bring(TIE, place)
    after = PassManager().run(before, Pipeline((FoldConvBnQat(),)), PassContext())
    after = clone_graph_module(after)
    change(after)
    check_contract(before, after, TIE.inputs, REAL)


def nothing(gm: GraphModule) -> None:
    """As the pass left it."""


def weight_of(gm: GraphModule) -> str:
    (linear,) = gm.graph.find_nodes(op="call_function", target=aten.linear.default)
    return str(linear.args[1].args[0].target)


def scale_weight(by: float) -> Callable[[GraphModule], None]:
    def change(gm: GraphModule) -> None:
        name = weight_of(gm)
        set_tensor(gm, name, get_tensor(gm, name) * by)

    return change


def widen_observer(gm: GraphModule) -> None:
    """A scale that is off by so little that no value moves by a step."""
    (linear,) = gm.graph.find_nodes(op="call_function", target=aten.linear.default)
    target = str(linear.args[1].target)
    observer: Any = copy.deepcopy(find_attribute(gm, target))
    assert is_observer(observer)
    observer.scale.mul_(1 + 2**-10)
    gm.set_submodule(target, observer)


def test_a_weight_at_half_a_step_is_compared_before_it_is_quantized() -> None:
    folded(nothing)
    folded(scale_weight(1 + 2**-23))


@pytest.mark.parametrize("fault", [scale_weight(1 + 2**-20), scale_weight(1.0 - 2**-8), widen_observer])
def test_no_fault_within_a_step_is_hidden(fault: Callable[[GraphModule], None]) -> None:
    with pytest.raises(ContractError):
        folded(fault)


class Product(nn.Module):
    """One product, so that roundings add up as they may at worst."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.linear.weight, weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


def exported(model: nn.Module, x: Tensor) -> GraphModule:
    gm = torch.export.export(model.eval(), (x,)).module()
    assert isinstance(gm, GraphModule)
    return PassManager().run(gm, Pipeline((Normalize(),)))


def in_bfloat16(model: nn.Module, x: Tensor) -> tuple[GraphModule, GraphModule]:
    before = exported(model, x)
    return before, PassManager().run(before, Pipeline((PropagateBf16(),)))


def test_bfloat16_rounds_each_value_once() -> None:
    # Both are rounded down by nearly as much as can be: the weight, and the product with what is left of it.
    weight, x = 1 + UNIT * (1 - 2**-10), torch.full((1, 1), 1 + UNIT * (1 - 2**-6))
    before, after = in_bfloat16(Product(weight), x)
    check_contract(before, after, (x,), ROUNDED_TO_BF16)
    (node,) = after.graph.find_nodes(op="get_attr")
    stored = get_tensor(after, str(node.target))
    set_tensor(after, str(node.target), stored + 2 * UNIT)  # the number on the other side is as near
    check_contract(before, after, (x,), ROUNDED_TO_BF16)
    for wrong in (stored - 2 * UNIT, stored + 4 * UNIT):
        set_tensor(after, str(node.target), wrong)
        with pytest.raises(
            ContractError, match=r"linear_weight_bfloat16(.|\n)*1 roundings to torch\.bfloat16"
        ):
            check_contract(before, after, (x,), ROUNDED_TO_BF16)


def test_what_bfloat16_computes_is_seen_to_be_rounded() -> None:
    """A graph that says it computes in bfloat16 is not taken for exact."""
    x = torch.full((1, 1), 1 + 2**-10)
    with pytest.raises(ContractError, match="equal values"):
        check_contract(*in_bfloat16(Product(1.0), x), (x,), attrs.evolve(EXACT, dtype=torch.bfloat16))


class Cache(nn.Module):
    """Layers, and a counter that is written in place."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return self.second(self.first(x).relu()) + self.steps


@attrs.frozen
class ScaleFirst:
    """Changes the first weight by a little."""

    name: ClassVar[str] = "scale-first"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        set_tensor(gm, "first.weight", get_tensor(gm, "first.weight") * (1 + 2**-16))
        return True


def test_a_model_that_writes_in_place_is_compared_where_it_changed() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    before = torch.export.export(Cache().eval(), (x,)).module()
    assert isinstance(before, GraphModule)
    before = PassManager().run(before, Pipeline((Normalize(),)))
    after = PassManager().run(before, Pipeline((ScaleFirst(),)))
    with pytest.raises(ContractError, match="%linear is not what %linear was"):
        check_contract(before, after, (x,), REAL)
    check_contract(before, PassManager().run(before, Pipeline((PropagateBf16(),))), (x,), ROUNDED_TO_BF16)


class Wide(nn.Module):
    """A layer whose bias is small beside all the products that it is added to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(512, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


@attrs.frozen
class DropBias:
    """Forgets the bias."""

    name: ClassVar[str] = "drop-bias"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        (linear,) = gm.graph.find_nodes(op="call_function", target=aten.linear.default)
        linear.args = (*linear.args[:2], None)
        return True


@pytest.mark.parametrize("contract", [EXACT, ONE_STEP, REAL, KERNELS])
def test_a_bias_that_is_dropped_is_found_beside_many_products(contract: Contract) -> None:
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    before = exported(Wide(), x)
    after = PassManager().run(before, Pipeline((DropBias(),)))
    with pytest.raises(ContractError, match="%linear is not what %linear was"):
        check_contract(before, after, (x,), contract)


def test_so_it_is_where_products_are_in_bfloat16() -> None:
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    before = exported(Wide(), x)
    check_contract(before, PassManager().run(before, Pipeline((PropagateBf16(),))), (x,), ROUNDED_TO_BF16)
    after = PassManager().run(before, Pipeline((PropagateBf16(), DropBias())))
    with pytest.raises(ContractError, match="%linear is not what %linear was"):
        check_contract(before, after, (x,), ROUNDED_TO_BF16)


FACTORS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "matmul": (torch.matmul, (3, 4, 256), (256, 5)),
    "mm": (torch.mm, (4, 256), (256, 5)),
    "bmm": (torch.bmm, (3, 4, 256), (3, 256, 5)),
    "addmm": (lambda x, w: torch.addmm(w[0], x, w, beta=-2.0, alpha=0.5), (4, 256), (256, 5)),
    "linear": (lambda x, w: F.linear(x, w.t()), (4, 256), (256, 5)),
    "conv_transpose1d": (F.conv_transpose1d, (2, 64, 9), (64, 3, 4)),
    "conv_transpose2d": (F.conv_transpose2d, (2, 64, 4, 4), (64, 3, 2, 2)),
}


class Factor(nn.Module):
    """A product of the input and a weight."""

    weight: Tensor

    def __init__(self, product: Callable[..., Tensor], weight: Tensor) -> None:
        super().__init__()
        self.product = product
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


@attrs.frozen
class Round:
    """Replaces the weight by one that is as far off as roundings to float32 may take it, or farther."""

    name: ClassVar[str] = "round"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None
    roundings: float

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        weight = get_tensor(gm, "weight").double()
        set_tensor(gm, "weight", weight * (1 + weight.sign() * self.roundings * 2**-24))
        return True


@pytest.mark.parametrize("name", FACTORS)
def test_roundings_of_a_weight_are_let_through_and_not_one_more(name: str) -> None:
    product, *shapes = FACTORS[name]
    generator = torch.Generator().manual_seed(0)
    # Terms of both signs leave little of what is summed, and all of its roundings.
    x, weight = (torch.randn(shape, generator=generator) for shape in shapes)
    before = exported(Factor(product, weight), x.sign())
    check_contract(before, PassManager().run(before, Pipeline((Round(3.9),))), (x.sign(),), REAL)
    aligned = exported(Factor(product, weight.abs()), x.abs())
    check_contract(aligned, PassManager().run(aligned, Pipeline((Round(3.9),))), (x.abs(),), REAL)
    after = PassManager().run(aligned, Pipeline((Round(4.1),)))
    if name != "addmm":  # of its terms one is subtracted
        with pytest.raises(ContractError, match="4 roundings"):
            check_contract(aligned, after, (x.abs(),), REAL)


@attrs.frozen
class MatmulToLinear:
    """Writes ``x @ w`` as a linear of the weight transposed, or of a part of it."""

    name: ClassVar[str] = "matmul-to-linear"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None
    factor: float = 1.0

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        (product,) = gm.graph.find_nodes(op="call_function", target=aten.matmul.default)
        x, weight = product.args
        set_tensor(gm, "transposed", get_tensor(gm, weight.target).t().contiguous() * self.factor)
        with gm.graph.inserting_before(product):
            linear = gm.graph.call_function(aten.linear.default, (x, gm.graph.get_attr("transposed"), None))
        linear.meta = dict(product.meta)
        product.replace_all_uses_with(linear)
        gm.graph.erase_node(product)
        return True


def test_a_matmul_that_becomes_a_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 512, generator=generator), torch.randn(512, 8, generator=generator)
    before = exported(Factor(torch.matmul, weight), x)
    for contract in (EXACT, REAL):
        check_contract(before, PassManager().run(before, Pipeline((MatmulToLinear(),))), (x,), contract)
    after = PassManager().run(before, Pipeline((MatmulToLinear(1 + 2**-21),)))
    with pytest.raises(ContractError):
        check_contract(before, after, (x,), EXACT)
    with pytest.raises(ContractError):
        check_contract(before, PassManager().run(before, Pipeline((MatmulToLinear(1 + 2**-15),))), (x,), REAL)


def test_another_pass_of_the_same_name_has_a_contract_of_its_own() -> None:
    class MyNormalize(ScaleFirst):
        name: ClassVar[str] = "normalize"

    assert contract_of(Normalize()) is EXACT
    assert contract_of(MyNormalize()) is REAL
