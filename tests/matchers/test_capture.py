"""Capture of torch functions as ATen patterns."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from lowbit.errors import CaptureError
from lowbit.matchers.capture import canonical_pattern, capture

aten = torch.ops.aten
IMAGE = (torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 3, 3), torch.zeros(4))


def conv_relu(x, weight, bias):
    return F.relu(F.conv2d(x, weight, bias))


def targets(gm):
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


def no_export(*args, **kwargs):
    raise AssertionError("torch.export.export was called")


def test_a_function_becomes_aten_with_complete_arguments():
    gm = capture(conv_relu, IMAGE)
    assert targets(gm) == [aten.conv2d.default, aten.relu.default]
    x, weight, bias = gm.graph.find_nodes(op="placeholder")
    conv = gm.graph.find_nodes(op="call_function", target=aten.conv2d.default)[0]
    assert list(conv.args) == [x, weight, bias, [1, 1], [0, 0], [1, 1], 1]


def test_the_input_guard_of_export_is_gone_and_the_module_still_runs():
    gm = capture(conv_relu, IMAGE)
    assert not gm.graph.find_nodes(op="call_module")
    inputs = (torch.ones(2, 3, 5, 5), torch.ones(4, 3, 3, 3), -torch.arange(4.0) * 9)
    assert torch.equal(gm(*inputs), conv_relu(*inputs))


def test_capture_exports_once_for_one_form_of_inputs(monkeypatch):
    def double(x):
        return x + x

    first = capture(double, (torch.zeros(2, 3),))
    monkeypatch.setattr(torch.export, "export", no_export)
    assert capture(double, (torch.ones(2, 3),)) is first
    with pytest.raises(CaptureError, match="export was called"):
        capture(double, (torch.zeros(2, 3, dtype=torch.float64),))
    with pytest.raises(CaptureError, match="export was called"):
        capture(double, (torch.zeros(3, 3),))


def test_literals_among_the_inputs_tell_captures_apart():
    def pad(x, width):
        return F.pad(x, (width, width))

    one, two = (capture(pad, (torch.zeros(2, 3), width)) for width in (1, 2))
    assert one is not two
    assert [
        gm.graph.find_nodes(op="call_function", target=aten.pad.default)[0].args[1] for gm in (one, two)
    ] == [
        [1, 1],
        [2, 2],
    ]


def test_threads_share_one_capture():
    def gelu(x):
        return F.gelu(x)

    captured = []
    start = threading.Barrier(4)

    def work():
        start.wait()
        captured.append(capture(gelu, (torch.zeros(3),)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(captured) == 4
    assert all(gm is captured[0] for gm in captured)


def test_the_cache_does_not_keep_functions_alive():
    def sigmoid(x):
        return torch.sigmoid(x)

    capture(sigmoid, (torch.zeros(3),))
    function = weakref.ref(sigmoid)
    del sigmoid
    gc.collect()
    assert function() is None


def test_one_tensor_given_twice_stays_two_inputs():
    x = torch.zeros(3)
    gm = capture(torch.add, (x, x))
    a, b = gm.graph.find_nodes(op="placeholder")
    add = gm.graph.find_nodes(op="call_function", target=aten.add.Tensor)[0]
    assert add.args == (a, b)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_capture_does_not_depend_on_the_modes_of_the_caller(mode):
    def linear(x, weight):
        return F.linear(x, weight)

    with mode():
        gm = capture(linear, (torch.zeros(2, 3), torch.zeros(4, 3)))
    assert targets(gm) == [aten.linear.default]


def test_in_place_operators_become_functional():
    def block(x, weight, y):
        out = F.relu(F.conv2d(x, weight), inplace=True)
        out += y
        return out.mul_(y)

    gm = capture(block, (*IMAGE[:2], torch.zeros(1, 4, 6, 6)))
    assert targets(gm) == [aten.conv2d.default, aten.relu.default, aten.add.Tensor, aten.mul.Tensor]


def test_an_in_place_write_into_an_input_of_the_pattern_becomes_functional():
    def accumulate(x, y):
        x += y
        return x

    assert targets(capture(accumulate, (torch.zeros(3), torch.zeros(3)))) == [aten.add.Tensor]


def test_what_reads_a_written_tensor_later_reads_the_new_value():
    def block(x):
        y = F.relu(x)
        twice = y + y
        y.neg_()
        return twice * y

    gm = capture(block, (torch.zeros(3),))
    x = torch.tensor([-1.0, 2.0, 3.0])
    assert torch.equal(gm(x), torch.tensor([0.0, -8.0, -18.0]))


def test_views_of_a_written_tensor_are_fine_after_the_write_and_refused_before():
    def after(x):
        return F.relu(x.clone(), inplace=True).flatten()

    def before(x):
        y = x.clone()
        flat = y.flatten()
        y.neg_()
        return flat

    assert targets(capture(after, (torch.zeros(2, 3),))) == [
        aten.clone.default,
        aten.relu.default,
        aten.flatten.using_ints,
    ]
    with pytest.raises(CaptureError, match=r"(?s)a view.*neg_"):
        capture(before, (torch.zeros(2, 3),))


def test_canonical_pattern_leaves_the_module_handed_in_alone():
    class Block(torch.nn.Module):
        def forward(self, x):
            return (x * x).relu_()

    gm = torch.export.export(Block(), (torch.zeros(3),)).module()
    before = str(gm.graph)
    canonical_pattern(gm)
    assert str(gm.graph) == before
    assert "relu_" in before


def test_a_function_that_does_not_export_says_which_and_why():
    def mismatch(x, y):
        return x @ y

    with pytest.raises(CaptureError, match=r"(?s)mismatch does not export.*do: pass example inputs"):
        capture(mismatch, (torch.zeros(2, 3), torch.zeros(2, 3)))


def test_a_module_is_refused():
    with pytest.raises(CaptureError, match="ReLU is a module"):
        capture(torch.nn.ReLU(), (torch.zeros(3),))
