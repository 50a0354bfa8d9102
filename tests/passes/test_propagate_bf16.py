"""``propagate-bf16`` against ``torch.autocast``, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowbit
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.backends.registry import get_backend
from lowbit.backends.x86_inductor import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from lowbit.errors import GraphInputError
from lowbit.ir.quantized_decomposed import DEQUANTIZE_PER_TENSOR, QUANTIZE_PER_TENSOR, is_dequantize
from lowbit.ir.schema import operator_name
from lowbit.passes import Normalize, PassContext, PassManager, Pipeline, PropagateBf16
from lowbit.passes.bf16_operators import COMPUTE_IN_BFLOAT16, MOVE_VALUES, PROMOTE, RECURRENT, STAY_FLOAT32
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

aten = torch.ops.aten
BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
FLOAT32_MIN = torch.finfo(torch.float32).min
UNIT_ROUNDOFF = 2.0**-8  # of bfloat16: 8 bits of significand

Export = Callable[..., GraphModule]
Values = dict[str, tuple[Node, Any]]


class _Recorder(Interpreter):
    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: Values = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        self.values[n.name] = n, result
        return result


def run_recorded(gm: GraphModule, inputs: tuple[Tensor, ...]) -> Values:
    recorder = _Recorder(gm)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.values


def propagate(gm: GraphModule, **options: bool) -> GraphModule:
    """The pass, run twice: the second run must change nothing."""
    pass_ = PropagateBf16(**options)
    result = PassManager().run(gm, Pipeline((pass_,)))
    assert str(PassManager().run(result, Pipeline((pass_,))).graph) == str(result.graph)
    assert str(PassManager().run(gm, Pipeline((pass_,))).graph) == str(result.graph)
    return result


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def called(gm: GraphModule, target: Any) -> list[Node]:
    return list(gm.graph.find_nodes(op="call_function", target=target))


def casts(gm: GraphModule) -> list[Node]:
    return called(gm, aten.to.dtype)


def reads_float32_as_bfloat16(node: Node) -> bool:
    """What only moves values may do so in bfloat16 where autocast casts afterwards."""
    return is_dequantize(node) or operator_name(node.target)[1] in MOVE_VALUES


def assert_as_autocast(gm: GraphModule, new: GraphModule, *inputs: Tensor) -> None:
    """Every operator of ``gm`` gives in ``new`` the dtypes and the bits it gives under autocast."""
    with torch.autocast("cpu", dtype=BFLOAT16):
        expected = run_recorded(gm, inputs)
    found = run_recorded(new, inputs)
    compared = 0
    for name, (node, value) in expected.items():
        if node.op != "call_function" or name not in found:
            continue
        new_node, new_value = found[name]
        described = tensors(new_node.meta["val"])
        for wanted, result, fake in zip(tensors(value), tensors(new_value), described, strict=True):
            assert fake.dtype is result.dtype, node
            if result.dtype is BFLOAT16 and wanted.dtype is FLOAT32 and reads_float32_as_bfloat16(node):
                wanted = wanted.to(BFLOAT16)  # noqa: PLW2901
            assert wanted.dtype is result.dtype, node
            assert torch.equal(wanted, result) or (wanted.isnan() == result.isnan()).all(), node
            torch.testing.assert_close(result, wanted, rtol=0, atol=0, equal_nan=True)
            compared += 1
    assert compared


@pytest.fixture(scope="session")
def exported(export: Export) -> Export:
    """Export and normalize; without the assertions of dtypes, which autocast does not know how to keep."""

    def exported(model: nn.Module, *inputs: Tensor, **options: Any) -> GraphModule:
        gm = PassManager().run(export(model, *inputs, **options), Pipeline((Normalize(),)))
        for node in called(gm, aten._assert_tensor_metadata.default):
            gm.graph.erase_node(node)
        gm.recompile()
        return gm

    return exported


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.up = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.prelu, self.fc = nn.PReLU(), nn.Linear(8, 4)
        nn.init.normal_(self.bn.running_mean)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = F.max_pool2d(F.relu(self.bn(self.conv1(x))), 2)
        z = F.hardswish(self.conv2(y)) + y
        pooled = F.adaptive_avg_pool2d(z, 1).flatten(1)
        return self.fc(self.prelu(pooled)), self.up(z), y.mean((2, 3)).softmax(-1), z.argmax(1)


class Block(nn.Module):
    """A transformer block with tied embeddings, and outputs of several kinds."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(10, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        x = self.embedding(ids)
        batch, steps, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, steps, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)).masked_fill(mask[:, None, None], -1e9)
        attended = scores.softmax(-1) @ v + F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, steps, width))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return x @ self.embedding.weight.t(), (x, ids + 1), {"best": x.argmax(-1), "mask": ~mask}


def block_inputs(batch: int = 2, steps: int = 5) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(batch, steps, dtype=torch.bool)
    mask[:, -1] = True
    return torch.arange(batch * steps).reshape(batch, steps) % 10, mask


def test_convolutional_network_is_as_under_autocast(exported: Export) -> None:
    x = torch.randn(2, 3, 8, 8)
    gm = exported(Cnn(), x)
    new = propagate(gm)
    assert_as_autocast(gm, new, x)
    assert {n.meta["val"].dtype for n in called(new, aten.conv2d.default)} == {BFLOAT16}
    assert [t.dtype for t in new(x)] == [t.dtype for t in gm(x)]


def test_transformer_block_is_as_under_autocast(exported: Export) -> None:
    gm = exported(Block(), *block_inputs())
    new = propagate(gm)
    assert_as_autocast(gm, new, *block_inputs())
    # The inputs of five linears less two that read bfloat16 already, and the outputs: nothing else.
    assert len(casts(new)) == 4
    state = new.state_dict()
    assert state["embedding.weight"].dtype is FLOAT32
    assert torch.equal(state["embedding.weight_bfloat16"], state["embedding.weight"].bfloat16())


def test_dynamic_shapes_stay_dynamic(exported: Export) -> None:
    batch, steps = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=3)
    shapes = ({0: batch, 1: steps}, {0: batch, 1: steps})
    gm = exported(Block(), *block_inputs(), dynamic_shapes=shapes)
    new = propagate(gm)
    assert_as_autocast(gm, new, *block_inputs(3, 7))
    (gelu,) = called(new, aten.gelu.default)
    sizes = gelu.meta["val"].shape
    assert isinstance(sizes[0], torch.SymInt)
    assert str(sizes) == str(called(gm, aten.gelu.default)[0].meta["val"].shape)


def data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


X, Y, IMAGE, POINTWISE = data(4, 6), data(4, 6) + 1, data(2, 4, 8, 8), data(6, 4, 1, 1)
VOLUME = data(1, 2, 5, 5, 5)


def product(x: Tensor, y: Tensor) -> Tensor:
    """(4, 4), in bfloat16 as the pass leaves it."""
    return x @ y.t()


OPERATORS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "baddbmm": (torch.baddbmm, (data(2, 3, 5), data(2, 3, 4), data(2, 4, 5))),
    "bmm": (torch.bmm, (data(2, 3, 4), data(2, 4, 5))),
    "addmm": (torch.addmm, (data(5), data(3, 4), data(4, 5))),
    "conv1d": (F.conv1d, (data(2, 4, 9), data(3, 4, 3))),
    "conv3d": (F.conv3d, (VOLUME, data(3, 2, 3, 3, 3))),
    "same padding": (lambda x, w: F.conv2d(x, w, padding="same"), (IMAGE, data(2, 4, 3, 3))),
    "einsum": (lambda x, y: torch.einsum("bi,ci->bc", x, y), (X, Y)),
    "vecdot": (torch.linalg.vecdot, (X, Y)),
    "pool3d": (lambda x, w: F.avg_pool3d(F.conv3d(x, w), 2), (VOLUME, data(3, 2, 2, 2, 2))),
    "prod": (lambda x, y: product(x, y).prod(), (X, Y)),
    "cdist": (lambda x, y: torch.cdist(product(x, y), product(y, y)), (X, Y)),
    "grid": (
        lambda x, w, g: F.grid_sample(F.conv2d(x, w), g, align_corners=False),
        (IMAGE, POINTWISE, data(2, 3, 3, 2)),
    ),
    "loss": (lambda x, y: F.mse_loss(product(x, y), product(y, y) * 2), (X, Y)),
    "fft": (lambda x, y: torch.fft.rfft(product(x, y)).abs(), (X, Y)),
    "cat": (lambda x, y: torch.cat([product(x, y), x[:, :4]]), (X, Y)),
    "stack": (lambda x, y: torch.stack([product(x, y), x[:, :4]]), (X, Y)),
    "index_copy": (
        lambda x, y: x[:, :4].index_copy(0, torch.tensor([1, 3]), product(x, y)[:2]),
        (X, Y),
    ),
    "where": (lambda x, y: torch.where(x[:, :4] > 0, product(x, y), y[:, :4]), (X, Y)),
    "group norm": (
        lambda x, w: F.group_norm(F.conv2d(x, w), 2, torch.ones(6), torch.zeros(6)),
        (IMAGE, POINTWISE),
    ),
    "reductions": (
        lambda x, y: (product(x, y).sum(0), product(x, y).log_softmax(-1), product(x, y).cumsum(0)),
        (X, Y),
    ),
    "topk": (lambda x, y: product(x, y).topk(2), (X, Y)),
    "split": (lambda x, y: [part * 2 for part in product(x, y).split([1, 3], dim=1)], (X, Y)),
    "0-d": (lambda x, y: product(x, y) * torch.tensor(0.1) + x.mean(), (X, Y)),
    "float64": (lambda x, y: product(x.double(), y.double()) + product(x, y), (X, Y)),
    "float()": (lambda x, y: product(x, y).float().softmax(-1) @ x, (X, Y)),
    "type_as": (lambda x, y: product(x, y).type_as(x) + 1, (X, Y)),
    "resize": (
        lambda x, w: F.interpolate(F.conv2d(x, w), scale_factor=2, mode="bilinear"),
        (IMAGE, POINTWISE),
    ),
    "comparison": (lambda x, y: (product(x, y) > 0, product(x, y).argmax()), (X, Y)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_as_under_autocast(name: str, exported: Export) -> None:
    function, inputs = OPERATORS[name]
    gm = exported(Function(function), *inputs)
    assert_as_autocast(gm, propagate(gm), *inputs)


def test_tables_name_what_autocast_treats() -> None:
    registered = {
        name.removeprefix("aten::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCPU")
    }
    ours = COMPUTE_IN_BFLOAT16 | STAY_FLOAT32 | RECURRENT | PROMOTE | {"index_copy"}
    assert registered <= ours
    assert not COMPUTE_IN_BFLOAT16 & STAY_FLOAT32
    assert {"convolution", "einsum", "tensordot", "inner"} == COMPUTE_IN_BFLOAT16 - registered
    assert all(hasattr(aten, name) for name in ours)


Step = Callable[[Tensor, Tensor], Tensor]
"""A step of a generated network: from the current tensor and one of before, both (rows, 8)."""

WEIGHT = torch.linspace(-1, 1, 64).reshape(8, 8)
STEPS: dict[str, Step] = {
    "linear": lambda x, _: F.linear(x, WEIGHT, WEIGHT[0]),
    "matmul": lambda x, y: x @ (x.t() @ y),
    "weight.t": lambda x, _: x @ WEIGHT.t(),
    "relu": lambda x, _: x.relu(),
    "gelu": lambda x, _: F.gelu(x),
    "hardswish": lambda x, _: F.hardswish(x),
    "softmax": lambda x, _: x.softmax(-1),
    "layer_norm": lambda x, _: F.layer_norm(x, (8,), WEIGHT[1], WEIGHT[2]),
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "sub": torch.subtract,
    "scale": lambda x, _: x / 3,
    "chunks": lambda x, _: torch.cat(x.chunk(2, 1)[::-1], 1),
    "cat": lambda x, y: torch.cat([x, y], 1)[:, 4:12],
    "view": lambda x, _: x.view(-1, 4, 2).transpose(1, 2).reshape(-1, 8),
    "prod": lambda x, _: x.prod(-1, keepdim=True) + x,
    "where": lambda x, y: torch.where(y > 0, x, y),
    "mean": lambda x, _: x - x.mean(0),
    "float": lambda x, _: x.float(),
    "clamp": lambda x, _: x.clamp(-2, 2),
    "index": lambda x, _: x[torch.tensor([0, 0, 1])].sum(0) + x,
    "in place": lambda x, y: x.clone().add_(y),
}


class Generated(nn.Module):
    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for name, back in self.steps:
            values.append(STEPS[name](values[-1], values[-1 - back % len(values)]))
        return values[-2:]


@settings(max_examples=40)
@given(steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 5)), min_size=2, max_size=10))
def test_generated_networks_are_as_under_autocast(exported: Export, steps: list[tuple[str, int]]) -> None:
    x = torch.linspace(-2, 2, 24).reshape(3, 8)
    gm = exported(Generated(steps), x)
    new = propagate(gm)
    assert_as_autocast(gm, new, x)
    pairs = [(node.args[0], node.args[1]) for node in casts(new) if node not in casts(gm)]
    assert len(set(pairs)) == len(pairs) or any("in place" in step for step in steps)
    assert not any(node.args[0].op == "get_attr" for node in casts(new))


def test_one_cast_serves_all_readers(exported: Export) -> None:
    def three(x: Tensor, y: Tensor) -> Tensor:
        return x @ y + x.t() @ y + y @ x

    x = torch.randn(4, 4)
    new = propagate(exported(Function(three), x, x.clone()))
    assert [node.args[1] for node in casts(new)] == [BFLOAT16, BFLOAT16, FLOAT32]
    assert [node.op for node in new.graph.nodes].index("output") == len(new.graph.nodes) - 1


def test_casts_do_not_chain(exported: Export) -> None:
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    new = propagate(exported(Function(lambda x, y: (x @ y).float() @ y), x, y))
    first, second = called(new, aten.matmul.default)
    assert second.args[0] is first


def test_outputs_may_stay_bfloat16(exported: Export) -> None:
    x = torch.randn(2, 3, 8, 8)
    gm = exported(Cnn(), x)
    new = propagate(gm, keep_output_dtype=False)
    assert [t.dtype for t in new(x)] == [BFLOAT16, BFLOAT16, BFLOAT16, torch.int64]
    kept = propagate(gm)(x)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(new(x), kept, strict=True))
    text = "propagate-bf16{keep_output_dtype=False}"
    assert str(Pipeline.parse(text)) == text == str(Pipeline((PropagateBf16(keep_output_dtype=False),)))


def test_integers_booleans_and_float64_are_not_touched(exported: Export) -> None:
    def function(i: Tensor, b: Tensor, d: Tensor) -> Any:
        return i @ i + 2, b & (i > 1), F.linear(d, d) * 3

    inputs = (torch.arange(4).reshape(2, 2), torch.ones(2, 2, dtype=torch.bool), torch.eye(2).double())
    gm = exported(Function(function), *inputs)
    assert not PropagateBf16().run(gm, PassContext())


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lowest", torch.tensor(FLOAT32_MIN))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = x @ x.t()
        all_masked = torch.ones_like(scores, dtype=torch.bool)
        by_number = scores.masked_fill(all_masked, FLOAT32_MIN).softmax(-1)
        return by_number, scores.masked_fill(all_masked, self.lowest).softmax(-1)


def test_numbers_beyond_bfloat16_stay_finite(exported: Export) -> None:
    x = torch.randn(4, 4)
    gm = exported(Masked(), x)
    with pytest.raises(RuntimeError, match="overflow"), torch.autocast("cpu", dtype=BFLOAT16):
        gm(x)
    for result in propagate(gm)(x):
        assert torch.equal(result, torch.full((4, 4), 0.25))


class Cache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(2, 4))
        self.register_buffer("count", torch.zeros(()))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        self.keys[i] = y
        self.count.add_(y.mean())
        before = self.linear(self.keys)
        self.keys.mul_(2)
        return self.linear(self.keys) + before, self.count


def test_tensors_written_in_place_keep_their_dtype(exported: Export) -> None:
    x, i = torch.randn(1, 4), torch.tensor([1])
    model = Cache()
    weight, bias = model.linear.weight.detach().bfloat16(), model.linear.bias.detach().bfloat16()
    new = propagate(exported(model, x, i))
    y, count = new(x, i)

    row = F.linear(x.bfloat16(), weight, bias)
    keys = torch.cat([torch.zeros(1, 4), row.float()])
    assert torch.equal(new.keys, keys * 2)
    assert torch.equal(count, row.mean().float())
    before = F.linear(keys.bfloat16(), weight, bias)
    assert torch.equal(y, (F.linear((keys * 2).bfloat16(), weight, bias) + before).float())


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm, self.after = nn.Linear(4, 4), nn.LSTM(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.lstm(self.before(x))[0])


def test_recurrent_operators_are_left(exported: Export) -> None:
    x = torch.randn(3, 2, 4)
    gm, context = exported(Tagger(), x), PassContext()
    new = PassManager().run(gm, Pipeline((PropagateBf16(),)), context)
    (lstm,) = called(new, aten.lstm.input)
    assert {n.meta["val"].dtype for n in lstm.all_input_nodes} == {FLOAT32}
    assert {n.meta["val"].dtype for n in called(new, aten.linear.default)} == {BFLOAT16}
    assert [(d.node, d.status, d.reason) for d in context.ledger.decisions] == [
        ("lstm", "float", "stays-float32")
    ]
    assert new(x).dtype is FLOAT32


def test_assertions_of_dtypes_follow(export: Export) -> None:
    x = torch.randn(4, 4)
    gm = export(Function(lambda x: (x @ x).to(torch.float64)), x)
    assert called(gm, aten._assert_tensor_metadata.default)
    wanted = (x.bfloat16() @ x.bfloat16()).double()
    assert torch.equal(propagate(gm)(x), wanted)


def test_a_node_that_says_nothing_is_an_error(exported: Export) -> None:
    gm = exported(Function(product), X, Y)
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
    with pytest.raises(GraphInputError, match="which dtype"):
        PassManager().run(gm, Pipeline((PropagateBf16(),)))


def test_so_is_an_operator_whose_inputs_say_it(exported: Export) -> None:
    gm = exported(Function(product), X, Y)
    for node in gm.graph.find_nodes(op="call_function", target=aten.matmul.default):
        del node.meta["val"]
    with pytest.raises(GraphInputError, match="which dtype"):
        PassManager().run(gm, Pipeline((PropagateBf16(),)))


# Int8 mixed with bfloat16.


class Mixed(nn.Module):
    """Every kind of quantized operator: read by a quantize, through others, or by float operators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv3, self.fc1, self.fc2 = nn.Conv2d(8, 8, 3), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.conv1(x))
        z = F.relu(self.conv2(y) + y)
        pooled = F.softplus(F.relu(self.conv3(z))).mean((2, 3))
        return self.fc2(self.fc1(pooled).softmax(-1)), pooled


@pytest.fixture
def converted(export: Export) -> tuple[GraphModule, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = lowbit.prepare_pt2e(export(Mixed(), x), X86InductorQuantizer().set_global(config))
    prepared(x)
    return lowbit.convert_pt2e(prepared), x


def dtype_of(gm: GraphModule, name: str) -> torch.dtype:
    return next(n for n in gm.graph.nodes if n.name == name).meta["val"].dtype


def test_quantized_operators_give_bfloat16_where_no_quantize_follows(
    converted: tuple[GraphModule, Tensor],
) -> None:
    gm, x = converted
    new = propagate(gm)
    names = (
        "conv2d",
        "relu",
        "conv2d_1",
        "add",
        "conv2d_2",
        "relu_2",
        "softplus",
        "linear",
        "softmax",
        "linear_1",
    )
    dtypes = [dtype_of(new, name) for name in names]
    assert dtypes == [FLOAT32] * 4 + [BFLOAT16] * 6
    for node in new.graph.nodes:
        if node.op == "call_function" and tensors(node.meta.get("val")):
            assert [t.dtype for t in tensors(node.meta["val"])] == [
                t.dtype for t in tensors(run_recorded(new, (x,))[node.name][1])
            ]
    # Each reader of a dequantized tensor gets its dtype from the dequantize itself; outputs are cast.
    assert len(casts(new)) == 2
    for node in new.graph.nodes:
        if is_dequantize(node):
            (reader,) = node.users
            out_dtype = node.kwargs.get("out_dtype")
            assert (out_dtype is BFLOAT16) == (reader.meta["val"].dtype is BFLOAT16)
    assert "conv3.bias" not in new.state_dict()
    assert new.state_dict()["conv3.bias_bfloat16"].dtype is BFLOAT16
    assert new.state_dict()["conv1.bias"].dtype is FLOAT32


def test_what_stays_integer_is_not_rounded(converted: tuple[GraphModule, Tensor]) -> None:
    gm, x = converted
    wanted, found = run_recorded(gm, (x,)), run_recorded(propagate(gm), (x,))
    for name in ("conv2d", "relu", "conv2d_1", "add", "relu_1", "quantize_per_tensor_default_2"):
        assert torch.equal(wanted[name][1], found[name][1])


@settings(max_examples=25)
@given(
    rows=st.integers(1, 5),
    features=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_quantized_linear_is_within_bfloat16_of_float64(
    export: Export, rows: int, features: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, features)
    model = nn.Sequential(nn.Linear(features, 6))
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = lowbit.prepare_pt2e(export(model, x), X86InductorQuantizer().set_global(config))
    prepared(x)
    gm = lowbit.convert_pt2e(prepared)
    new = propagate(gm)
    exact = run_recorded(gm, (x,))
    (linear,) = called(gm, aten.linear.default)
    a, w, b = (exact[str(n)][1].double() for n in linear.args)
    # Both factors are rounded, then the bias and the result; sums are accumulated in float32.
    bound = 4 * UNIT_ROUNDOFF * (a.abs() @ w.abs().t() + b.abs())
    assert ((new(x).double() - F.linear(a, w, b)).abs() <= bound).all()
    assert_as_autocast(gm, new, x)


def test_dequantize_of_several_readers(export: Export) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        parameters = (0.1, 3, 0, 255, torch.uint8)
        z = DEQUANTIZE_PER_TENSOR(QUANTIZE_PER_TENSOR(x, *parameters), *parameters)
        return z @ y, z.t() @ y, z * 2

    x, y = torch.randn(4, 4), torch.randn(4, 4)
    gm = export(Function(function), x, y)
    new = propagate(gm)
    assert_as_autocast(gm, new, x, y)
    assert [n.kwargs.get("out_dtype") for n in called(new, DEQUANTIZE_PER_TENSOR)] == [None, BFLOAT16]


def test_dequantize_of_wide_integers_rounds_once(export: Export) -> None:
    def function(x: Tensor) -> Tensor:
        parameters = (1e-3, 7, -32768, 32767, torch.int16)
        return DEQUANTIZE_PER_TENSOR(QUANTIZE_PER_TENSOR(x, *parameters), *parameters) @ x

    x = torch.randn(8, 8)
    gm = export(Function(function), x)
    new = propagate(gm)
    assert_as_autocast(gm, new, x)
    assert [n.kwargs.get("out_dtype") for n in called(new, DEQUANTIZE_PER_TENSOR)] == [None]


def test_lowering_after_it_gives_right_numbers(converted: tuple[GraphModule, Tensor]) -> None:
    gm, x = converted
    backend = get_backend("x86_inductor")
    pipeline = backend.lower.before("emit-inductor", PropagateBf16())
    lowered = lowbit.lower_pt2e(gm, pipeline=pipeline)
    with torch.no_grad():
        wanted, found = gm(x), lowered(x)
    for a, b in zip(wanted, found, strict=True):
        assert b.dtype is a.dtype
        assert (a - b).abs().max() <= 8 * UNIT_ROUNDOFF * a.abs().max()
    kernels = [n for n in lowered.graph.nodes if "onednn" in str(n.target) and "prepack" not in str(n.target)]
    assert len(kernels) >= 2
