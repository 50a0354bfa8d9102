"""Calibration data by name: the forms that are read, how samples become batches, and what does not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lowbit.errors import CalibrationDataError, OptionError, UnsupportedError
from lowbit.tools.cli.quantizing.batches import batches_for
from lowbit.tools.cli.quantizing.calibration_data import find_data, first_batch
from lowbit.tools.cli.quantizing.model_inputs import ModelInputs, inputs_of
from torch import Tensor, nn


class Two(nn.Module):
    """Takes ``input``, whose name Python has too, and ``ids``."""

    def forward(self, input: Tensor, ids: Tensor) -> Tensor:
        return input * ids


@pytest.fixture(scope="module")
def two() -> ModelInputs:
    return inputs_of(torch.export.export(Two(), (torch.zeros(2, 3), torch.zeros(2, 1).long())).module())


@pytest.fixture(scope="module")
def one() -> ModelInputs:
    return inputs_of(torch.export.export(nn.Linear(3, 3), (torch.zeros(2, 3),)).module())


@pytest.fixture(scope="module")
def any_number() -> ModelInputs:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(nn.Linear(3, 3), (torch.zeros(2, 3),), dynamic_shapes=dynamic)
    return inputs_of(program.module())


def taken(inputs: ModelInputs, name: str, **limits: Any) -> list[Any]:
    fed = batches_for(inputs, find_data(name)(), **{"batch_size": None, "steps": None, **limits})
    found = list(fed.batches)
    assert fed.count in (None, len(found))
    return found


def notes_on(inputs: ModelInputs, name: str) -> tuple[str, ...]:
    return batches_for(inputs, find_data(name)(), batch_size=None, steps=None).notes


def test_arrays_by_name_are_cut_into_batches_of_the_models_size(project: Path, two: ModelInputs) -> None:
    values = np.arange(15.0).reshape(5, 3)
    np.savez("data.npz", ids=np.arange(5, dtype=np.int32)[:, None], input=values, label=np.arange(5))
    first, second = taken(two, "data.npz")
    assert torch.equal(second[0], torch.tensor([[6.0, 7, 8], [9, 10, 11]])), "float64 was made float32"
    assert torch.equal(first[1], torch.tensor([[0], [1]])), "int32 was made int64"
    assert notes_on(two, "data.npz") == (
        "data.npz: 'label' was left out, as the model has no input of that name (it has input, ids)",
        "data.npz: 'input' is float64, and was converted to float32 for the model",
        "1 of 5 samples were left out: the model was exported for 2 at a time",
    )
    assert len(taken(two, "data.npz", steps=1)) == 1


def test_arrays_without_names_are_the_inputs_in_order(project: Path, two: ModelInputs) -> None:
    np.savez("data.npz", np.ones((2, 3), np.float32), np.zeros((2, 1), np.int64))
    ((input, ids),) = taken(two, "data.npz")
    assert input.all()
    assert not ids.any()
    found = first_batch(find_data("data.npz")(), None)
    assert [tensor.shape for tensor in found.batch] == [(1, 3), (1, 1)]


def test_one_array_for_one_input_needs_no_name(project: Path, one: ModelInputs) -> None:
    np.savez("data.npz", images=np.zeros((4, 3)))
    torch.save(torch.zeros(4, 3), "data.pt")
    assert [len(batch[0]) for batch in taken(one, "data.npz")] == [2, 2]
    assert [len(batch[0]) for batch in taken(one, "data.pt")] == [2, 2]
    assert notes_on(one, "data.npz")[0] == "data.npz: 'images' was taken for 'input', the model's one input"
    assert not notes_on(one, "data.pt"), "it has no name, so none was changed"


def test_what_is_no_input_is_left_out_and_said(project: Path, two: ModelInputs) -> None:
    x, ids = np.zeros((4, 3), np.float32), np.zeros((4, 1), int)
    np.savez("data.npz", input=x, ids=ids, names=np.zeros(10), seed=np.array(1))
    assert len(taken(two, "data.npz")) == 2, "other arrays may have another length"
    (note,) = notes_on(two, "data.npz")
    assert note.startswith("data.npz: 'names', 'seed' were left out")
    np.savez("data.npz", x, ids, np.zeros(4))
    (note,) = notes_on(two, "data.npz")
    assert note.startswith("data.npz: 'arr_2' was left out")
    torch.save([{"input": torch.zeros(2, 3), "ids": torch.zeros(2, 1).long(), "label": 1}], "data.pt")
    (note,) = notes_on(two, "data.pt")
    assert note.startswith("data.pt: 'label' was left out")


def test_conversions_that_lose_nothing_are_no_news(project: Path, two: ModelInputs) -> None:
    np.savez("data.npz", input=np.zeros((2, 3), np.float16), ids=np.zeros((2, 1), np.int8))
    ((x, ids),) = taken(two, "data.npz")
    assert (x.dtype, ids.dtype) == (torch.float32, torch.int64)
    assert not notes_on(two, "data.npz")


def test_any_number_of_samples(project: Path, any_number: ModelInputs) -> None:
    torch.save({"input": torch.zeros(70, 3)}, "data.pt")
    assert [len(batch[0]) for batch in taken(any_number, "data.pt")] == [32, 32, 6]
    assert [len(batch[0]) for batch in taken(any_number, "data.pt", batch_size=50)] == [50, 20]


def test_batches_in_a_list_and_of_a_function(project: Path, one: ModelInputs) -> None:
    torch.save([torch.zeros(2, 3), (torch.ones(2, 3), "label"), {"input": torch.zeros(2, 3)}], "data.pt")
    assert [batch[0].sum() for batch in taken(one, "data.pt")] == [0, 6, 0]
    project.joinpath("data.py").write_text(
        "import torch\nLIST = [torch.zeros(2, 3)] * 3\n"
        "def endless():\n    while True:\n        yield LIST[0]\n",
        encoding="utf-8",
    )
    sys.path.insert(0, str(project))
    try:
        assert len(taken(one, "data:LIST")) == 3
        assert len(taken(one, "data:endless", steps=5)) == 5
        data = find_data("data:endless")()
        assert first_batch(data, None).batch is first_batch(data, None).batch, "looking does not take"
    finally:
        sys.path.remove(str(project))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"inputs": np.zeros((2, 3)), "ids": np.zeros((2, 1), int)},
            "rename 'inputs' in the data to 'input'",
        ),
        ({"x": np.zeros((2, 3)), "ids": np.zeros((2, 1), int)}, "rename 'x' in the data to 'input'"),
        (
            {"INPUT": np.zeros(2), "ids": np.zeros(2), "y": np.zeros(2)},
            "rename 'INPUT' in the data to 'input'",
        ),
        ({"x": np.zeros(2), "y": np.zeros(2), "ids": np.zeros(2)}, "which of 'x', 'y' is for it, and rename"),
        ({"ids": np.zeros((2, 1), int)}, "add it to the data, under the name 'input'"),
        (
            {"arr_0": np.zeros((2, 3))},
            "takes an input 'ids', and the data have none of that name, but 'arr_0'",
        ),
        ({"input": np.zeros((2, 4)), "ids": np.zeros((2, 1), int)}, "at: 'input' of data.npz"),
        ({"input": np.zeros((2, 4)), "ids": np.zeros((2, 1), int)}, "(3 along axis 1, not 4)"),
        ({"input": np.zeros((2, 4)), "ids": np.zeros((2, 1), int)}, "'input' is float32 [2, 4]"),
        ({"input": np.zeros((2, 4)), "ids": np.zeros((2, 1), int)}, "takes float32 [any, 3]"),
        ({"input": np.zeros(2), "ids": np.zeros((2, 1), int)}, "stack samples along a first axis"),
        ({"input": np.zeros((2, 3), np.uint8), "ids": np.zeros((2, 1), int)}, "to float32"),
        ({"input": np.zeros((2, 3)), "ids": np.zeros((2, 1))}, "'ids' is float64 [2, 1]"),
        ({"input": np.zeros((2, 3)), "ids": np.zeros((4, 1), int)}, "'input' has 2, 'ids' has 4"),
        ({"input": np.zeros((1, 3)), "ids": np.zeros((1, 1), int)}, "the data have 1 of the 2 samples"),
        ({"input": np.zeros((0, 3)), "ids": np.zeros((0, 1), int)}, "no samples in 'input', 'ids'"),
        ({"input": np.array(["a", "b"]), "ids": np.zeros((2, 1), int)}, "cannot be read"),
        ({"input": np.array([None, {}]), "ids": np.zeros((2, 1), int)}, "cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(
    project: Path, two: ModelInputs, arrays: dict[str, Any], said: str
) -> None:
    np.savez("data.npz", **arrays)
    with pytest.raises(CalibrationDataError) as caught:
        taken(two, "data.npz")
    assert said in str(caught.value)
    assert "data.npz" in str(caught.value)


def test_batches_that_do_not_fit(two: ModelInputs) -> None:
    for batch, said in {
        "text": "the batch is a str",
        (torch.zeros(2, 3),): "has 1 of the 2 inputs that the model takes: input, ids",
        (torch.zeros(2, 3), 1): "'ids' is an int, and the model takes a tensor of int64 [2, 1]",
        (torch.zeros(9, 3), torch.zeros(2, 1).long()): "2 samples at a time",
    }.items():
        with pytest.raises(CalibrationDataError) as caught:
            two.check(batch, "batch 7")
        assert said in str(caught.value)
        assert "at: batch 7" in str(caught.value)


def test_samples_of_which_one_was_saved_by_itself(project: Path, one: ModelInputs) -> None:
    np.savez("data.npz", input=np.zeros(one.tensors["input"].shape[1:], np.float32))
    with pytest.raises(CalibrationDataError) as caught:
        batches_for(one, find_data("data.npz")(), batch_size=None, steps=None)
    assert caught.value.hint == "the axis of samples is missing: stack samples along a first axis"
    assert caught.value.where == ("'input' of data.npz",)


def test_inputs_of_other_forms() -> None:
    class Forms(nn.Module):
        def forward(self, x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
            return x + pair[0] * pair[1]

    t = torch.zeros(2)
    nested = inputs_of(torch.export.export(Forms(), (t, (t, t))).module())
    batch = (t, (t, t))
    assert nested.check(batch, "") is batch, "left to calibrate"
    with pytest.raises(CalibrationDataError, match="no axis of samples in common"):
        _ = nested.batch_size
    mixed = inputs_of(torch.export.export(Two(), (t,), {"ids": t}).module())
    with pytest.raises(UnsupportedError, match="by keyword, ids"):
        mixed.check((t, t), "")


def test_names_of_data_that_are_none(project: Path, one: ModelInputs) -> None:
    for name, said in {"data.csv": "neither", "data.npz": "no file", "nobody:nothing": "no module"}.items():
        with pytest.raises(OptionError, match=said):
            find_data(name)
    torch.save((1, 2), "data.pt")
    with pytest.raises(CalibrationDataError, match="holds a tuple"):
        find_data("data.pt")()
    torch.save(nn.Linear(2, 2), "data.pt")
    with pytest.raises(CalibrationDataError, match="other things than tensors"):
        find_data("data.pt")()
    for name in ("data.pt", "data.npz"):
        for content, said in {b"": "an empty file", b"junk": "a text file", b"PK\0\0": "damaged"}.items():
            project.joinpath(name).write_bytes(content)
            with pytest.raises(CalibrationDataError, match=said):
                find_data(name)()
        project.joinpath(name).unlink()
    project.joinpath("data.npz").mkdir()
    with pytest.raises(OptionError, match="is a folder"):
        find_data("data.npz")
    torch.save([torch.zeros(2, 3)], "data.pt", _use_new_zipfile_serialization=False)
    assert len(find_data("data.pt")()) == 1, "as torch.save wrote it once"
    torch.save([torch.zeros(2, 3)], "data.pt")
    with pytest.raises(OptionError, match="has batches already"):
        taken(one, "data.pt", batch_size=2)
    torch.save(torch.zeros(2, 3), "data.pt")
    with pytest.raises(OptionError, match="exported for 2 samples at a time"):
        taken(one, "data.pt", batch_size=3)
