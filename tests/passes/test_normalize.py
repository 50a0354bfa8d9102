from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.ir.attributes import nested_graph_modules
from lowbit.passes.base import PassContext
from lowbit.passes.normalize import Normalize
from torch import nn
from torch.fx import Graph, GraphModule

aten = torch.ops.aten


class Call(nn.Module):
    """A module around a function of tensors; ``state`` is a buffer the function may use."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        self.register_buffer("state", torch.zeros(2, 4))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args):
        return self.function(self, *args)


def export(module, *args, strict=False) -> GraphModule:
    return torch.export.export(module.eval(), args, strict=strict).module()


def normalize(gm: GraphModule) -> tuple[GraphModule, PassContext]:
    """A normalized copy of ``gm``, runnable."""
    gm = copy.deepcopy(gm)
    context = PassContext()
    Normalize().run(gm, context)
    for module in (gm, *nested_graph_modules(gm)):
        module.recompile()
        module.graph.lint()
    return gm, context


def reasons(context: PassContext) -> list[str]:
    return [d.reason for d in context.ledger.decisions]


def targets(gm: GraphModule) -> list[object]:
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


def assert_same_run(gm: GraphModule, normalized: GraphModule, *args: torch.Tensor) -> None:
    """Equal outputs, equal inputs and equal state after the run: to the bit."""
    runs = []
    for module in (copy.deepcopy(gm), normalized):
        inputs = [a.clone() for a in args]
        outputs = torch.utils._pytree.tree_leaves(module(*inputs))
        # A buffer that is gone was neither read nor written.
        state = [b for name, b in module.named_buffers() if name in normalized.state_dict()]
        runs.append([*outputs, *inputs, *state])
    for before, after in zip(*runs, strict=True):
        assert before.dtype == after.dtype
        assert before.shape == after.shape
        assert torch.equal(before, after)


def check(function, *args, strict=False, **modules) -> tuple[GraphModule, PassContext]:
    gm = export(Call(function, **modules), *args, strict=strict)
    normalized, context = normalize(gm)
    assert_same_run(gm, normalized, *args)
    assert not Normalize().run(normalized, PassContext()), "normalize is not idempotent"
    return normalized, context


def test_arguments_are_complete_and_parents_unused_are_gone():
    gm, _ = check(
        lambda m, x: m.conv(x), torch.randn(2, 3, 8, 8), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(3)
    )
    (conv,) = gm.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    assert conv.args[3:] == ([1, 1], [0, 0], [1, 1], 1)
    assert set(gm.state_dict()) == {"conv.weight", "conv.bias"}


@pytest.mark.parametrize("strict", [False, True])
def test_residual_block_becomes_functional(strict):
    def block(m, x):
        z = m.conv(x)
        z += m.conv(x * 2)
        return F.relu_(z)

    gm, context = check(block, torch.randn(2, 3, 8, 8), strict=strict, conv=nn.Conv2d(3, 3, 3))
    assert targets(gm).count(aten.add.Tensor) == 1
    assert targets(gm).count(aten.relu.default) == 1
    assert not context.ledger.decisions


@pytest.mark.parametrize(
    "activation",
    [
        lambda y: F.relu(y, inplace=True),
        lambda y: F.relu6(y, inplace=True),
        lambda y: F.silu(y, inplace=True),
        lambda y: F.hardswish(y, inplace=True),
        lambda y: F.hardsigmoid(y, inplace=True),
        lambda y: F.hardtanh(y, inplace=True),
        lambda y: F.leaky_relu(y, 0.2, inplace=True),
        lambda y: F.elu(y, 0.5, inplace=True),
        lambda y: F.celu(y, inplace=True),
        lambda y: F.selu(y, inplace=True),
        lambda y: F.mish(y, inplace=True),
        lambda y: F.threshold(y, 0.1, 2.0, inplace=True),
        lambda y: y.sigmoid_(),
        lambda y: y.tanh_(),
        lambda y: y.mul_(3).div_(2).sub_(1).clamp_(-1, 1),
        lambda y: y.masked_fill_(y > 0, 5.0),
        lambda y: y.copy_(y.flip(0)),
        lambda y: y.zero_(),
        lambda y: y.squeeze_(0).unsqueeze_(0),
    ],
)
def test_every_in_place_activation_has_its_functional_form(activation):
    def forward(_, x):
        y = x + 1
        activation(y)
        return y

    gm, context = check(forward, torch.randn(1, 3, 4))
    assert not any(t._schema.is_mutable for t in targets(gm))
    assert not context.ledger.decisions


def test_later_reads_of_the_old_name_see_the_write():
    def forward(_, x):
        a = x * 2
        b = a.relu_()
        return a + 1, b

    gm, _ = check(forward, torch.randn(2, 4))
    relu = gm.graph.find_nodes(op="call_function", target=aten.relu.default)[0]
    add = gm.graph.find_nodes(op="call_function", target=aten.add.Tensor)[0]
    assert add.args[0] is relu


def test_a_view_read_before_the_write_does_not_hinder():
    def forward(_, x):
        a = x * 2
        before = a.view(-1).sum()
        return a.relu_(), before

    gm, _ = check(forward, torch.randn(2, 4))
    assert aten.relu.default in targets(gm)


def write_through_a_view(_, x):
    a = x * 2
    a[:, 0].relu_()
    return a


def write_through_a_view_that_is_read_longer(_, x):
    a = x * 2
    column = a[:, 0]
    column.relu_()
    return a + 1, column * 2


def write_under_a_view(_, x):
    a = x * 2
    rows = a[0]
    a.relu_()
    return a, rows


def write_under_an_unsaid_alias(_, x):
    a = x * 2
    same = torch.einsum("ij->ji", a)
    a.relu_()
    return a, same


def write_to_a_part_of_a_list(_, x):
    a = x * 2
    left, right = a.chunk(2, 1)
    left.relu_()
    return a, left, right


def write_before_as_strided(_, x):
    a = x * 2
    a.relu_()
    return a.as_strided((2, 2), (1, 1), 1)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        write_through_a_view,
        write_through_a_view_that_is_read_longer,
        write_under_a_view,
        write_under_an_unsaid_alias,
        write_to_a_part_of_a_list,
        write_before_as_strided,
    ],
)
def test_a_write_that_others_see_stays(function, strict):
    gm, context = check(function, torch.randn(2, 4), strict=strict)
    assert aten.relu_.default in targets(gm)
    assert reasons(context) == ["in-place-alias"]


def test_reads_after_a_shape_change_that_stays_read_its_result():
    def forward(_, x):
        a = x * 2
        a.relu_()
        flat = a.view(-1)
        a.squeeze_(0)
        return a + 1, flat

    gm, context = check(forward, torch.randn(1, 4))
    assert reasons(context) == ["in-place-alias"]
    (add,) = gm.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    assert add.args[0].target is aten.squeeze_.dim


def write_to_input(_, x):
    return x.relu_() + 1


def write_to_input_through_a_view(_, x):
    return x.view(-1).relu_() + 1


def write_to_buffer(m, x):
    m.state.copy_(x)
    return m.state + 1


def write_to_part_of_buffer(m, x):
    m.state[0].add_(x[0])
    return m.state + 1


@pytest.mark.parametrize(
    "function", [write_to_input, write_to_input_through_a_view, write_to_buffer, write_to_part_of_buffer]
)
def test_writes_to_inputs_and_buffers_stay(function):
    gm, context = check(function, torch.randn(2, 4))
    assert any(t._schema.is_mutable for t in targets(gm))
    assert set(reasons(context)) == {"writes-external"}


def test_an_in_place_dtype_is_kept():
    def forward(_, x):
        half = x.half()
        half.add_(x)
        flags = x + 1
        flags.lt_(0)
        return half, flags

    _, context = check(forward, torch.randn(2, 4))
    assert reasons(context) == ["in-place-dtype", "in-place-dtype"]


def test_random_fills_and_foreign_in_place_operators_stay():
    def forward(_, x):
        return torch.empty_like(x).uniform_()

    gm = export(Call(forward), torch.randn(2, 4))
    normalized, context = normalize(gm)
    assert aten.uniform_.default in targets(normalized)
    assert reasons(context) == ["in-place-only"]
    outputs = []
    for module in (gm, normalized):
        torch.manual_seed(0)
        outputs.append(module(torch.zeros(2, 4)))
    assert torch.equal(*outputs)


def test_training_dropout_draws_the_same_numbers():
    gm = export(Call(lambda _, x: F.dropout(x * 2, 0.5, True, inplace=True)), torch.randn(8, 8))
    normalized, _ = normalize(gm)
    assert aten.dropout.default in targets(normalized)
    x = torch.randn(8, 8)
    torch.manual_seed(3)
    expected = gm(x)
    torch.manual_seed(3)
    assert torch.equal(normalized(x), expected)


@pytest.mark.parametrize("strict", [False, True])
def test_identities_are_gone(strict):
    def forward(m, x):
        y = F.dropout(x + 1, 0.5, m.training)
        y = F.dropout2d(y, 0.5, m.training).detach()
        y = F.alpha_dropout(y, 0.5, m.training, inplace=True)
        return y * torch.tensor(2.0)

    gm, _ = check(forward, torch.randn(2, 3, 4, 4), strict=strict)
    assert targets(gm) == [aten.add.Tensor, aten.lift_fresh_copy.default, aten.mul.Tensor]


def test_a_detached_value_keeps_its_shape_when_its_source_changes_in_place():
    def forward(_, x):
        y = x + 1
        d = y.detach()
        y.squeeze_(0)
        return y, d

    check(forward, torch.randn(1, 4))


@pytest.mark.parametrize(
    ("conv", "x"),
    [
        (nn.Conv1d(3, 4, 3, padding="same", dilation=2), torch.randn(2, 3, 9)),
        (nn.Conv2d(3, 4, (3, 5), padding="same", dilation=(1, 3)), torch.randn(2, 3, 9, 15)),
        (nn.Conv2d(3, 4, 4, padding="same", dilation=2), torch.randn(2, 3, 9, 9)),
        (nn.Conv2d(4, 4, 4, stride=2, padding="valid", groups=2), torch.randn(2, 4, 9, 9)),
        (nn.Conv3d(3, 4, 3, padding="same"), torch.randn(3, 5, 5, 5)),
    ],
)
def test_padding_modes_become_numbers(conv, x):
    gm, context = check(lambda m, x: m.conv(x), x, conv=conv)
    assert [t._overloadname for t in targets(gm)] == ["default"]
    assert not context.ledger.decisions


def test_one_dilation_stands_for_all_dimensions():
    def forward(m, x):
        return aten.conv2d.padding(x, m.conv.weight, None, [1], "same", [2])

    gm, _ = check(forward, torch.randn(2, 3, 9, 9), conv=nn.Conv2d(3, 4, (3, 5)))
    (conv,) = gm.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    assert conv.args[4] == [2, 4]


def test_asymmetric_padding_stays():
    x = torch.randn(2, 3, 9, 9)
    gm, context = check(lambda m, x: m.conv(x), x, conv=nn.Conv2d(3, 4, 4, padding="same"))
    assert targets(gm) == [aten.conv2d.padding]
    assert reasons(context) == ["asymmetric-same-padding"]


def test_dead_code_goes_and_effects_stay():
    def forward(m, x):
        torch.matmul(x, x.t())
        m.state.add_(1)
        torch._check(x.sum().item() > -1e9)
        return x * 2

    gm, _ = check(forward, torch.randn(2, 4))
    assert aten.matmul.default not in targets(gm)
    assert aten.add_.Tensor in targets(gm)
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["_guards_fn"]


def test_unread_training_batch_norm_still_updates_its_statistics():
    gm = torch.export.export(nn.BatchNorm1d(4).train(), (torch.randn(3, 4),)).module()
    (norm,) = gm.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    norm.replace_all_uses_with(norm.args[0])
    gm.recompile()
    normalized, _ = normalize(gm)
    x = torch.randn(3, 4)
    gm(x)
    normalized(x)
    assert torch.equal(gm.get_buffer("running_mean"), normalized.get_buffer("running_mean"))
    assert normalized.get_buffer("running_mean").any()


class NoGradForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    @torch.no_grad()
    def forward(self, x):
        return F.relu_(self.conv(x)) * 2


class NoGradBlocks(NoGradForward):
    def forward(self, x):
        with torch.no_grad():
            y = self.conv(x)
            z = y + torch.ones(6, 6)
            with torch.enable_grad():
                z = z * 2
        return F.relu(y) + z


class NoGradInside(NoGradForward):
    def forward(self, x):
        def once(u):
            with torch.no_grad():
                return self.conv(u) + 1

        return torch.cond(x.sum() > 0, once, lambda u: self.conv(u).relu_(), (x,))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("model", [NoGradForward, NoGradBlocks, NoGradInside])
def test_no_grad_regions_are_inlined_also_in_branches(model, strict):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    gm = export(model(), x, strict=strict)
    normalized, _ = normalize(gm)
    assert_same_run(gm, normalized, x)
    assert_same_run(gm, normalized, -x)
    every = [t for g in (normalized, *nested_graph_modules(normalized)) for t in targets(g)]
    assert torch.ops.higher_order.wrap_with_set_grad_enabled not in every
    assert aten.relu_.default not in every
    assert aten.conv2d.default in every
    assert not any("submod" in name for name, _ in normalized.named_modules())


def test_nested_regions_are_inlined_with_what_they_own():
    def region(target, *attributes):
        graph = Graph()
        u = graph.placeholder("u")
        graph.output((graph.call_function(target, (*map(graph.get_attr, attributes), u)),))
        return graph

    inner = GraphModule({"offset": torch.full((2, 4), 2.0)}, region(aten.add.Tensor, "offset"))
    outer_graph = Graph()
    u = outer_graph.placeholder("u")
    wrap = torch.ops.higher_order.wrap_with_set_grad_enabled
    call = outer_graph.call_function(wrap, (True, outer_graph.get_attr("inner"), u))
    offset = outer_graph.get_attr("offset")
    item = outer_graph.call_function(operator.getitem, (call, 0))
    outer_graph.output((outer_graph.call_function(aten.mul.Tensor, (item, offset)),))
    outer = GraphModule({"inner": inner, "offset": torch.full((2, 4), 3.0)}, outer_graph)
    graph = Graph()
    x = graph.placeholder("x")
    call = graph.call_function(wrap, (False, graph.get_attr("outer"), x))
    graph.output(graph.call_function(operator.getitem, (call, 0)))

    gm, _ = normalize(GraphModule({"outer": outer}, graph))
    assert targets(gm) == [aten.add.Tensor, aten.mul.Tensor]
    assert torch.equal(gm(torch.ones(2, 4)), torch.full((2, 4), 9.0))
    assert set(gm.state_dict()) == {"offset", "offset_1"}


def test_a_branch_does_not_come_to_return_its_input():
    """torch.cond and torch.compile refuse branches whose result is their input."""

    def forward(_, x):
        return torch.cond(x.sum() > 0, lambda u: F.dropout(u, 0.5, False), lambda u: u + 1, (x,))

    gm, _ = check(forward, torch.randn(2, 4))
    for body in nested_graph_modules(gm):
        (result,) = body.graph.output_node().args[0]
        assert result.op == "call_function"


def test_autocast_regions_stay_and_are_reported():
    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.conv(x)

    gm = export(Call(forward, conv=nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 6, 6))
    normalized, context = normalize(gm)
    assert_same_run(gm, normalized, torch.randn(2, 3, 6, 6))
    assert reasons(context) == ["autocast-region"]


VIEWS = {
    "reshape": lambda t: t.reshape(-1),
    "transpose": lambda t: t.transpose(0, -1),
    "half": lambda t: t[..., : (t.shape[-1] + 1) // 2],
    "step": lambda t: t[::2],
    "unsqueeze": lambda t: t.unsqueeze(0) if t.ndim < 4 else t.flatten(),
    "detach": lambda t: t.detach(),
    "dropout": lambda t: F.dropout(t, 0.5, False),
    "type_as": lambda t: t.type_as(t),
    "contiguous": lambda t: t.contiguous(),
    "chunk": lambda t: t.chunk(2, 0)[-1],
}
FRESH = {"plus": lambda t: t + 1, "clone": lambda t: t.clone(), "relu": torch.relu}
WRITES = {
    "relu_": lambda t: t.relu_(),
    "add_": lambda t: t.add_(1),
    "neg_": lambda t: t.neg_(),
    "add_self": lambda t: t.add_(t),
    "clamp_": lambda t: t.clamp_(-20, 20),
    "hardtanh_": lambda t: F.hardtanh_(t, -16, 16),
    "fill_": lambda t: t.fill_(7),
    "setitem": lambda t: t.__setitem__(0, 3),
    "squeeze_": lambda t: t.squeeze_(0) if t.ndim > 1 else t,
    "unsqueeze_": lambda t: t.unsqueeze_(0) if t.ndim < 4 else t,
}
SHAPE_WRITES = {"squeeze_", "unsqueeze_"}
UNARY = VIEWS | FRESH | WRITES
BINARY = {"add_sum": lambda a, b: a.add_(b.sum()), "plus_max": lambda a, b: a + b.max()}

instruction = st.one_of(
    st.tuples(st.sampled_from(sorted(UNARY)), st.integers(0, 30)),
    st.tuples(st.sampled_from(sorted(WRITES)), st.integers(0, 30)),
    st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 30), st.integers(0, 30)),
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    program=st.lists(instruction, min_size=2, max_size=9),
    returned=st.lists(st.integers(0, 30), min_size=1, max_size=3),
)
def test_any_program_of_views_and_writes_means_the_same(program, returned):
    def forward(m, x):
        values = [x, m.state, x * 2, x + 1]
        external = values[:2]
        for name, *indices in program:
            operands = [values[-1 - i % len(values)] for i in indices]
            # torch.export refuses a model that changes the shape of its input in place.
            if name in SHAPE_WRITES and any(operands[0] is e for e in external):
                continue
            result = UNARY[name](*operands) if name in UNARY else BINARY[name](*operands)
            if result is not None:
                values.append(result)
        # Copies: what a caller does with aliased outputs afterwards is no part of the meaning.
        return [values[-1 - i % len(values)].clone() for i in returned]

    x = torch.arange(8.0).reshape(2, 4) - 4
    gm = export(Call(forward), x)
    normalized, _ = normalize(gm)
    assert_same_run(gm, normalized, x)
