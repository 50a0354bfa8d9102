"""The mutation zoo: every fault can still be seeded, and every defect of the peer is in it."""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lowbit.tools.testing import LAWS, laws

HERE = Path(__file__).parent
TESTS = HERE.parents[1]


@pytest.fixture(scope="module")
def mutate() -> Any:
    spec = importlib.util.spec_from_file_location("mutate", HERE / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_fault_can_be_seeded(mutate: Any) -> None:
    assert len(mutate.ZOO) >= 60
    assert Counter(mutant.name for mutant in mutate.ZOO).most_common(1)[0][1] == 1
    for mutant in mutate.ZOO:
        for function, code in mutate.changes(mutant):
            now = function.__code__
            fields = ("co_code", "co_consts", "co_names")
            assert [getattr(code, f) for f in fields] != [getattr(now, f) for f in fields], mutant.name


def test_every_defect_of_the_peer_has_its_faults_or_its_test(mutate: Any) -> None:
    known = {mutant.name for mutant in mutate.ZOO}
    names = {law.__name__.replace("_", "-") for law in LAWS} | {"no-crash"}
    for defect in mutate.DEFECTS:
        assert bool(defect.mutants) != bool(defect.no_law), defect.text
        assert defect.mutants or defect.tests, defect.text
        assert defect.mutants.keys() <= known, defect.text
        assert set(defect.mutants.values()) <= names, defect.text
        for test in defect.tests:
            file, _, function = test.partition("::")
            tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


@pytest.mark.parametrize("name", ["integers become floats", "float weights stay"])
def test_a_fault_is_found_by_the_law_of_the_table_and_leaves_no_trace(mutate: Any, name: str) -> None:
    (mutant,) = (m for m in mutate.ZOO if m.name == name)
    expected = {name: law for defect in mutate.DEFECTS for name, law in defect.mutants.items()}
    before = [function.__code__ for function, _ in mutate.changes(mutant)]
    broken = mutate.caught_by(mutant)
    assert isinstance(broken, laws.LawBroken)
    assert broken.law == expected[name]
    assert [function.__code__ for function, _ in mutate.changes(mutant)] == before
