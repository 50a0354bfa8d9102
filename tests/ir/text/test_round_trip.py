"""The law of the text form: what was written is read back, at every stage, and is the same graph."""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from lowbit.ir.snapshot import take_snapshot
from lowbit.ir.text import parse, to_tensors, to_text
from torch.utils import _pytree as pytree

# How many random graphs go through each flow, and at how many moments each is written and read.
GRAPHS = {"calibration": 130, "training": 50, "lowering": 30}
MOMENTS = {"calibration": 7, "training": 2, "lowering": 1}


@pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")
@pytest.mark.parametrize("flow", GRAPHS)
def test_a_graph_read_from_its_text_is_the_graph(flow, flows, inputs_of) -> None:
    random = Random(flow)
    for i in range(GRAPHS[flow]):
        moments = 0
        for moment, gm in flows[flow](random, random.randint(0, 7)):
            text = to_text(gm)
            read = parse(text, to_tensors(gm))
            assert to_text(read) == text, moment
            assert take_snapshot(read).digest == take_snapshot(gm).digest, moment
            assert state(read) == state(gm), moment
            if i % 5 == 0:
                assert_computes_the_same(read, copy.deepcopy(gm), inputs_of(gm))
            moments += 1
        assert moments == MOMENTS[flow]


def assert_computes_the_same(read, gm, inputs) -> None:
    with torch.no_grad():
        expected, got = gm(*inputs), read(*inputs)
    assert pytree.tree_structure(expected) == pytree.tree_structure(got)
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(got), strict=True):
        assert a is b is None or (torch.equal(a, b) and a.stride() == b.stride())


def state(gm) -> object:
    """Names, values and memory of the tensors, and what is one with what."""
    tensors = dict(gm.named_parameters(remove_duplicate=False)) | dict(
        gm.named_buffers(remove_duplicate=False)
    )
    first = {}
    return [
        (name, t.dtype, t.shape, t.stride(), t.requires_grad, t.tolist(), first.setdefault(id(t), name))
        for name, t in tensors.items()
    ], list(gm.state_dict())


def test_there_are_a_thousand_graphs() -> None:
    assert sum(GRAPHS[flow] * MOMENTS[flow] for flow in GRAPHS) >= 1000
