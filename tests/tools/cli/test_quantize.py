"""``lowbit quantize``: what it makes of a model, and that all ways to say it say the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lowbit import Stage, coverage, get_stage, lower_pt2e
from lowbit.backends import get_backend
from lowbit.backends.x86_inductor import has_vnni
from lowbit.ir.reasons import REASONS
from lowbit.ir.text import load_graph, to_text
from lowbit.tools.cli import QuantizeOptions, main, quantize, read_config

DATA = ("--calibration", "net:batches")
PRESET = ("--backend", "x86_inductor", "--preset", "static-7-bit")


def test_a_module_and_batches_of_a_function(project: Path, lowbit: Any) -> None:
    result = lowbit("quantize", "net:module", *DATA, *PRESET, "-o", "out/int8.pt2", "--verify", "numeric")
    said = result.stdout
    assert "net:module, for x86_inductor with preset static-7-bit" in said
    assert "coverage: 3 of 5 float operators quantized for x86_inductor" in said
    assert said.splitlines()[3:10] == [
        "left float:",
        f"  1 float-input: {REASONS['float-input'].meaning}",
        "    mean (net.py:15)",
        "    because: %softplus (gate, net.py:14) hands it a float tensor: pointwise",
        f"    do: {REASONS['pointwise'].advice}",
        f"  1 pointwise: {REASONS['pointwise'].meaning}",
        "    softplus in gate (net.py:14)",
    ]
    assert "wrote out/int8.pt2, " in said
    assert sorted(path.name for path in project.joinpath("out").iterdir()) == ["int8.pt2"]

    converted = torch.export.load("out/int8.pt2").module()
    assert get_stage(converted) is Stage.QDQ
    sys.path.insert(0, str(project))
    import net

    sys.path.remove(str(project))
    float_model, image = net.module().eval(), next(net.batches())[0]
    with torch.no_grad():
        wanted, found = float_model(image), lower_pt2e(converted, "x86_inductor")(image)
    noise = (wanted - found).square().mean() / wanted.square().mean()
    assert 0 < noise < 1e-2


def test_python_toml_and_the_command_line_say_the_same(project: Path, lowbit: Any) -> None:
    lowbit(
        "quantize",
        "net:module",
        *DATA,
        *PRESET,
        "--left-float",
        "head",
        "--steps",
        2,
        "--save-graphs",
        "words",
    )
    toml = """
        model = "net:module"
        calibration = "net:batches"
        backend = "x86_inductor"
        preset = "static-7-bit"
        left-float = ["head"]
        steps = 2
        save-graphs = "toml"
    """
    project.joinpath("quantize.toml").write_text(toml, encoding="utf-8")
    lowbit("quantize", "--config", "quantize.toml")
    table = toml.replace("toml", "table")
    project.joinpath("pyproject.toml").write_text(f"[tool.lowbit.quantize]\n{table}", encoding="utf-8")
    lowbit("quantize", "--config", "pyproject.toml")
    sys.path.insert(0, str(project))
    try:
        result = quantize(
            QuantizeOptions(
                model="net:module",
                calibration="net:batches",
                backend="x86_inductor",
                preset="static-7-bit",
                left_float=["head"],
                steps=2,
            )
        )
    finally:
        sys.path.remove(str(project))
    graphs = {
        "float": result.exported,
        "prepared": result.prepared,
        "converted": result.converted,
        "lowered": result.lowered,
    }
    for name, graph in graphs.items():
        assert graph is not None
        text, tensors = (project / f"words/{name}.{end}" for end in ("lowbit", "safetensors"))
        assert text.read_text(encoding="utf-8") == to_text(graph)
        for folder in ("toml", "table"):
            assert (project / folder / text.name).read_bytes() == text.read_bytes()
            assert (project / folder / tensors.name).read_bytes() == tensors.read_bytes()
    assert coverage(load_graph("words/lowered.lowbit")).quantized == 2


def test_nothing_quantized_is_said_in_the_words_of_the_command(project: Path, lowbit: Any) -> None:
    project.joinpath("none.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus()).eval(), torch.zeros(1, 3, 4, 4)\n",
        encoding="utf-8",
    )
    words = ("quantize", "none:build", "--backend", "x86_inductor", "--preset", "weight-only")
    (said,) = lowbit(*words).stderr.splitlines()
    assert said.startswith(
        "warning: nothing is quantized for x86_inductor with the preset weight-only: all 2 float operators "
        "stay float (pointwise 1, static-only 1). To get on: take another preset (--preset static"
    )
    assert said.endswith(", or see lowbit capabilities x86_inductor for what it quantizes.")
    assert "set_global" not in said
    assert json.loads(lowbit(*words, "--json").stdout)["warnings"] == [said.removeprefix("warning: ")]

    found, do = lowbit(*words, "--strict", code=3).stderr.splitlines()
    why, what = said.removeprefix("warning: ").removesuffix(".").split(". To get on: ")
    assert found == f"error: {why}"
    # With --strict, presets that do not suit this machine are no way out.
    named, strictly = (text.partition("--preset ")[2].partition(")")[0].split(", ") for text in (what, do))
    presets = {preset.name: preset for preset in get_backend("x86_inductor").presets}
    assert strictly == [name for name in named if presets[name].suits()]
    words = ("quantize", "net:module", *DATA, *PRESET, "--left-float", "stem", "--left-float", "head")
    result = lowbit(*words, "--save-graphs", "graphs")
    assert "leave --left-float out" in result.stderr
    advice = "do: leave --left-float out for its module, or leave it float"
    assert f"    {advice}" in result.stdout.splitlines()
    assert f"  {advice}" in lowbit("explain", "graphs/lowered.lowbit").stdout.splitlines()
    (conv, *_) = json.loads(lowbit("explain", "graphs/lowered.lowbit", "stem.0", "--json").stdout)[
        "operators"
    ]
    assert f"do: {conv['advice']}" == advice


def test_a_batch_norm_that_is_folded_cannot_be_left_float_alone(project: Path, lowbit: Any) -> None:
    words = ("quantize", "net:module", *DATA, *PRESET, "--left-float")
    found, do = lowbit(*words, "stem.1", code=2).stderr.splitlines()[-2:]
    assert found == (
        "error: there is nothing in stem.1 to leave float: %batch_norm in stem.1 was folded into the weight "
        "and bias of %conv2d, by the pass fold-batch-norm"
    )
    assert do == "  do: leave both float with --left-float stem.0"
    assert "float operators quantized" in lowbit(*words, "stem.0").stdout


def test_words_win_over_the_file(project: Path, lowbit: Any) -> None:
    project.joinpath("q.toml").write_text('model = "net:three"\npreset = "static"\n', encoding="utf-8")
    result = lowbit("quantize", "net:with_inputs", "--config", "q.toml", "--preset", "dynamic", "--json")
    data = json.loads(result.stdout)
    assert (data["model"], data["preset"]) == ("net:with_inputs", "dynamic")


@pytest.mark.parametrize("model", ["with_inputs", "by_keyword", "program"])
def test_whatever_the_function_returns(project: Path, lowbit: Any, model: str) -> None:
    result = lowbit("quantize", f"net:{model}", *DATA, *PRESET, "--json", "--report", "r.html", "-o", "o.pt2")
    data = json.loads(result.stdout)
    assert data["coverage"] == {
        "quantized": 3,
        "float": 2,
        "share": 0.6,
        "left_float": [["float-input", 1], ["pointwise", 1]],
        "not_lowered": 0,
        "backend": "x86_inductor",
    }
    assert len(data["operators"]) == 5
    converted = torch.export.load("o.pt2").module()
    batch = 7 if model == "program" else 4
    image = {"image": torch.zeros(batch, 3, 8, 8)}
    shape = (converted(**image) if model == "by_keyword" else converted(*image.values())).shape
    assert shape == (batch, 4)
    page = project.joinpath("r.html").read_text(encoding="utf-8")
    assert "net:" + model in page
    assert not [word for word in ("_pt2e", "explain(", "Quantizer()") if word in page], "it has the command"


def test_what_may_be_an_input_or_a_label_is_said(project: Path, lowbit: Any) -> None:
    project.joinpath("masked.py").write_text(
        "import torch\n"
        "class Masked(torch.nn.Linear):\n"
        "    def forward(self, x, mask=None):\n"
        "        return super().forward(x if mask is None else x * mask)\n"
        "def build():\n    return Masked(4, 4).eval()\n"
        "BATCHES = [(torch.ones(2, 4), torch.zeros(2, 4))] * 2\n",
        encoding="utf-8",
    )
    words = ("quantize", "masked:build", "--calibration", "masked:BATCHES", *PRESET, "--json")
    (note,) = json.loads(lowbit(*words).stdout)["notes"]
    assert note.startswith(
        "the last entry of a batch was taken for labels, so masked:build was exported without mask"
    )
    assert not json.loads(lowbit("quantize", "net:module", *DATA, *PRESET, "--json").stdout)["notes"]


def test_what_was_done_to_model_and_data_is_said_on_stderr(project: Path, lowbit: Any) -> None:
    np.savez("data.npz", pictures=np.zeros((4, 3, 8, 8)))
    words = ("quantize", "net:training", "--calibration", "data.npz", *PRESET)
    result = lowbit(*words)
    assert result.stderr.splitlines() == [
        "note: net:training came in training mode, and was put into evaluation mode, as by model.eval(): "
        "Dropout does nothing, BatchNorm takes its running statistics",
        "note: data.npz: 'pictures' was taken for 'image', the model's one input",
        "note: data.npz: 'image' is float64, and was converted to float32 for the model",
    ]
    assert "note:" not in result.stdout
    data = json.loads(lowbit(*words, "--json").stdout)
    assert [f"note: {note}" for note in data["notes"]] == result.stderr.splitlines()


def test_one_array_needs_no_name_to_export_the_model_with(project: Path, lowbit: Any) -> None:
    torch.save({"pictures": torch.zeros(4, 3, 8, 8)}, "data.pt")
    data = json.loads(lowbit("quantize", "net:module", "--calibration", "data.pt", *PRESET, "--json").stdout)
    (note,) = data["notes"]
    assert "'pictures' was taken for 'image'" in note


def test_a_program_that_computes_as_in_training(project: Path, lowbit: Any) -> None:
    x = torch.zeros(2, 3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.RReLU()).train()
    torch.export.save(torch.export.export(model, (x,)), "training.pt2")
    torch.save(x, "data.pt")
    words = ("quantize", "training.pt2", "--calibration", "data.pt", *PRESET)
    (note,) = json.loads(lowbit(*words, "--json").stdout)["notes"]
    assert note.startswith("training.pt2 was exported in training mode, and is quantized so: rrelu.")
    # Of BatchNorm and Dropout nothing sensible would come.
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout()).train()
    torch.export.save(torch.export.export(model, (x,)), "training.pt2")
    assert "exported in training mode" in lowbit(*words, code=3).stderr


def test_a_saved_program(project: Path, lowbit: Any) -> None:
    program = torch.export.export(torch.nn.Sequential(torch.nn.Linear(8, 8)).eval(), (torch.zeros(2, 8),))
    torch.export.save(program, "float.pt2")
    torch.save(torch.randn(6, 8), "data.pt")
    data = json.loads(lowbit("quantize", "float.pt2", "--calibration", "data.pt", *PRESET, "--json").stdout)
    assert data["coverage"]["quantized"] == 1


def test_json_is_all_there_is_on_stdout(project: Path, lowbit: Any) -> None:
    result = lowbit(
        "quantize", "net:module", *DATA, "--backend", "x86_inductor", "--json", "--diffs", "diffs"
    )
    assert "building" in result.stderr
    data = json.loads(result.stdout)
    assert list(data) == [
        *("format", "version", "model", "backend", "preset", "coverage", "weight_bytes", "files"),
        *("operators", "notes", "warnings"),
    ]
    assert (data["format"], data["version"]) == ("lowbit-quantize", 1)
    assert data["preset"] == ("static" if has_vnni() else "static-7-bit")
    assert bool(data["notes"]) is not has_vnni(), "that 7 bits were chosen is said"
    assert data["files"] == {"diffs": "diffs"}
    assert data["weight_bytes"]["quantized"] < data["weight_bytes"]["float"]
    softplus = next(each for each in data["operators"] if each["node"] == "softplus")
    assert list(softplus) == [
        *("node", "target", "status", "reason", "detail", "module", "source", "kernel", "nearest"),
    ]
    assert (softplus["status"], softplus["module"], softplus["kernel"]) == ("float", "gate", None)
    assert len(list(project.joinpath("diffs").glob("*-annotate.diff"))) == 1


def test_json_holds_also_where_other_programs_print(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is not Python's prints to file descriptors."""
    project.joinpath("loud.py").write_text(
        "import os, torch\ndef build():\n    os.system('echo loud')\n"
        "    return torch.nn.Linear(4, 4), torch.zeros(1, 4)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    words = ["quantize", "loud:build", "--backend", "x86_inductor", "--preset", "weight-only", "--json"]
    with pytest.raises(SystemExit, match="0"):
        main(words)
    sys.stdout.flush()
    found = capfd.readouterr()
    assert json.loads(found.out)["format"] == "lowbit-quantize"
    assert "loud" in found.err
    assert "\x1b" not in found.err + found.out, "no colour where there is no terminal"


def test_what_another_program_takes_is_not_compiled_here(project: Path, lowbit: Any) -> None:
    words = ("quantize", "net:module", *DATA, "--backend", "xnnpack")
    assert "ExecuTorch" in lowbit(*words, "--package", "run.pt2", code=2).stderr
    assert "for xnnpack with preset static" in lowbit(*words, "--output", "o.pt2").stdout
    assert get_stage(torch.export.load("o.pt2").module()) is Stage.QDQ


def test_the_package_is_the_lowered_model(
    project: Path, lowbit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def package(model: torch.fx.GraphModule, path: Path) -> None:
        assert not any(buffer.is_mkldnn for buffer in model.buffers())
        path.write_text(get_stage(model).name, encoding="utf-8")

    monkeypatch.setattr("lowbit.tools.cli.quantizing.outputs.package_pt2e", package)
    result = lowbit("quantize", "net:module", *DATA, *PRESET, "--package", "run.pt2")
    assert project.joinpath("run.pt2").read_text(encoding="utf-8") == "LOWERED"
    assert "aoti_load_package" in result.stdout


def test_strict_fails_where_something_stays_float_that_was_not_to(project: Path, lowbit: Any) -> None:
    # Nothing of it is quantized, which is a warning otherwise.
    words = ("quantize", "net:with_inputs", "--backend", "embedding", "--json")
    assert json.loads(lowbit(*words, "--strict", code=3).stderr.splitlines()[-1])["kind"] == "StrictModeError"


def test_options_that_are_no_options(project: Path, lowbit: Any) -> None:
    assert "'--calibration'" in lowbit("quantize", "net:module", "--calibraton", "x", code=2).stderr
    for text, said in {
        'modle = "net:module"': "did you mean 'model'",
        "model = 3": "the option model is 3",
        "steps = 0": "at least 1",
        "steps = true": "at least 1",
        'left-float = "head"': "a list of module names",
        "left_float = []": "did you mean 'left-float'",
        'verify = "everything"': "stages or numeric",
        'strict = "yes"': "true or false",
        "output = 1": "the path of a file",
        "output = ": "is no TOML",
    }.items():
        project.joinpath("q.toml").write_text(text, encoding="utf-8")
        found = lowbit("quantize", "net:module", "--config", "q.toml", code=2).stderr
        assert said in found, text
        assert "q.toml" in found
    project.joinpath("pyproject.toml").write_text("[tool.other]", encoding="utf-8")
    assert "[tool.lowbit.quantize]" in lowbit("quantize", "--config", "pyproject.toml", code=2).stderr
    assert "cannot be read" in lowbit("quantize", "--config", "nowhere.toml", code=2).stderr
    project.joinpath("q.toml").write_bytes(b"\xff\xfe")
    assert "q.toml is no text\n" in lowbit("quantize", "--config", "q.toml", code=2).stderr
    assert "no model was named" in lowbit("quantize", code=2).stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "net:modul"),
        ("model", "nowhere.pt2"),
        ("calibration", "net:batchs"),
        ("backend", "x86_inducter"),
        ("preset", "statc"),
        ("left-float", ["haed"]),
        ("output", "net.py/o.pt2"),
        ("save-graphs", "net.py"),
    ],
)
def test_what_is_wrong_in_a_file_says_where(project: Path, lowbit: Any, key: str, value: object) -> None:
    options = {"model": "net:module", "calibration": "net:batches", "backend": "x86_inductor", key: value}
    text = "\n".join(f"{name} = {json.dumps(each)}" for name, each in options.items())
    project.joinpath("q.toml").write_text(text, encoding="utf-8")
    words = ("quantize", "--config", "q.toml")
    assert f"\n  at: {key} in q.toml\n" in lowbit(*words, code=2).stderr
    if key == "backend":  # what is said on the command line is not in the file
        assert "q.toml" not in lowbit(*words, "--backend", "nobody", code=2).stderr


def test_left_float_is_given_as_the_reason(project: Path, lowbit: Any) -> None:
    words = ("quantize", "net:module", *DATA, *PRESET, "--left-float", "head", "--save-graphs", "graphs")
    reason = "found: the module 'head' was set to stay float (--left-float, set_module_name)"
    assert f"    {reason}\n" in lowbit(*words).stdout
    assert reason.replace("found: ", "found:   ") in lowbit("explain", "graphs/lowered.lowbit", "head").stdout


def test_of_many_operators_a_few_are_named(project: Path, lowbit: Any) -> None:
    project.joinpath("many.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    layers = [nn.Linear(4, 4), *(nn.Softplus() for _ in range(9))]\n"
        "    return nn.Sequential(*layers).eval(), torch.zeros(1, 4)\n",
        encoding="utf-8",
    )
    words = ("quantize", "many:build", "--backend", "x86_inductor", "--preset", "weight-only")
    lines = lowbit(*words).stdout.splitlines()
    at = lines.index(f"  9 pointwise: {REASONS['pointwise'].meaning}")
    assert lines[at + 1] == "    softplus in 1, softplus_1 in 2, softplus_2 in 3 and 6 more"


def test_a_config_is_read_as_it_is_written(project: Path) -> None:
    project.joinpath("q.toml").write_text('left-float = ["a", "b"]\nstrict = true', encoding="utf-8")
    assert read_config("q.toml") == {"left-float": ["a", "b"], "strict": True}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("net:modul",), "did you mean 'module'"),
        (("nett:module",), "there is no module 'nett'\n  do: did you mean net?"),
        (("elsewhere.part:module",), "run the command in the folder where the module lies"),
        (("net.py:module",), "name the module, not its file: net"),
        (("net",), "neither package.module:name nor a .pt2 file"),
        (("float.pt2",), "there is no file float.pt2"),
        (("net:module",), "give --calibration"),
        (("net:module", "--preset", "statc"), "did you mean 'static'"),
        (("net:module", "--preset", "static-qat"), "is for training"),
        (("net:module", "--backend", "x86_inducter"), "did you mean"),
        (("net:module", *DATA, "--left-float", "haed"), "named 'haed'\n  do: did you mean 'head'"),
        (("net:modul", *DATA), "did you mean 'module'?"),
        (("net:nnn",), "known: Net, module, training, with_inputs, by_keyword, program, "),
        (("net:module", *DATA, "--output", "folder"), "is the folder"),
        (("net:module", *DATA, "--output", "o.pt"), "the ending .pt2"),
        (("net:module", *DATA, "--output", "net.py/o.pt2"), "nothing can be written"),
        (("net:module", *DATA, "--diffs", "net.py"), "is the file"),
        (("net:module", *DATA, "--output", "o.pt2", "--package", "./o.pt2"), "the same path"),
        (("net:module", "--preset", "dynamic"), "without example inputs"),
    ],
)
def test_what_is_wrong_is_said(project: Path, lowbit: Any, words: tuple[str, ...], said: str) -> None:
    project.joinpath("folder").mkdir()
    backend = () if "--backend" in words else ("--backend", "x86_inductor")
    result = lowbit("quantize", *words, *backend, code=2)
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout.removeprefix("building\n")


def test_a_model_that_cannot_be_quantized(project: Path, lowbit: Any) -> None:
    assert "net:three gives an int" in lowbit("quantize", "net:three", "--preset", "dynamic", code=3).stderr
    project.joinpath("broken.pt2").write_text("nothing", encoding="utf-8")
    said = lowbit("quantize", "broken.pt2", "--preset", "dynamic", code=3).stderr
    assert "broken.pt2 is a text file of another kind, and no program" in said


def test_several_backends_on_one_model(project: Path, lowbit: Any) -> None:
    project.joinpath("words.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8))\n"
        "    return model, torch.zeros(2, 3, dtype=torch.long)\n",
        encoding="utf-8",
    )
    torch.save(torch.randint(10, (6, 3), dtype=torch.int32), "ids.pt")
    words = ("quantize", "words:build", "--calibration", "ids.pt", "--backend", "x86_inductor+embedding")
    data = json.loads(lowbit(*words, "--preset", "static-7-bit", "--json").stdout)
    assert {each["reason"] for each in data["operators"]} == {"embedding", "linear"}
