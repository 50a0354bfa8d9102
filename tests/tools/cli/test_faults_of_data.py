"""What ``lowbit quantize`` says of data that it cannot calibrate with: which, what of it, what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

WORDS = ("--backend", "x86_inductor", "--preset", "static-7-bit")
TOKENS = """
import torch


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.table(ids))


def build():
    return Tokens().eval(), torch.zeros(2, 3, dtype=torch.long)


def without_inputs():
    return Tokens().eval()


def wrong():
    return [torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), -1)]


EMPTY = []
NUMBER = [3]
FLOATS = [torch.zeros(2, 3).double()]
HEAD = torch.nn.Linear(3, 2)
"""


@pytest.fixture
def said(project: Path, lowbit: Any) -> Any:
    """The lines of the error that a model gets with data."""
    project.joinpath("tokens.py").write_text(TOKENS, encoding="utf-8")

    def run(model: str, data: str, code: int = 3) -> list[str]:
        lines = lowbit("quantize", model, "--calibration", data, *WORDS, code=code).stderr.splitlines()
        return lines[next(i for i, line in enumerate(lines) if line.startswith("error: ")) :]

    return run


def test_values_that_are_no_numbers(said: Any) -> None:
    images = np.zeros((9, 3, 8, 8), np.float32)
    images[6, 2, 3, 4] = np.nan
    np.savez("data.npz", image=images, label=np.zeros(9))
    lines = [
        "error: the input 'image' has 1 NaN among the 768 values of a tensor of shape [4, 3, 8, 8], the "
        "first at [2, 2, 3, 4]",
        "  at: 'image' of data.npz, sample 6 (batch 1)",
        "  do: leave the sample out of the calibration data, or mend what makes it",
    ]
    assert said("net:with_inputs", "data.npz") == lines
    torch.save(torch.from_numpy(images), "data.pt")
    assert said("net:with_inputs", "data.pt") == [lines[0], "  at: data.pt, sample 6 (batch 1)", lines[2]]
    torch.save(list(torch.from_numpy(images[:8]).split(4)), "data.pt")
    assert said("net:with_inputs", "data.pt") == [lines[0], "  at: data.pt, batch 1", lines[2]]


def test_ids_that_are_out_of_range(said: Any) -> None:
    ids = np.zeros((8, 3), np.int64)
    ids[5, 2] = 10
    np.savez("data.npz", ids=ids)
    assert said("tokens:build", "data.npz") == [
        "error: the input 'ids' has 10 at [1, 2], and the embedding that looks it up has 10 rows, 0 to 9",
        "  at: 'ids' of data.npz, sample 5 (batch 2)",
        "  do: make the ids with the tokenizer (or the vocabulary) of this model",
    ]
    assert said("tokens:build", "tokens:wrong")[1] == "  at: tokens:wrong, batch 1"


@pytest.mark.parametrize("model", ["build", "without_inputs"])
def test_data_without_a_batch(said: Any, model: str) -> None:
    lines = said(f"tokens:{model}", "tokens:EMPTY")
    assert lines[:2] == ["error: there is no batch in the calibration data", "  at: tokens:EMPTY"]
    np.savez("data.npz", ids=np.zeros((0, 3), np.int64))
    assert said(f"tokens:{model}", "data.npz")[1] == "  at: data.npz"
    np.savez("data.npz")
    lines = said(f"tokens:{model}", "data.npz")
    assert lines[:2] == ["error: there are no samples in the calibration data", "  at: data.npz"]


def test_a_model_that_came_without_inputs_does_not_run_on_the_data(said: Any, lowbit: Any) -> None:
    """Then nobody knows whose fault it is, and example inputs there are none to blame."""
    np.savez("data.npz", x=np.zeros((4, 5)))
    found, *places, do = said("tokens:HEAD", "data.npz", code=4)
    assert found.startswith(
        "error: the model of tokens:HEAD at the first batch of the calibration data raised RuntimeError: "
    )
    assert places == ["  at: data.npz, batch 0", "  at: input, which is float32 [1, 5]"]
    assert do.startswith("  do: give data of the shapes and dtypes that forward(input: ")
    assert do.endswith(" works on; if the data are right, the mistake is in the model")
    assert said("tokens:HEAD", "tokens:FLOATS", code=4)[1:] == [
        "  at: tokens:FLOATS, batch 0",
        "  at: input, which is float64 [2, 3]",
        "  do: convert input, as what runs the model later does, to float32, the dtype of the weights; if "
        "the data are right, the mistake is in the model",
    ]
    words = ("quantize", "tokens:HEAD", "--calibration", "data.npz", *WORDS, "--json")
    told = json.loads(lowbit(*words, code=4).stderr.splitlines()[-1])
    assert told["where"] == ["data.npz, batch 0", "input, which is float32 [1, 5]"]
    assert told["hint"]
    assert "at: " not in told["traceback"]


def test_names_and_forms_that_a_model_without_inputs_cannot_take(said: Any) -> None:
    np.savez("data.npz", id=np.zeros((4, 3), np.int64), y=np.zeros(4))
    assert said("tokens:without_inputs", "data.npz") == [
        "error: the model takes an input 'ids', and the data have none of that name, but 'id', 'y'",
        "  at: data.npz, batch 0",
        "  do: rename 'id' in the data to 'ids', which is the name in the model",
    ]
    assert said("tokens:without_inputs", "tokens:NUMBER")[:2] == [
        "error: the batch is an int",
        "  at: tokens:NUMBER, batch 0",
    ]
