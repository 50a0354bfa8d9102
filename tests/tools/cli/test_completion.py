"""Shell completion: the scripts, run by the shells that are there."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["quan"], ["quantize"]),
        (["--ver"], ["--version"]),
        (["quantize", "--out"], ["--output"]),
        (["quantize", "--left-float", "head", "--verify", "n"], ["numeric"]),
        (["quantize", "--backend", "x"], ["x86_inductor", "xnnpack", "xpu_inductor"]),
        (["capabilities", "xn"], ["xnnpack"]),
        (["completion", "f"], ["fish"]),
        (["quantize", "--output", "int"], []),  # files, which the shell adds by itself
    ],
)
def test_bash_completes(tmp_path: Path, lowbit: Any, words: list[str], wanted: list[str]) -> None:
    script = tmp_path / "lowbit.bash"
    script.write_text(lowbit("completion", "bash").stdout, encoding="utf-8")
    line = shlex.join(["lowbit", *words])
    asked = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _lowbit; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    found = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout
    assert [word for word in found.split() if not word.startswith("fictional")] == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_read_their_scripts(tmp_path: Path, lowbit: Any, shell: str) -> None:
    script = tmp_path / "script"
    script.write_text(lowbit("completion", shell).stdout, encoding="utf-8")
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    subprocess.run([shell, "-n", str(script)], check=True)


def test_fish_is_told_commands_options_and_values(lowbit: Any) -> None:
    lines = lowbit("completion", "fish").stdout.splitlines()
    assert "complete -c lowbit -n __fish_use_subcommand -f -a doctor -d " in "\n".join(lines)
    verify = next(line for line in lines if " -l verify " in line)
    assert "__fish_seen_subcommand_from quantize" in verify
    assert "-x -a 'stages numeric'" in verify
    assert " -l output -s o -r " in "\n".join(lines)


def test_zsh_has_the_same_words(lowbit: Any) -> None:
    script = lowbit("completion", "zsh").stdout
    assert script.startswith("#compdef lowbit\n")
    assert "'quantize --verify') found='stages numeric' ;;" in script


def test_another_shell(lowbit: Any) -> None:
    assert "'tcsh'" in lowbit("completion", "tcsh", code=2).stderr
