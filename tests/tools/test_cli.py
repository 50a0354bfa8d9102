"""The commands that list backends and what they can do."""

from __future__ import annotations

from pathlib import Path

import lowbit
from click.testing import CliRunner
from lowbit.tools.cli import main

ROOT = Path(lowbit.__file__).parent
IN_TREE = ["arm_inductor", "embedding", "x86_inductor", "xnnpack", "xpu_inductor"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_backends_are_listed() -> None:
    assert [name for name in run("backends").split() if name in IN_TREE] == IN_TREE


def test_the_page_of_capabilities_is_current() -> None:
    page = (ROOT / "docs/capabilities.md").read_text(encoding="utf-8")
    generated = run("capabilities", "--markdown", *IN_TREE)
    assert page[page.index("\n## ") + 1 :] == generated, "make docs writes it anew"


def test_capabilities_of_one_backend_and_of_a_composition() -> None:
    alone = run("capabilities", "embedding").splitlines()
    assert alone[1].split()[:7] == ["embedding", "embedding", "float32", "by", "int8", "→", "float32"]
    both = run("capabilities", "x86_inductor+embedding")
    assert "embedding" in both
    assert "conv2d-add-relu" in both


def test_a_backend_that_is_not_there() -> None:
    result = CliRunner().invoke(main, ["capabilities", "x86_inducter"])
    assert result.exit_code == 1
    assert "x86_inductor" in result.output
