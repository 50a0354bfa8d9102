"""How a command ends that cannot go on: the exit code, and what it says, to people and to programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lowbit.tools.cli.failures import EXIT_CODES, describe

MODEL = ("quantize", "net:raises", "--backend", "x86_inductor", "--preset", "dynamic")


def test_errors_of_lowbit_have_no_traceback_unless_it_is_asked_for(lowbit: Any) -> None:
    said = lowbit("capabilities", "nobody", code=2).stderr
    assert said.startswith("error: there is no backend named 'nobody'\n  do: known: ")
    said = lowbit("capabilities", "nobody", "--traceback", code=2).stderr
    assert said.startswith("Traceback (most recent call last):")
    assert "\nerror: there is no backend named 'nobody'\n" in said


def test_errors_as_json(lowbit: Any) -> None:
    result = lowbit("capabilities", "nobody", "--json", code=2)
    assert not result.stdout
    data = json.loads(result.stderr)
    assert list(data) == [
        *("format", "version", "exit_code", "kind", "found", "where", "hint", "pass", "traceback")
    ]
    assert (data["format"], data["exit_code"], data["kind"]) == ("lowbit-error", 2, "UnknownNameError")
    assert data["traceback"] is None


def test_a_command_that_is_not_understood(lowbit: Any) -> None:
    said = lowbit("quantise", code=2).stderr
    assert "quantise" in said
    assert "lowbit --help lists the options" in said or "main --help lists the options" in said
    data = json.loads(lowbit("diff", "--json", code=2).stderr)
    assert data["kind"] == "MissingParameter"
    assert data["exit_code"] == 2


def test_an_exception_of_the_users_keeps_its_traceback(project: Path, lowbit: Any) -> None:
    said = lowbit(*MODEL, code=4).stderr
    first, where, *_ = said.splitlines()
    assert first == "Traceback (most recent call last):"
    assert f'File "{project / "net.py"}"' in where, "it begins in the user's code"
    assert said.endswith("\nerror: net:raises raised RuntimeError: a mistake of the user's\n")
    data = json.loads(lowbit(*MODEL, "--json", code=4).stderr)
    assert (data["exit_code"], data["kind"]) == (4, "RuntimeError")
    assert "in raises\n" in data["traceback"]


def test_a_module_of_the_users_that_imports_what_is_not_there(project: Path, lowbit: Any) -> None:
    project.joinpath("imports.py").write_text("import not_there_at_all\n", encoding="utf-8")
    said = lowbit("quantize", "imports:build", code=4).stderr
    assert f'File "{project / "imports.py"}", line 1' in said
    assert "importing imports raised ModuleNotFoundError" in said


def test_the_models_own_mistake_is_shown_and_not_torchs_export(project: Path, lowbit: Any) -> None:
    project.joinpath("wrong.py").write_text(
        "import torch\nclass Wrong(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x @ torch.zeros(7, 7)\ndef build():\n    return Wrong(), torch.zeros(2, 3)\n",
        encoding="utf-8",
    )
    words = ("--backend", "x86_inductor", "--preset", "dynamic")
    said = lowbit("quantize", "wrong:build", *words, code=4).stderr
    assert f'File "{project / "wrong.py"}", line 4, in forward' in said


UNTRACEABLE = """
import torch


class Choice(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x


class Number(torch.nn.Module):
    def forward(self, x):
        return x * float(x.max())


class Array(torch.nn.Module):
    def forward(self, x):
        return x + torch.from_numpy(x.numpy())


def choice():
    return Choice(), torch.zeros(2, 3)


def number():
    return Number(), torch.zeros(2, 3)


def array():
    return Array(), torch.zeros(2, 3)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("choice", ("7: if x.sum() > 0:", "it cannot trace which way this line goes", "torch.where(")),
        ("number", ("14: return x * float(x.max())", "it cannot trace the number", "keep it a tensor")),
        ("array", ("19: return x + torch.from_numpy(x.numpy())", "RuntimeError: ", "the ExportedProgram")),
    ],
)
def test_what_cannot_be_exported_is_a_line_of_the_model(
    project: Path, lowbit: Any, capfd: Any, name: str, said: tuple[str, str, str]
) -> None:
    line, found, do = said
    path = project / "untraceable.py"
    path.write_text(UNTRACEABLE, encoding="utf-8")
    words = ("quantize", f"untraceable:{name}", "--backend", "x86_inductor", "--preset", "dynamic")
    first, where, hint = lowbit(*words, code=3).stderr.splitlines()
    assert first.startswith(f"error: torch.export cannot export untraceable:{name}: {found}")
    assert where == f"  at: {path}:{line}"
    assert hint.startswith("  do: ")
    assert do in hint
    assert capfd.readouterr().err == "", "of torch, which prints the graph so far and logs"


def test_torchs_own_words_are_shown_with_the_traceback(project: Path, lowbit: Any) -> None:
    project.joinpath("untraceable.py").write_text(UNTRACEABLE, encoding="utf-8")
    words = ("--backend", "x86_inductor", "--preset", "dynamic", "--traceback")
    said = lowbit("quantize", "untraceable:choice", *words, code=3).stderr
    assert "GuardOnDataDependentSymNode" in said
    assert "torch.ops.aten.sum.default" in said, "the graph so far"


def test_frames_of_the_users_code_alone(project: Path, lowbit: Any) -> None:
    project.joinpath("wrong.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Inner(nn.Module):\n    def forward(self, x):\n        return helper(x)\n"
        "def helper(x):\n    try:\n        return x @ torch.zeros(7, 7)\n"
        "    except RuntimeError as error:\n        raise ValueError('no') from error\n"
        "def build():\n    return nn.Sequential(Inner()), torch.zeros(2, 3)\n"
        "def batches():\n    yield torch.zeros(4, 3, 8, 8)\n    yield helper(torch.zeros(2, 3))\n"
        "def check(model):\n    return helper(torch.zeros(2, 3))\n",
        encoding="utf-8",
    )
    project.joinpath("no_python.py").write_text("def build(:\n", encoding="utf-8")
    graphs = ("quantize", "net:with_inputs", "--backend", "x86_inductor")
    for words, names in (
        (("quantize", "wrong:build", *MODEL[2:]), ["forward", "forward", "helper"]),
        ((*graphs, "--calibration", "wrong:batches"), ["batches", "helper"]),
        (("quantize", "no_python:build"), []),
    ):
        said = lowbit(*words, code=4).stderr
        told = said.rpartition("Traceback (most recent call last)")[2]
        assert "it comes from" not in told
        assert [line.split()[-1] for line in told.splitlines() if ", in " in line] == names
        in_full = lowbit(*words, "--traceback", code=4).stderr
        assert len(in_full) > len(said)
    assert said.endswith(
        "error: importing no_python raised SyntaxError: invalid syntax (no_python.py, line 1)\n"
    )


def test_an_interrupt_is_no_error(project: Path, lowbit: Any) -> None:
    project.joinpath("stops.py").write_text("def build():\n    raise KeyboardInterrupt\n", encoding="utf-8")
    words = ("quantize", "stops:build", "--backend", "x86_inductor", "--preset", "dynamic")
    assert lowbit(*words, code=130).stderr == "\nerror: interrupted\n", "behind the ^C of a terminal"


UNREAD = """
import os, sys
from lowbit.tools.cli import main

for words in (["passes"], ["passes", "--json"], ["--help"], ["passes", "--help"]):
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    try:
        main(words)
    except SystemExit as ended:
        sys.stdout.flush()
        print(ended.code, file=sys.stderr)
"""


def test_output_that_nobody_reads_is_not_something_found() -> None:
    ended = subprocess.run([sys.executable, "-c", UNREAD], capture_output=True, text=True, check=False)
    assert ended.stderr.split() == ["141"] * 4
    assert 141 in EXIT_CODES


def test_what_nobody_expected_is_called_a_defect() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 // 0
    failure = describe(caught.value, with_traceback=False)
    assert failure.exit_code == 4
    assert "please report it" in str(failure)
    assert "test_failures.py" in str(failure)
