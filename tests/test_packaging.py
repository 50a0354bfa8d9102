"""What is installed is what is in the repository."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import lowbit

ROOT = Path(lowbit.__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# Beside the package: code that is not installed, and what tools generate.
OUTSIDE = {"tests", "benchmarks", "examples", "docs", "build", "dist", "out"}


def modules() -> list[Path]:
    """The modules in the folders of the package, relative to the root."""
    found = (path.relative_to(ROOT) for path in ROOT.glob("*/**/*.py"))
    return [path for path in found if path.parts[0] not in OUTSIDE and not path.parts[0].startswith(".")]


def test_the_listed_packages_are_the_folders() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == {"lowbit"} | {".".join(["lowbit", *path.parent.parts]) for path in modules()}


def test_every_folder_of_modules_is_a_package() -> None:
    bare = {str(path.parent) for path in modules() if not (ROOT / path.parent / "__init__.py").exists()}
    assert not bare, "these import as namespaces in the repository and are lost in a wheel"


def test_the_installed_version_is_the_declared_one() -> None:
    assert metadata.version("lowbit") == PYPROJECT["project"]["version"]


def test_the_command_line_starts_where_it_is_declared() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="lowbit")
    assert entry.value == PYPROJECT["project"]["scripts"]["lowbit"]
    assert callable(entry.load())
