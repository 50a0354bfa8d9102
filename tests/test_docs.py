"""The pages of docs/ say what is so: their Python runs and prints what they show, their links lead somewhere,
and the reference has every public name.

``make docs`` writes what the code prints into the pages, for people to look at what changed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import pkgutil
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import attrs
import lowbit
import pytest
import torch
from click.testing import CliRunner
from lowbit.backends import registry as backends
from lowbit.backends.pipelines import PREPARE
from lowbit.ir.reasons import REASONS
from lowbit.passes import pass_class, pass_names
from lowbit.passes import registry as passes
from lowbit.passes.instruments.diff_to_json import SCHEMA
from lowbit.tools.cli import main

ROOT = Path(lowbit.__file__).parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

# A time is what the machine makes of it; other numbers with a decimal point come out of float arithmetic.
TIME = re.compile(r"\d+(?:\.\d+)? m?s\b")
DECIMAL = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")


@attrs.frozen
class Block:
    """A fenced block of a page; ``adjoins`` where nothing stands between it and the one before."""

    kind: str
    body: str
    adjoins: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found, end = [], 0
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE):
        found.append(Block(match[1].strip(), match[2], not text[end : match.start()].strip()))
        end = match.end()
    return found


@attrs.frozen
class Output:
    """What a block printed, and what the page shows, behind ``head``; None where it shows nothing."""

    printed: str
    shown: str | None
    head: str


def run(page: Path, module: ModuleType) -> Iterator[Output]:
    """Run the commands of ``page``, and its Python as if pasted into ``example.py`` block by block."""
    source = ""
    for block, after in itertools.pairwise([*blocks(page), Block("", "", False)]):
        caption = re.match(r":caption: (\S+\.\w+)\n\n", block.body)
        if caption is not None:
            Path(caption[1]).write_text(block.body[caption.end() :], encoding="utf-8")
        elif block.kind == "console" and "$ lowbit" in block.body:
            for command, shown in re.findall(
                r"^\$ lowbit (.*)\n((?:[^$].*\n|\n)*)", block.body, flags=re.MULTILINE
            ):
                result = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
                printed = result.output.replace(f"{Path.cwd()}/", "")
                yield Output(printed, shown, f"$ lowbit {command}\n")
        elif block.kind == "python":
            before, source = source.count("\n"), source + block.body
            # Exported models quote the lines that they come from.
            Path("example.py").write_text(source, encoding="utf-8")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * before + block.body, "example.py", "exec"), vars(module))
            shown = after.body if after.kind == "text" and after.adjoins else None
            yield Output(printed.getvalue(), shown, "```text\n")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module ``example``, in an empty folder; what it registers is forgotten afterwards."""
    example = ModuleType("example")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "example", example)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "160")
    # The C++ compiler would take most of the time; that Inductor compiles lowered models is tested with each
    # backend.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    known = dict(passes._classes), dict(backends._backends)
    random_state = torch.get_rng_state()
    yield example
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)
    torch.set_rng_state(random_state)
    for registry, before in zip((passes._classes, backends._backends), known, strict=True):
        registry.clear()
        registry.update(before)  # pyright: ignore


def mismatch(printed: str, shown: str) -> str | None:
    """Where two texts differ in more than times, the last digits of decimals and the width of columns."""
    lines = itertools.zip_longest(printed.strip().splitlines(), shown.strip().splitlines(), fillvalue="")
    for one, other in lines:
        words, others = (
            re.sub(r"[\s─]+", " ", DECIMAL.sub("#", TIME.sub("#", line))).strip() for line in (one, other)
        )
        found, wanted = (map(float, DECIMAL.findall(TIME.sub("", line))) for line in (one, other))
        if words != others or not all(
            abs(a - b) <= 0.02 + 0.1 * abs(b) for a, b in zip(found, wanted, strict=True)
        ):
            return f"the page shows {other!r}, and the code prints {one!r}"
    return None


@pytest.mark.usefixtures("linears_stay")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_python_runs(page: Path, module: ModuleType) -> None:
    for output in run(page, module):
        if output.shown is None:
            continue
        different = mismatch(output.printed, output.shown)
        if different and "LOWBIT_WRITE_DOCS" in os.environ:
            lines = [f"{line.rstrip()}\n" for line in output.printed.strip("\n").splitlines()]
            text = page.read_text(encoding="utf-8")
            new = text.replace(output.head + output.shown, output.head + "".join(lines), 1)
            page.write_text(new, encoding="utf-8")
        else:
            assert different is None, output.printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        if block.kind.startswith("{code-block}"):
            assert re.match(r":caption: (Not run by the tests: .|\S+\.\w+\n)", block.body)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings and of its labels."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8"))
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        target = target if target.exists() else target.with_suffix(".md")
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {
        (page.parent / line.strip()).with_suffix(".md")
        for page in PAGES
        for block in blocks(page)
        if block.kind == "{toctree}"
        for line in block.body.splitlines()
        if line and not line.startswith(":")
    }
    assert listed == set(PAGES) - {DOCS / "index.md"}


# The reference.


def named(path: str) -> Any:
    """The object of a dotted path; of a module and a function of one name, the function."""
    return resolve_name(":".join(path.rsplit(".", 1)))


def documented() -> dict[str, Any]:
    """What the reference has an entry of, by the path of the entry."""
    text = "".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    found = re.findall(r"^\.\. auto(\w+):: (\S+)\n((?:   .*\n)*)", text, flags=re.MULTILINE)
    paths = {path for kind, path, _ in found if kind != "module"}
    for kind, path, options in found:
        members = re.search(r":members:(.*)", options)
        if kind == "module" and members is not None:
            names = members[1].replace(",", " ").split() or resolve_name(path).__all__
            paths |= {f"{path}.{name}" for name in names}
    return {path: named(path) for path in sorted(paths)}


def public() -> dict[str, Any]:
    """What the package and the packages in it export."""
    packages = ["lowbit", "lowbit.errors"]
    packages += [
        module.name
        for module in pkgutil.walk_packages(lowbit.__path__, "lowbit.")
        if module.ispkg and re.fullmatch(r"lowbit\.(ir|passes|backends|tools)(\.\w+)?", module.name)
    ]
    return {
        f"{package}.{name}": named(f"{package}.{name}")
        for package in packages
        for name in getattr(resolve_name(package), "__all__", ())
    }


def test_the_reference_has_every_public_name() -> None:
    entries = documented()
    here = {id(thing) for thing in entries.values()}
    missing = [
        path
        for path, thing in public().items()
        if id(thing) not in here and not isinstance(thing, ModuleType)
    ]
    assert missing == []


def test_everything_is_in_the_reference_once() -> None:
    entries = [path for path, thing in documented().items() if callable(thing)]
    things = [id(thing) for thing in documented().values() if callable(thing)]
    assert [path for path, thing in zip(entries, things, strict=True) if things.count(thing) > 1] == []


def test_what_the_site_generates_is_complete() -> None:
    generated = runpy.run_path(str(DOCS / "extensions" / "generated.py"))
    directives = generated["DIRECTIVES"]
    used = {block.kind.strip("{}") for page in PAGES for block in blocks(page)}
    assert set(directives) <= used
    text = {name: write() for name, write in directives.items()}
    own = [name for name in pass_names() if pass_class(name).__module__.startswith("lowbit.passes")]
    assert [name for name in own if f"`{name} <" not in text["passes"]] == []
    assert [name for name in PREPARE.names if name not in text["flow"]] == []
    assert [code for code in REASONS if f"`{code}`" not in text["reasons"]] == []
    assert [name for name in main.commands if f"## lowbit {name}\n" not in text["commands"]] == []
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert [key for key in schema["properties"] if f"`{key}`" not in text["diff-schema"]] == []
