"""The worked example: a subtle bug in a user's pass is found, and shown on the smallest graph."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import lowbit
import pytest
from lowbit.tools.testing import laws


@pytest.fixture(scope="module")
def example() -> Any:
    path = Path(lowbit.__file__).parent / "examples" / "check_a_pass.py"
    spec = importlib.util.spec_from_file_location("check_a_pass", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bug_is_found_on_two_operators(example: Any) -> None:
    with pytest.raises(laws.LawBroken, match="hasty-merge-linears breaks the law meaning-kept") as caught:
        laws.check(example.Hasty())
    text = str(caught.value)
    assert text.count("call_function") == text.count("torch.ops.aten.linear.default") == 2
    assert "check_on(Subject(" in text


def test_what_is_printed_is_code_that_shows_it(example: Any) -> None:
    from lowbit.tools import testing

    with pytest.raises(laws.LawBroken) as caught:
        laws.check(example.Hasty())
    code = str(caught.value).partition("which is\n")[2].strip()
    names = {**vars(testing), "Hasty": example.Hasty}
    with pytest.raises(laws.LawBroken, match="meaning-kept"):
        eval(code, names)


def test_the_mended_pass_keeps_the_laws(example: Any) -> None:
    laws.check(example.MergeLinears(), examples=50)
