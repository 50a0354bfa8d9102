"""Whatever file a command is handed: it says what the file is and what to do, in words of the command."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lowbit import calibrate, convert_pt2e, prepare_pt2e
from lowbit.ir.text import save_graph
from lowbit.tools.cli.file_kind import kind_of
from lowbit.tools.cli.quantizing.target import find_target, make_quantizer
from torch import nn

# What each is called, and what is said to do with it by commands that take graphs.
KINDS = {
    "missing.lowbit": ("missing", "name a graph that lowbit quantize --save-graphs wrote"),
    "folder": ("folder", "name a graph in it: folder/converted.lowbit"),
    "no-graphs": ("folder", "name a graph that"),
    "empty.lowbit": ("empty", "name a graph that"),
    "binary.lowbit": ("other", "name a graph that"),
    "cut.pt2": ("other", "name a graph that"),
    "text.lowbit": ("text", "name a graph that"),
    "float.pt2": ("float-program", "lowbit quantize float.pt2 --save-graphs graphs writes its graphs"),
    "converted.pt2": ("converted-program", "quantize with --save-graphs graphs"),
    "package.pt2": ("package", "name a graph that"),
    "reproducer.zip": ("reproducer", "lowbit replay reproducer.zip"),
    "folder/float.safetensors": ("tensors", "name the file of the graph, folder/float.lowbit"),
    "arrays.npz": ("arrays", "name a graph that"),
    "saved.pt": ("torch-save", "name a graph that"),
}
COMMANDS = {
    "explain": ("explain", "{}"),
    "diff": ("diff", "{}", "{}"),
    "opt": ("opt", "normalize", "{}"),
    "bisect": ("bisect", "{}", "--check", "true"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(nn.Linear(4, 4).eval(), (x,))
    target = find_target("x86_inductor", "static-7-bit")
    prepared = prepare_pt2e(program.module(), make_quantizer(target))
    converted = convert_pt2e(calibrate(prepared, [x], progress=False))
    (folder / "folder").mkdir()
    (folder / "no-graphs").mkdir()
    save_graph(program.module(), folder / "folder/float.lowbit")
    save_graph(converted, folder / "folder/converted.lowbit")
    torch.export.save(program, folder / "float.pt2")
    torch.export.save(torch.export.export(converted, (x,)), folder / "converted.pt2")
    (folder / "cut.pt2").write_bytes((folder / "float.pt2").read_bytes()[:5000])
    (folder / "empty.lowbit").touch()
    (folder / "binary.lowbit").write_bytes(bytes(range(256)) * 20)
    (folder / "text.lowbit").write_text("some text: \N{SNOWMAN}" * 2000, encoding="utf-8")
    np.savez(folder / "arrays.npz", x=x.numpy())
    torch.save(x, folder / "saved.pt")
    for name, entries in {
        "package.pt2": ["p/data/aotinductor/model/x.so"],
        "reproducer.zip": ["about.json", "graph.lowbit"],
    }.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for entry in entries:
                archive.writestr(entry, "")
    return folder


@pytest.fixture
def here(files: Path, project: Path) -> Path:
    """The current folder, with all of them."""
    shutil.copytree(files, project, dirs_exist_ok=True)
    return project


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_recognized_by_its_content(files: Path, name: str) -> None:
    assert kind_of(files / name).name == KINDS[name][0]
    assert str(kind_of(files / name))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_on_graphs_say_what_the_file_is_and_what_to_do(
    here: Path, lowbit: Any, command: str
) -> None:
    for name, (kind, do) in KINDS.items():
        words = [word.format(name) for word in COMMANDS[command]]
        said = lowbit(*words, code=2 if kind in ("missing", "folder") else 3).stderr
        first, *rest = said.splitlines()
        assert first.startswith("error: ")
        assert name in first
        assert any(line.startswith("  do: ") and do in line for line in rest), said
        for python in ("utf-8", "codec", "Errno", "Traceback", "load_graph", "prepare_pt2e"):
            assert python not in said


def test_quantize_says_what_the_file_is_and_what_to_do(here: Path, lowbit: Any, capfd: Any) -> None:
    for name, do in {
        "missing.pt2": "check its path",
        "folder": "package.module:build",
        "folder/float.lowbit": "lowbit opt runs passes on graphs",
        "folder/float.safetensors": "lowbit opt runs passes on graphs",
        "empty.lowbit": "torch.export.save",
        "cut.pt2": "torch.export.save",
        "text.lowbit": "torch.export.save",
        "package.pt2": "aoti_load_package",
        "saved.pt": "has no graph",
        "arrays.npz": "torch.export.save",
        "converted.pt2": "the float model",
        "net.py": "name a function in it: net:build",
    }.items():
        words = ("quantize", name, "--backend", "x86_inductor", "--preset", "dynamic")
        said = lowbit(*words, code=2 if name in ("missing.pt2", "folder") else 3).stderr
        assert name in said.splitlines()[0]
        assert do in said
    assert not capfd.readouterr().err, "torch logs nothing past us"


def test_torchs_own_log_lines_are_kept_while_a_program_is_loaded(
    here: Path, lowbit: Any, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # Still a zip file with a program in it, of which a tensor is missing.
    with zipfile.ZipFile("float.pt2") as whole, zipfile.ZipFile("broken.pt2", "w") as broken:
        for entry in whole.infolist():
            if "weight_0" not in entry.filename:
                broken.writestr(entry, whole.read(entry))
    said = lowbit("quantize", "broken.pt2", "--backend", "x86_inductor", "--preset", "dynamic", code=3).stderr
    assert said.startswith("error: torch.export.load cannot read broken.pt2: ")
    assert "check the warnings above" not in said, "what was logged is the reason"
    assert len(said.splitlines()) == 2
    assert not capfd.readouterr().err
    assert not caplog.records


def test_a_graph_that_is_damaged(here: Path, lowbit: Any) -> None:
    graph = Path("folder/float.lowbit")
    text, tensors = graph.read_bytes(), graph.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:20])
    assert "the tensors of folder/float.lowbit cannot be read" in lowbit("diff", graph, graph, code=3).stderr
    tensors.unlink()
    assert "folder/float.safetensors cannot be read" in lowbit("diff", graph, graph, code=2).stderr
    graph.write_bytes(text + b"\xff")
    assert "damaged" in lowbit("diff", graph, graph, code=3).stderr


def test_explain_of_graphs_that_hold_no_decisions(here: Path, lowbit: Any) -> None:
    said = lowbit("explain", "folder/float.lowbit", code=3).stderr
    assert "folder/float.lowbit is a float graph, about which nothing was decided yet" in said
    assert "folder/lowered.lowbit" in said
    save_graph(torch.export.load("converted.pt2").module(), "loaded.lowbit")
    assert (
        "is at stage QDQ, and does not hold what was decided"
        in lowbit("explain", "loaded.lowbit", code=3).stderr
    )
    said = lowbit("explain", "folder/converted.lowbit", "--shared", "a", "b", code=3).stderr
    assert "name folder/prepared.lowbit" in said
