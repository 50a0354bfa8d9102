"""The page: one file, whole, small, safe and the same every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import lowbit
import pytest
import torch
from lowbit.errors import GraphInputError
from lowbit.tools.models import linear_relu_chain
from lowbit.tools.report import Report, write_report
from lowbit.tools.report import page as page_module

HOSTILE = "</script><script>alert(1)</script><!-- \u2028 \" ' &amp; <b>"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        at = len(self.elements) - 1
        self.texts[at] = self.texts.get(at, "") + data

    def text_of(self, tag: str) -> list[str]:
        return [self.texts.get(i, "").strip() for i, (name, _) in enumerate(self.elements) if name == tag]

    @property
    def data(self):
        return json.loads(self.text_of("script")[0])


def test_it_loads_nothing(flow, tmp_path: Path) -> None:
    text = write_report(tmp_path / "deep" / "report.html", flow.report, title="Net").read_text("utf-8")
    page = Page(text)
    for _tag, attributes in page.elements:
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,"
    styles = "".join(page.text_of("style"))
    assert "url(" not in styles
    assert "@import" not in styles
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    script = page.text_of("script")[1]
    assert not re.search(r"\bfetch\(|XMLHttpRequest|\bimport\(|WebSocket|innerHTML|\beval\(", script)


def test_the_title_is_told(flow, tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "r.html", flow.report, title="Net & <co>").read_text("utf-8"))
    assert page.text_of("h1") == ["Net & <co>"]
    assert page.data["title"] == "Net & <co>"


def test_no_text_can_end_the_script(run_flow, tmp_path: Path) -> None:
    flow = run_flow()
    for run in flow.report.runs:
        for moment in run.moments:
            for key, row in moment.rows.items():
                moment.rows[key] = row._replace(source=HOSTILE, target=HOSTILE)
    page = Page(write_report(tmp_path / "r.html", flow.report, title=HOSTILE).read_text("utf-8"))
    assert len(page.text_of("script")) == 2
    assert HOSTILE in page.data["strings"]
    assert page.text_of("h1") == [HOSTILE]
    assert "alert" not in "".join(page.text_of("script")[1:])


def test_the_same_flow_gives_the_same_bytes(run_flow, tmp_path: Path) -> None:
    pages = []
    for i in range(2):
        flow = run_flow()
        path = write_report(tmp_path / f"{i}.html", flow.report, inputs=flow.inputs, with_times=False)
        pages.append(path.read_bytes())
    assert pages[0] == pages[1]


FRESH = """
import sys, runpy
flow = runpy.run_path(sys.argv[1], run_name=sys.argv[3])["run_flow"]()
from lowbit.tools.report import write_report
write_report(sys.argv[2], flow.report, inputs=flow.inputs, with_times=False)
"""


def test_another_process_gives_the_same_bytes(run_flow, tmp_path: Path) -> None:
    flow, here, there = run_flow(), tmp_path / "here.html", tmp_path / "there.html"
    write_report(here, flow.report, inputs=flow.inputs, with_times=False)
    # The page names the classes of modules, so they must be of a module of the same name.
    module = flow.report.kinds["block"].rpartition(".")[0]
    conftest = str(Path(__file__).with_name("conftest.py"))
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"}
    arguments = [sys.executable, "-c", FRESH, conftest, str(there), module]
    subprocess.run(arguments, check=True, env=environment, cwd=tmp_path)
    assert there.read_bytes() == here.read_bytes()


def test_two_thousand_nodes_are_less_than_three_megabytes(run_flow, tmp_path: Path) -> None:
    flow = run_flow(linear_relu_chain(200), torch.randn(2, 8))
    assert max(len(moment.rows) for run in flow.report.runs for moment in run.moments) >= 2000
    path = write_report(tmp_path / "r.html", flow.report, inputs=flow.inputs)
    assert path.stat().st_size <= 3_000_000
    assert len(Page(path.read_text("utf-8")).data["errors"]) > 200


def test_errors_are_of_the_model_as_it_computes(flow, tmp_path: Path) -> None:
    path = write_report(tmp_path / "r.html", flow.report, inputs=flow.inputs)
    data = Page(path.read_text("utf-8")).data
    rows = flow.report.runs[-1].moments[-1].rows
    errors = {rows[key].name: sqnr for key, sqnr, _largest, own in data["errors"] if not own}
    assert {"conv2d", "relu", "linear"} <= set(errors)
    assert all(15 < sqnr < 80 for sqnr in errors.values())
    assert Page(write_report(path, flow.report).read_text("utf-8")).data["errors"] is None


def test_a_report_that_saw_nothing(tmp_path: Path) -> None:
    with pytest.raises(GraphInputError, match=r"has seen no pass(.|\n)*instruments=\[report\]"):
        write_report(tmp_path / "r.html", Report())


def test_errors_need_both_verbs(run_flow, tmp_path: Path) -> None:
    flow = run_flow()
    del flow.report.runs[0]
    with pytest.raises(GraphInputError, match=r"prepared and then converted(.|\n)*inputs=None"):
        write_report(tmp_path / "r.html", flow.report, inputs=flow.inputs)
    assert not (tmp_path / "r.html").exists()


def test_every_part_of_the_page_is_used_and_installed() -> None:
    folder = Path(page_module.__file__).parent / "page"
    assert {path.name for path in folder.glob("*.js")} == set(page_module._SCRIPTS)
    assert {path.name for path in folder.iterdir()} == {*page_module._SCRIPTS, "page.html", "page.css"}
    pyproject = tomllib.loads((Path(lowbit.__file__).parent / "pyproject.toml").read_text("utf-8"))
    assert pyproject["tool"]["setuptools"]["package-data"]["lowbit.tools.report"] == ["page/*"]
