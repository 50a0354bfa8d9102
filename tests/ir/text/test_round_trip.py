"""The law of the text form: what was written is read back, at every stage, and is the same graph."""

from __future__ import annotations

from random import Random

import pytest
import torch
from lowbit.errors import NothingQuantizedWarning
from lowbit.ir.snapshot import take_snapshot
from lowbit.ir.text import parse, to_tensors, to_text
from torch.utils import _pytree as pytree

MOMENTS = ["FLOAT", "ANNOTATED", "RESOLVED", "OBSERVED", "HALF_CALIBRATED", "CONVERTED", "LOWERED"]
GRAPHS_A_MOMENT = {"FLOAT": 200, "LOWERED": 100}


@pytest.mark.filterwarnings("ignore::lowbit.errors.NothingQuantizedWarning")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_graph_read_from_its_text_is_the_graph(moment, make_graph, Moment, inputs_of) -> None:
    random = Random(moment)
    for i in range(GRAPHS_A_MOMENT.get(moment, 150)):
        gm = make_graph(random, Moment[moment], random.randint(0, 7))
        text = to_text(gm)
        read = parse(text, to_tensors(gm))
        assert to_text(read) == text
        assert take_snapshot(read).digest == take_snapshot(gm).digest
        assert state(read) == state(gm)
        if i % 5 == 0:
            with torch.no_grad():
                expected, got = gm(*inputs_of(gm)), read(*inputs_of(gm))
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
    assert sum(GRAPHS_A_MOMENT.get(moment, 150) for moment in MOMENTS) >= 1000
    assert issubclass(NothingQuantizedWarning, UserWarning)
