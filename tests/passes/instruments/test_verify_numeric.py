"""``verify="numeric"``: a pass that changes numbers is named, with the node where it did."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    PassContext,
    Stage,
    X86InductorQuantizer,
    convert_pt2e,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends.pipelines import CONVERT, PREPARE
from lowbit.backends.registry import get_backend
from lowbit.errors import ContractError, GraphInputError, UnknownNameError
from lowbit.ir import quantized_decomposed as qd
from lowbit.ir.attributes import get_tensor, set_tensor
from lowbit.passes import PropagateBf16
from lowbit.passes.contracts import EXACT, KERNELS, Contract
from torch import Tensor, nn
from torch.fx import GraphModule

aten = torch.ops.aten


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu()
        return self.head((y + x[:, :1]).mean((2, 3)))


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(image: Tensor) -> GraphModule:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.running_var.uniform_(0.5, 2)
    return torch.export.export(model.eval(), (image,)).module()


def quantizer(**options: bool) -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(reduce_range=True, **options)
    return X86InductorQuantizer().set_global(config)


@pytest.fixture(scope="module")
def prepared(exported: GraphModule, image: Tensor) -> GraphModule:
    prepared = prepare_pt2e(exported, quantizer(), verify="numeric", example_inputs=(image,))
    prepared(image)
    return prepared


def test_the_passes_keep_their_contracts(prepared: GraphModule, image: Tensor) -> None:
    options: dict[str, Any] = {"verify": "numeric", "example_inputs": (image,)}
    converted = convert_pt2e(prepared, **options)
    convert_pt2e(prepared, use_reference_representation=True, **options)
    convert_pt2e(prepared, fold_quantize=False, **options)
    lower_pt2e(converted, **options)


def test_so_do_those_for_training(image: Tensor) -> None:
    torch.manual_seed(0)
    exported = torch.export.export(Net(), (image,)).module()
    options: dict[str, Any] = {"verify": "numeric", "example_inputs": (image,)}
    prepared = prepare_qat_pt2e(exported, quantizer(is_qat=True), **options)
    prepared(image)
    convert_pt2e(prepared, **options)


@attrs.frozen
class ScaleWeight:
    """Changes a weight by a little."""

    name: ClassVar[str] = "scale-weight"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None
    factor: float = 1 + 2**-18

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        (linear,) = gm.graph.find_nodes(op="call_function", target=aten.linear.default)
        name = str(linear.args[1].target)
        set_tensor(gm, name, get_tensor(gm, name) * self.factor)
        return True


def test_a_change_of_a_weight_is_found(exported: GraphModule, image: Tensor) -> None:
    pipeline = PREPARE.after("normalize", ScaleWeight())
    prepare_pt2e(exported, quantizer(), pipeline=pipeline)
    with pytest.raises(ContractError, match="%linear is not what %linear was before the pass") as caught:
        prepare_pt2e(exported, quantizer(), pipeline=pipeline, verify="numeric", example_inputs=(image,))
    assert caught.value.pass_name == "scale-weight"
    assert "head" in str(caught.value)


def test_what_a_pass_promises_counts(exported: GraphModule, image: Tensor) -> None:
    """One rounding of a weight by 2^-24 is within the contract of passes that say nothing; so is None."""
    options: dict[str, Any] = {"verify": "numeric", "example_inputs": (image,)}
    prepare_pt2e(
        exported, quantizer(), pipeline=PREPARE.after("normalize", ScaleWeight(1 + 2**-24)), **options
    )

    @attrs.frozen
    class Prune(ScaleWeight):
        name: ClassVar[str] = "prune"
        contract: ClassVar[None] = None

    prepare_pt2e(exported, quantizer(), pipeline=PREPARE.after("normalize", Prune(0.5)), **options)


@attrs.frozen
class ShiftZeroPoint:
    """Moves the zero point of the first pair by a step."""

    name: ClassVar[str] = "shift-zero-point"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        quantize = gm.graph.find_nodes(op="call_function", target=qd.QUANTIZE_PER_TENSOR)[0]
        for node in (quantize, *quantize.users):
            x, scale, zero_point, *rest = node.args
            node.args = (x, scale, zero_point + 1, *rest)
        return True


def test_a_step_of_a_zero_point_is_found(prepared: GraphModule, image: Tensor) -> None:
    # Where the range is full, both ends move by a step: what was the largest is cut off.
    pipeline = CONVERT.after("observers-to-qdq", ShiftZeroPoint())
    with pytest.raises(ContractError) as caught:
        convert_pt2e(prepared, pipeline=pipeline, verify="numeric", example_inputs=(image,))
    assert caught.value.pass_name == "shift-zero-point"


def test_inputs_are_needed(exported: GraphModule) -> None:
    with pytest.raises(GraphInputError, match="without inputs"):
        prepare_pt2e(exported, quantizer(), verify="numeric")
    with pytest.raises(UnknownNameError, match="numerics") as caught:
        prepare_pt2e(exported, quantizer(), verify="numerics")  # type: ignore[arg-type]
    assert "'numeric'" in caught.value.hint


def test_inputs_stay_as_they_are(exported: GraphModule, image: Tensor) -> None:
    kept = image.clone()
    prepare_pt2e(exported, quantizer(), verify="numeric", example_inputs=(image,))
    assert torch.equal(image, kept)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.relu_()
        return self.second(y) + self.first(x)


@attrs.frozen
class BeforeTheWrite:
    """Reads what ``relu_`` writes to as it was before: right only if the two were the same."""

    name: ClassVar[str] = "before-the-write"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        (relu,) = gm.graph.find_nodes(op="call_function", target=aten.relu_.default)
        relu.replace_all_uses_with(relu.args[0])
        gm.graph.erase_node(relu)
        return True


def test_values_that_were_overwritten_are_not_recalled(image: Tensor) -> None:
    torch.manual_seed(0)
    exported = torch.export.export(InPlace().eval(), (image,)).module()
    options: dict[str, Any] = {"verify": "numeric", "example_inputs": (image,)}
    prepare_pt2e(exported, quantizer(), **options)
    with pytest.raises(ContractError) as caught:
        prepare_pt2e(exported, quantizer(), pipeline=PREPARE.before("normalize", BeforeTheWrite()), **options)
    assert caught.value.pass_name == "before-the-write"


def test_an_integer_of_a_stored_weight_counts(prepared: GraphModule, image: Tensor) -> None:
    """Quantized weights that are equal are not dequantized again; one that is a step off is."""

    @attrs.frozen
    class StepOff(ShiftZeroPoint):
        name: ClassVar[str] = "step-off"

        def run(self, gm: GraphModule, context: PassContext) -> bool:
            weight = get_tensor(gm, "conv.weight_int8").clone()
            weight[0, 0, 1, 1] ^= 1
            set_tensor(gm, "conv.weight_int8", weight)
            return True

    with pytest.raises(ContractError) as caught:
        convert_pt2e(
            prepared,
            pipeline=CONVERT.after("fold-quantize", StepOff()),
            verify="numeric",
            example_inputs=(image,),
        )
    assert caught.value.pass_name == "step-off"


class Layers(nn.Module):
    """A convolution and linears that nothing quantized stands behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.LayerNorm(6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).sigmoid())
        return self.second(F.gelu(self.first(y))).softmax(-1)


@pytest.fixture(scope="module", params=[False, True], ids=["static", "dynamic"])
def to_be_lowered(request: pytest.FixtureRequest, image: Tensor) -> GraphModule:
    torch.manual_seed(0)
    exported = torch.export.export(Layers().eval(), (image,)).module()
    prepared = prepare_pt2e(exported, quantizer(is_dynamic=request.param))
    prepared(image)
    return convert_pt2e(prepared)


IN_BFLOAT16 = get_backend("x86_inductor").lower.before("emit-inductor", PropagateBf16())


def test_int8_mixed_with_bfloat16_keeps_its_contracts(to_be_lowered: GraphModule, image: Tensor) -> None:
    lower_pt2e(to_be_lowered, pipeline=IN_BFLOAT16, verify="numeric", example_inputs=(image,))


@attrs.frozen
class ShiftBias:
    """Changes the bias of a layer, as a pass that lowers may not."""

    name: ClassVar[str] = "shift-bias"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract] = KERNELS
    by: float

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        linear = gm.graph.find_nodes(op="call_function", target=aten.linear.default)[-1]
        name = str(linear.args[2].target)
        set_tensor(gm, name, get_tensor(gm, name) + self.by)
        return True


@attrs.frozen
class ScaleWeightOf:
    """Changes a float weight by a little, which is not exact."""

    name: ClassVar[str] = "scale-weight-of"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.QDQ})
    ensures: ClassVar[Stage | None] = None
    contract: ClassVar[Contract] = EXACT
    weight: str

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        # Rounded to bfloat16 it would be what it was.
        set_tensor(gm, self.weight, get_tensor(gm, self.weight) * (1 + 2**-20))
        return True


def test_a_fault_behind_bfloat16_is_found(to_be_lowered: GraphModule, image: Tensor) -> None:
    options: dict[str, Any] = {"verify": "numeric", "example_inputs": (image,)}
    for faulty, name in (
        (IN_BFLOAT16.before("emit-inductor", ShiftBias(0.1)), "shift-bias"),
        (IN_BFLOAT16.before("emit-inductor", ScaleWeightOf("norm.weight")), "scale-weight-of"),
    ):
        with pytest.raises(ContractError) as caught:
            lower_pt2e(to_be_lowered, pipeline=faulty, **options)
        assert caught.value.pass_name == name
