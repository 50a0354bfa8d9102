"""The commands on saved graphs: opt, diff, explain, bisect."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lowbit import Stage, X86InductorQuantizer, calibrate, convert_pt2e, coverage, get_stage, prepare_pt2e
from lowbit.backends.x86_inductor import get_default_x86_inductor_quantization_config
from lowbit.ir.meta import BACKEND_KEY
from lowbit.ir.text import load_graph, save_graph, to_text
from lowbit.tools.cli.quantizing.target import find_target
from lowbit.tools.cli.summary import coverage_as_data
from torch import nn


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a float, a prepared and a converted graph of a small network."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Softplus()).eval()
    image = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(model, (image,)).module()
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(preset))
    calibrate(prepared, [image], progress=False)
    save_graph(exported, folder / "float.lowbit")
    save_graph(prepared, folder / "prepared.lowbit")
    save_graph(convert_pt2e(prepared), folder / "converted.lowbit")
    return folder


def test_opt_runs_a_pipeline_and_says_what_changed(project: Path, graphs: Path, lowbit: Any) -> None:
    words = ("opt", "normalize, fold-batch-norm, fold-batch-norm", graphs / "float.lowbit")
    result = lowbit(*words, "-o", "folded.lowbit")
    assert "- %batch_norm: f32[2, 4, 6, 6] = aten.batch_norm.default(" in result.stdout
    assert "02 fold-batch-norm: nothing changed" in result.stdout
    assert "\x1b" not in result.stdout
    folded = load_graph("folded.lowbit")
    assert not folded.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    assert sorted(path.name for path in project.iterdir()) == [
        *("folded.lowbit", "folded.safetensors", "net.py"),
    ]
    assert " 1.weight" not in lowbit(*words, "--stat").stdout
    assert "removed" in lowbit(*words, "--stat").stdout
    data = json.loads(lowbit(*words, "--json").stdout)
    assert [each["pass"] for each in data["passes"]] == ["normalize", "fold-batch-norm", "fold-batch-norm"]
    assert data["passes"][1]["diff"]["counts"]["removed"] >= 1
    assert (data["stage"], data["output"], data["coverage"]) == ("FLOAT", None, None)
    assert "coverage" not in result.stdout


def test_opt_goes_the_way_of_the_verbs(project: Path, graphs: Path, lowbit: Any) -> None:
    prepare = "normalize, fold-batch-norm, annotate, resolve-sharing, insert-observers"
    preset = ("--backend", "x86_inductor", "--preset", "static-7-bit")
    lowbit("opt", prepare, graphs / "float.lowbit", *preset, "-o", "prepared.lowbit")
    exported = load_graph(graphs / "float.lowbit")
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config))
    assert to_text(load_graph("prepared.lowbit")) == to_text(prepared)
    # Whose it is, the graph says itself.
    said = lowbit("opt", "emit-inductor", graphs / "converted.lowbit", "-o", "lowered.lowbit").stdout
    assert f"\ncoverage: {coverage(load_graph('lowered.lowbit'))}\n" in said
    lowered = load_graph("lowered.lowbit")
    assert get_stage(lowered) is Stage.LOWERED
    assert any("qconv" in str(node.target) for node in lowered.graph.nodes)


def test_opt_refuses(project: Path, graphs: Path, lowbit: Any) -> None:
    graph = graphs / "float.lowbit"
    assert "did you mean 'normalize'" in lowbit("opt", "normalise", graph, code=2).stderr
    assert "ends with a comma" in lowbit("opt", "normalize,", graph, code=2).stderr
    assert "no file nothing.lowbit" in lowbit("opt", "normalize", "nothing.lowbit", code=2).stderr
    # Before anything is read or run.
    said = lowbit("opt", "normalize", "nothing.lowbit", "-o", "x.safetensors", code=2).stderr
    assert "error: --output: x.safetensors is where the tensors would go" in said
    said = lowbit("opt", "normalize", graph, "--preset", "static", code=2).stderr
    assert "--preset has no effect: the pipeline does not have the pass annotate" in said
    said = lowbit("opt", "observers-to-qdq", graph, code=3).stderr
    assert "stage OBSERVED" in said
    assert "lowbit passes lists the stages" in said
    assert sorted(path.name for path in project.iterdir()) == ["net.py"], "nothing half-written stays"


def test_opt_says_for_whom_it_annotates(project: Path, graphs: Path, lowbit: Any) -> None:
    target = find_target(None, None)
    prepare = "normalize, fold-batch-norm, annotate, resolve-sharing, insert-observers"
    data = json.loads(lowbit("opt", prepare, graphs / "float.lowbit", "-o", "p.lowbit", "--json").stdout)
    assert data["notes"] == [*target.notes]
    assert load_graph("p.lowbit").meta[BACKEND_KEY] == target.backend.name
    calibrate(prepared := load_graph("p.lowbit"), [torch.randn(2, 3, 8, 8)], progress=False)
    save_graph(prepared, "p.lowbit")
    lowbit("opt", "observers-to-qdq", "p.lowbit", "-o", "q.lowbit")
    assert load_graph("q.lowbit").meta[BACKEND_KEY] == target.backend.name


def test_diff_says_whether_graphs_differ(project: Path, graphs: Path, lowbit: Any) -> None:
    before, after = graphs / "float.lowbit", graphs / "prepared.lowbit"
    same = lowbit("diff", before, before)
    assert not same.output
    found = lowbit("diff", before, after, code=1).stdout
    assert found.startswith("stage: FLOAT → OBSERVED\n")
    assert "+ %activation_post_process" in found
    lines = lowbit("diff", before, after, "--stat", code=1).stdout.splitlines()
    at = lines.index("+ added   - removed   ~ changed   > moved")
    stage, *modules, counts, total = lines[:at]
    legend = "\n".join(lines[at:])
    assert stage == "stage: FLOAT → OBSERVED"
    data = json.loads(lowbit("diff", before, after, "--json", code=1).stdout)["diff"]
    assert total == f" {len(data['nodes'])} nodes in {len(modules)} modules"
    assert sum(int(line.split("|")[1].split()[0]) for line in modules) == len(data["nodes"])
    for aspect, count in data["counts"].items():
        assert f"{count} {aspect}" in counts
        assert aspect in legend
    helped = [line.strip() for line in lowbit("diff", "--help").stdout.splitlines()]
    assert {line.strip() for line in lines[at:]} <= set(helped), "the legend is in the help as it is printed"
    assert (
        "+ added   - removed   - and + changed   > moved   @ attributes: weights, observers, nested"
        in " ".join(helped)
    )
    data = json.loads(lowbit("diff", before, after, "--json", code=1).stdout)
    assert data["same"] is False
    assert data["stages"] == ["FLOAT", "OBSERVED"]
    assert {"counts", "nodes", "attributes"} == set(data["diff"])


def test_explain_says_why_one_layer_stayed_float(project: Path, graphs: Path, lowbit: Any) -> None:
    graph = graphs / "converted.lowbit"
    assert "left float: pointwise 1" in lowbit("explain", graph).stdout
    said = lowbit("explain", graph, "3").stdout
    assert "%softplus (aten.softplus.default) stays float: pointwise" in said
    data = json.loads(lowbit("explain", graph, "softplus", "--json").stdout)
    assert [(each["node"], each["reason"]) for each in data["operators"]] == [("softplus", "pointwise")]
    assert list(data)[:4] == ["format", "version", "about", "coverage"]
    assert data["coverage"] == coverage_as_data(coverage(load_graph(graph)))
    assert "softplus" in lowbit("explain", graph, "softpluss", code=2).stderr


def test_explain_says_why_tensors_share(project: Path, graphs: Path, lowbit: Any) -> None:
    graph = graphs / "prepared.lowbit"
    words = ("explain", graph, "--shared", "input_1", "input_1 -> conv2d")
    assert "%input_1" in lowbit(*words).stdout
    data = json.loads(lowbit(*words, "--json").stdout)
    assert list(data["sharing"]) == ["a", "b", "shares", "chain", "why_not", "group"]
    assert data["sharing"]["shares"] is True
    assert "two tensors" in lowbit("explain", graph, "softplus", *words[2:], code=2).stderr


CHECKS = """
import sys
from lowbit import Stage, get_stage

def good(model):
    return True

def never(model):
    return False

def wrong(model):
    return 1 / 0

def before_qdq(model):
    print("checking")
    return get_stage(model) not in (Stage.QDQ, Stage.LOWERED)

if __name__ == "__main__":
    text = open(sys.argv[-1], encoding="utf-8").read()
    print("loud")
    sys.exit("stage QDQ" in text or "stage LOWERED" in text)
"""


def test_bisect_finds_the_pass_that_breaks_a_check(project: Path, graphs: Path, lowbit: Any) -> None:
    project.joinpath("checks.py").write_text(CHECKS, encoding="utf-8")
    graph = graphs / "prepared.lowbit"
    assert "the check never fails" in lowbit("bisect", graph, "--check", "checks:good").stdout
    fails = ("--check", "checks:never")
    first, _, do = lowbit("bisect", graphs / "converted.lowbit", *fails, code=1).stdout.splitlines()
    assert first == "the check fails before any pass"
    assert do.startswith(
        f"  do: what broke it ran before, as {graphs / 'converted.lowbit'} is at stage QDQ: name "
    )
    assert f"{graphs / 'prepared.lowbit'} or {graphs / 'float.lowbit'} if lowbit quantize --save-graphs" in do
    assert "prepared.lowbit or" not in lowbit("bisect", graph, *fails, code=1).stdout.partition("name an")[2]
    words = ("bisect", graphs / "float.lowbit", "--pipeline", "normalize", *fails)
    assert lowbit(*words, code=1).stdout.splitlines()[-1].startswith("  do: the float model itself fails: ")
    raised, note, do = lowbit("bisect", graph, "--check", "checks:wrong", code=1).stdout.splitlines()[-3:]
    assert (raised, note) == (
        "  raised: ZeroDivisionError: division by zero",
        "    it comes from the check checks:wrong",
    )
    assert do.startswith("  do: see whether the check is right: ")
    result = lowbit("bisect", graph, "--check", "checks:before_qdq", "--json", code=1)
    data = json.loads(result.stdout)
    assert (data["verdict"], data["pass_name"], data["confirmed"]) == ("found", "observers-to-qdq", True)
    assert "checking" in result.stderr
    words = ("--pipeline", "normalize, fold-batch-norm", "--check", "checks:good")
    lowbit("bisect", graphs / "float.lowbit", *words)


@pytest.mark.parametrize(
    "refused",
    [
        ("float", ("--pipeline", "normalize", "--calibration", "x.npz"), "--calibration has no effect"),
        ("float", ("--pipeline", "normalize", "--left-float", "x"), "--left-float has no effect"),
        ("float", ("--pipeline", "normalize", "--preset", "static"), "does not have the pass annotate"),
        ("prepared", ("--preset", "static", "--left-float", "x"), "--preset and --left-float have no effect"),
        ("prepared", ("--calibration", "x.npz"), "the graph is prepared already"),
        ("converted", ("--left-float", "x"), "the graph is prepared already"),
        ("float", ("--pipeline", "normalize, annotate", "--left-float", "nosuch"), "named 'nosuch'"),
    ],
)
def test_bisect_refuses_options_without_effect(
    project: Path, graphs: Path, lowbit: Any, refused: tuple[str, tuple[str, ...], str]
) -> None:
    graph, words, said = refused
    assert said in lowbit("bisect", graphs / f"{graph}.lowbit", "--check", "true", *words, code=2).stderr


def test_bisect_by_a_script_and_from_the_float_model(
    project: Path, graphs: Path, lowbit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The script that needs no torch to look at the text is quick.
    script = CHECKS.replace("from lowbit import Stage, get_stage", "")
    project.joinpath("checks.py").write_text(script, encoding="utf-8")
    torch.save(torch.randn(4, 3, 8, 8), "data.pt")
    words = ("bisect", graphs / "float.lowbit", "--backend", "x86_inductor", "--preset", "static-7-bit")
    check = ("--check", f"{sys.executable} checks.py")
    found = lowbit(*words, "--calibration", "data.pt", *check, code=1).stdout
    assert "behind" in found
    assert "observers-to-qdq" in found
    assert "give --calibration" in lowbit(*words, *check, code=2).stderr
    said = lowbit(*words, "--calibration", "data.pt", *check, "--left-float", "nosuch", code=2).stderr
    assert "no module with operators to leave float named 'nosuch'" in said
    assert "no program" in lowbit(*words, "--calibration", "data.pt", "--check", "nobody", code=2).stderr
    # What a pass before made of the model may be to blame.
    torch.save(torch.full((4, 3, 8, 8), torch.nan), "data.pt")
    assert "behind the pass calibrate" in lowbit(*words, "--calibration", "data.pt", *check, code=1).stdout
