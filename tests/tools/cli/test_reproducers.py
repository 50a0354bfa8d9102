"""``lowbit replay`` and ``lowbit reduce``, from a pass that fails to the nodes that it takes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lowbit.ir.text import save_graph
from torch import nn

FAULTY = """
import torch
from lowbit import Stage, register_pass

@register_pass
class Faulty:
    name = "faulty-pass-of-a-test-of-replay"
    requires = frozenset(Stage)
    ensures = None

    def run(self, gm, context):
        if gm.graph.find_nodes(op="call_function", target=torch.ops.aten.softplus.default):
            raise KeyError("softplus")
        return False
"""
PASS = "faulty-pass-of-a-test-of-replay"
IMPORT = ("--import", "faulty")


@pytest.fixture
def failed(project: Path, lowbit: Any) -> Path:
    """The reproducer that ``lowbit opt`` wrote of a pass that failed."""
    project.joinpath("faulty.py").write_text(FAULTY, encoding="utf-8")
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.Softplus(), nn.ReLU()).eval()
    save_graph(torch.export.export(model, (torch.zeros(2, 4),)).module(), "float.lowbit")
    words = ("opt", PASS, "float.lowbit", *IMPORT, "--reproducers", "out")
    result = lowbit(*words, code=4)
    assert result.stderr.index('raise KeyError("softplus")') < result.stderr.index("error: the pass raised")
    path = Path(f"out/{PASS}.zip")
    assert f"warning: a reproducer was written: python {path}\n" in result.stderr
    assert f"; to see it again: python {path}\n" in result.stderr
    data = json.loads(lowbit(*words, "--json", code=4).stderr)
    assert data["hint"].endswith(f"to see it again: python out/{PASS}-2.zip")
    return path


def test_a_pass_fails_again(failed: Path, lowbit: Any) -> None:
    said = lowbit("replay", failed, *IMPORT, code=1).stdout
    assert said.startswith(f"the pass {PASS}, on 17 nodes, fails:\nTraceback")
    assert 'raise KeyError("softplus")' in said
    data = json.loads(lowbit("replay", failed, *IMPORT, "--json", code=1).stdout)
    assert list(data) == ["format", "version", "pass", "nodes", "fails", "error", "notes", "warnings"]
    assert (data["format"], data["pass"], data["fails"]) == ("lowbit-replay", PASS, True)
    assert data["error"]["kind"] == "PassFailedError"
    assert "KeyError" in data["error"]["traceback"]


def test_a_pass_that_was_mended_fails_no_more(failed: Path, lowbit: Any) -> None:
    with zipfile.ZipFile(failed) as old, zipfile.ZipFile("mended.zip", "w") as new:
        for entry in old.infolist():
            content = old.read(entry).decode("latin1")
            if entry.filename == "about.json":
                content = content.replace(f'"{PASS}"', '"normalize"').replace('"faulty"', '"lowbit"')
            new.writestr(entry, content.encode("latin1"))
    assert "the pass normalize, on 17 nodes, does not fail" in lowbit("replay", "mended.zip").stdout
    assert "nothing to shrink" in lowbit("reduce", "mended.zip", code=3).stderr
    assert not Path("mended-reduced.zip").exists()


def test_a_reproducer_is_reduced_to_what_the_failure_needs(failed: Path, lowbit: Any) -> None:
    said = lowbit("reduce", failed, *IMPORT, "-o", "small/small.zip").stdout
    assert said.startswith("17 → 3 nodes, after ")
    assert said.endswith("wrote small/small.zip: lowbit replay small/small.zip\n")
    data = json.loads(lowbit("reduce", failed, *IMPORT, "--json").stdout)
    assert data["nodes"] == {"before": 17, "after": 3}
    assert data["trials"] > 3
    assert data["output"] == f"out/{PASS}-reduced.zip"
    lowbit("replay", data["output"], *IMPORT, code=1)


@pytest.mark.parametrize("command", ["replay", "reduce"])
def test_files_that_are_no_reproducers(failed: Path, lowbit: Any, command: str) -> None:
    for name, (code, said) in {
        "nothing.zip": (2, "there is no file nothing.zip"),
        "out": (2, f", {failed}\n"),
        "float.lowbit": (3, "is a saved graph, and no reproducer"),
        "faulty.py": (3, "is a text file of another kind, and no reproducer"),
    }.items():
        assert said in lowbit(command, name, code=code).stderr
    failed.write_bytes(failed.read_bytes()[:-30])
    assert "no reproducer" in lowbit(command, failed, code=3).stderr


def test_quantize_writes_reproducers_too(project: Path, lowbit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("nothing here")

    words = ("quantize", "net:program", "--backend", "x86_inductor", "--preset", "weight-only")
    monkeypatch.setattr("lowbit.passes.fold_quantize._fold", fail)
    said = lowbit(*words, "--reproducers", "out", code=4).stderr
    assert "to see it again: python out/fold-quantize.zip" in said
    assert "nothing here" in lowbit("replay", "out/fold-quantize.zip", code=1).stdout
    assert "is the file" in lowbit(*words, "--reproducers", "net.py", code=2).stderr
