"""The documented exit codes hold in all commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lowbit.errors import (
    CalibrationDataError,
    GraphInputError,
    OptionError,
    PassFailedError,
    UnknownNameError,
)
from lowbit.ir.text import save_graph
from lowbit.tools.cli import main
from lowbit.tools.cli.failures import EXIT_CODES
from torch import nn

CODES = {
    UnknownNameError("found"): 2,
    OptionError("found"): 2,
    GraphInputError("found"): 3,
    CalibrationDataError("found"): 3,
    PassFailedError("found"): 4,
    RuntimeError("found"): 4,
    KeyboardInterrupt(): 130,
}


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_ends_as_is_documented(lowbit: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = main.commands[name]
    assert "--nosuch" in lowbit(name, "--nosuch", code=2).stderr
    monkeypatch.setattr(command, "parse_args", lambda context, words: [])
    for error, code in CODES.items():

        def fail(context: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(command, "invoke", fail)
        assert "error: " in lowbit(name, code=code).stderr
        assert json.loads(lowbit(name, "--json", code=code).stderr)["exit_code"] == code
        assert code in EXIT_CODES


CHECKS = """
import sys
import torch
import lowbit

def good(model): return True
def bad(model): return False
def none(model): return None
def raises(model): raise RuntimeError("a mistake")
def number(model): return 1.0
def quits(model=None): sys.exit(5)
THREE = 3
"""
BISECT = ("bisect", "prepared.lowbit", "--check")
COSTLY = ("costly", "float.lowbit", "--calibration", "data.pt", "--tolerance", "0.1")
PRESET = ("--backend", "x86_inductor", "--preset", "static-7-bit")
FLOAT = ("bisect", "float.lowbit", "--calibration", "data.pt", *PRESET)
QUANTIZE = ("quantize", "net:with_inputs", "--backend", "x86_inductor", "--preset", "dynamic")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, lowbit: Any) -> Path:
    """A folder with a float and a prepared graph, and data."""
    folder = tmp_path_factory.mktemp("graphs")
    model = nn.Sequential(nn.Linear(4, 4), nn.Softplus()).eval()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    torch.save(x, folder / "data.pt")
    torch.export.save(torch.export.export(model, (x,)), folder / "float.pt2")
    save_graph(torch.export.export(model, (x,)).module(), folder / "float.lowbit")
    data = ("--calibration", folder / "data.pt", "--save-graphs", folder)
    lowbit("quantize", folder / "float.pt2", *data, *PRESET)
    return folder


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, (*BISECT, "checks:good")),
        (0, (*BISECT, "true")),
        (1, (*BISECT, "checks:bad")),
        (1, (*BISECT, "checks:raises")),
        (1, (*BISECT, "checks:quits")),
        (1, (*BISECT, "false")),
        (2, (*BISECT, "checks:none")),
        (2, (*BISECT, "checks:number")),
        (2, (*BISECT, "checks:THREE")),
        (2, (*BISECT, "checks:goood")),
        (2, (*BISECT, "chocks:good")),
        (2, (*BISECT, "no-such-program")),
        (2, (*BISECT, "'unclosed")),
        (2, (*BISECT, "true", "--backend", "nosuch")),
        (2, (*BISECT, "true", "--pipeline", "nosuch")),
        (2, (*FLOAT, "--check", "true", "--left-float", "nosuch")),
        (2, (*FLOAT, "--check", "true", "--preset", "nosuch")),
        (2, ("bisect", "float.lowbit", "--check", "true", "--calibration", "nosuch.pt")),
        (3, ("bisect", "lowered.lowbit", "--check", "true")),
        (3, (*BISECT, "sh -c 'exit 126'")),
        (4, (*BISECT, "quits:good")),
        (0, (*COSTLY, *PRESET, "--metric", "checks:number")),
        (2, (*COSTLY, *PRESET, "--metric", "checks:bad")),
        (2, (*COSTLY, "--metric", "checks:number", "--preset", "nosuch")),
        (4, (*COSTLY, *PRESET, "--metric", "checks:raises")),
        (4, (*COSTLY, *PRESET, "--metric", "checks:quits")),
        (0, ("diff", "float.lowbit", "float.lowbit")),
        (1, ("diff", "float.lowbit", "prepared.lowbit")),
        (2, ("diff", "float.lowbit", "nosuch.lowbit")),
        (3, ("diff", "float.lowbit", "float.pt2")),
        (0, ("explain", "lowered.lowbit", "softplus")),
        (2, ("explain", "lowered.lowbit", "nosuch")),
        (2, ("explain", "prepared.lowbit", "--shared", "nosuch", "softplus")),
        (3, ("explain", "float.lowbit")),
        (0, ("opt", "normalize", "float.lowbit")),
        (2, ("opt", "normalize(", "float.lowbit")),
        (2, ("opt", "normalize{nosuch=1}", "float.lowbit")),
        (2, ("opt", "normalize", "float.lowbit", "-o", "x.safetensors")),
        (2, ("opt", "normalize", "float.lowbit", "-o", ".")),
        (3, ("opt", "observers-to-qdq", "float.lowbit")),
        (2, ("opt", "normalize", "float.lowbit", "--import", "nosuch")),
        (4, ("opt", "normalize", "float.lowbit", "--import", "quits")),
        (0, QUANTIZE),
        (2, (*QUANTIZE, "--left-float", "nosuch")),
        (2, (*QUANTIZE, "--batch-size", "0")),
        (2, ("quantize", "checks:THREE.nosuch")),
        (3, ("quantize", "checks:THREE", *PRESET[:2], "--preset", "dynamic")),
        (3, (*QUANTIZE, "--calibration", "data.pt")),
        (4, ("quantize", "checks:quits", *PRESET[:2], "--preset", "dynamic")),
        (4, (*QUANTIZE, "--calibration", "checks:quits")),
        (2, ("capabilities", "nosuch")),
        (2, ("completion", "nosuch")),
        (2, ("demo", "--model", "nosuch")),
        (2, ("replay", "nosuch.zip")),
        (3, ("replay", "float.lowbit")),
        (2, ("reduce", "nosuch.zip")),
        (3, ("reduce", "float.lowbit")),
        (2, ("reduce", "float.lowbit", "-o", ".")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_commands_end_as_is_documented(
    project: Path, graphs: Path, lowbit: Any, words: tuple[str, ...], code: int
) -> None:
    for file in graphs.iterdir():
        project.joinpath(file.name).symlink_to(file)
    project.joinpath("checks.py").write_text(CHECKS, encoding="utf-8")
    project.joinpath("quits.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    result = lowbit(*words, code=code)
    assert ("error: " in result.stderr) is (code > 1)
    assert not ("Traceback" in result.stderr and code < 4)
    assert not (code > 1 and "please report it" in result.stderr)
    assert "checks" not in sys.path
