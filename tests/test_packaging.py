"""What is installed is what is in the repository."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import lowbit

ROOT = Path(lowbit.__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders_with_code() -> set[str]:
    folders = (path.parent.relative_to(ROOT) for path in ROOT.glob("*/**/__init__.py"))
    return {".".join(["lowbit", *folder.parts]) for folder in folders if not folder.parts[0].startswith(".")}


def test_the_listed_packages_are_the_folders() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == {"lowbit"} | folders_with_code()


def test_every_folder_of_modules_is_a_package() -> None:
    outside = {"tests", "benchmarks", "examples", "docs", "build", "dist", "out"}
    folders = {path.parent for path in ROOT.glob("*/**/*.py")}
    bare = [
        str(folder)
        for folder in folders
        if not (folder / "__init__.py").exists()
        and folder.relative_to(ROOT).parts[0] not in outside
        and not folder.relative_to(ROOT).parts[0].startswith(".")
    ]
    assert not bare, "a wheel would leave these out"


def test_the_installed_version_is_the_declared_one() -> None:
    assert metadata.version("lowbit") == PYPROJECT["project"]["version"]


def test_the_command_line_starts_where_it_is_declared() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="lowbit")
    assert entry.value == PYPROJECT["project"]["scripts"]["lowbit"]
    assert callable(entry.load())
