"""The commands that list: backends, capabilities, passes; and what all commands have in common."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import lowbit as package
import pytest
from click.testing import CliRunner
from lowbit.passes import pass_names
from lowbit.tools.cli import main
from lowbit.tools.cli.failures import EXIT_CODES
from rich.console import Console

ROOT = Path(package.__file__).parent
IN_TREE = ["arm_inductor", "embedding", "x86_inductor", "xnnpack", "xpu_inductor"]


def test_backends_are_listed_with_their_presets(lowbit: Any) -> None:
    lines = lowbit("backends").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split()[0] in IN_TREE] == IN_TREE
    found = {each["name"]: each for each in json.loads(lowbit("backends", "--json").stdout)["backends"]}
    assert found["xnnpack"] == {
        "name": "xnnpack",
        "presets": ["static", "static-per-channel", "dynamic"],
        "training_presets": ["static-qat", "dynamic-qat"],
        "default_preset": "static",
        "is_default": False,
        "runs_here": True,
        "lowered_here": False,
    }


def test_the_page_of_capabilities_is_current(lowbit: Any) -> None:
    page = (ROOT / "docs/capabilities.md").read_text(encoding="utf-8")
    generated = lowbit("capabilities", "--markdown", *IN_TREE).stdout
    assert page[page.index("\n## ") + 1 :] == generated, "make docs writes it anew"


def test_capabilities_of_one_backend_and_of_a_composition(lowbit: Any) -> None:
    alone = lowbit("capabilities", "embedding").stdout.splitlines()
    assert alone[1].split()[:7] == ["embedding", "embedding", "float32", "by", "int8", "→", "float32"]
    both = lowbit("capabilities", "x86_inductor+embedding").stdout
    assert "embedding" in both
    assert "conv2d-add-relu" in both
    (cell,) = json.loads(lowbit("capabilities", "embedding", "--json").stdout)["cells"]
    assert (cell["pattern"], cell["dtypes"]) == ("embedding", "float32 by int8 → float32")


@pytest.mark.parametrize("width", [80, 100])
def test_capabilities_fit_a_terminal(lowbit: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("lowbit.tools.cli.terminal.out", lambda: console)
    lowbit("capabilities")
    text = shown.getvalue()
    assert max(map(len, text.splitlines())) <= width
    words = set(re.split(r"[\s,:]+", text))
    cells = json.loads(lowbit("capabilities", "--json").stdout)["cells"]
    supported = [cell for cell in cells if cell["supported"]]
    assert {cell["pattern"] for cell in supported} <= words
    assert {cell["preset"] for cell in supported} <= words


def test_a_backend_that_is_not_there(lowbit: Any) -> None:
    assert "x86_inductor" in lowbit("capabilities", "x86_inducter", code=2).stderr
    for name in ("x86", "x86_"):
        assert lowbit("capabilities", name, code=2).stderr.endswith("do: did you mean 'x86_inductor'?\n")


def test_passes_are_listed_with_what_they_do(lowbit: Any) -> None:
    found = {each["name"]: each for each in json.loads(lowbit("passes", "--json").stdout)["passes"]}
    assert tuple(found) == pass_names()
    assert found["normalize"]["requires"] == ["FLOAT"]
    assert found["normalize"]["options"] == [{"name": "keep_gradients", "default": "False"}]
    assert found["annotate"]["ensures"] == "ANNOTATED"
    in_tree = {name: each for name, each in found.items() if "`" in each["does"] or not each["does"]}
    assert not in_tree, "a sentence about each, without the markup of docstrings"
    table = lowbit("passes").stdout
    assert all(f"\n{name} " in table for name in found)


def test_passes_of_ones_own_are_listed_once_they_are_imported(project: Path, lowbit: Any) -> None:
    project.joinpath("own.py").write_text(
        "from lowbit import Stage, register_pass\n"
        "@register_pass\n"
        "class Own:\n"
        '    """Does nothing. At all."""\n'
        '    name = "pass-of-a-test-of-the-command-line"\n'
        "    requires = frozenset(Stage)\n"
        "    ensures = None\n"
        "    def run(self, gm, context):\n"
        "        return False\n",
        encoding="utf-8",
    )
    assert "command-line" not in lowbit("passes").stdout
    assert "Does nothing." in lowbit("passes", "--import", "own").stdout
    assert "no module 'owm'" in lowbit("passes", "--import", "owm", code=2).stderr


@pytest.mark.parametrize("name", sorted(main.commands))
def test_each_command_has_json_with_documented_keys_and_traceback(lowbit: Any, name: str) -> None:
    said = lowbit(name, "--help").stdout
    assert "--json" in said
    assert "--traceback" in said
    assert f'format, version     "lowbit-{name}", 1' in said.replace('version   "', 'version     "')
    short = main.commands[name].get_short_help_str(60)
    assert not short.endswith("..."), "the first sentence fits into the list of commands"


@pytest.mark.parametrize("words", [("backends",), ("capabilities",), ("passes",), ("completion", "bash")])
def test_json_begins_with_its_format_and_ends_with_warnings(lowbit: Any, words: tuple[str, ...]) -> None:
    result = lowbit(*words, "--json")
    keys = list(json.loads(result.stdout))
    assert keys[:2] == ["format", "version"]
    assert keys[-1] == "warnings"
    assert not result.stderr


def test_the_help_lists_the_exit_codes(lowbit: Any) -> None:
    said = " ".join(lowbit("--help").stdout.split())
    assert all(f"{code} {meaning}" in said for code, meaning in EXIT_CODES.items())


def test_it_also_runs_inside_a_program() -> None:
    """As click says: without its standalone mode, errors are raised."""
    with pytest.raises(package.errors.UnknownNameError):
        main(["capabilities", "nobody"], standalone_mode=False)
    assert CliRunner().invoke(main, ["backends"], standalone_mode=False).exit_code == 0


def test_every_command_has_both_help_options_by_itself_too() -> None:
    for command in main.commands.values():
        assert CliRunner().invoke(command, ["-h"]).exit_code == 0
        assert CliRunner().invoke(main, [command.name, "-h"]).exit_code == 0
