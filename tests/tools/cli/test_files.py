"""Files are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from lowbit.errors import OptionError
from lowbit.tools.cli.quantizing.files import check_is_writable, written_whole


def write(path: Path, text: str) -> None:
    with written_whole(path) as draft:
        assert draft.suffix == path.suffix
        draft.write_text(text, encoding="utf-8")
        draft.with_suffix(".more").write_text(text, encoding="utf-8")


def test_a_file_and_what_belongs_to_it_are_written_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "model.pt2"
    write(path, "first")
    write(path, "second")
    names = {each.name: each.read_text(encoding="utf-8") for each in path.parent.iterdir()}
    assert names == {"model.pt2": "second", "model.more": "second"}


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    write(path, "first")
    with pytest.raises(UnicodeEncodeError), written_whole(path) as draft:
        draft.open("w", encoding="ascii").writelines(["half", "\N{SNOWMAN}"])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.more", "model.pt2"]
    assert path.read_text(encoding="utf-8") == "first"


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "any.name", tmp_path / "links" / "model.pt2"
    link.parent.mkdir()
    link.symlink_to(real)
    for text in ("first", "second"):
        write(link, text)
        assert link.is_symlink()
        assert link.resolve() == real
        assert real.read_text(encoding="utf-8") == text
    assert [each.name for each in real.parent.iterdir()] == ["any.name"]
    assert sorted(each.name for each in link.parent.iterdir()) == ["model.more", "model.pt2"]


@pytest.mark.parametrize("name", ["model.pt2", "model.more"])
def test_what_is_no_file_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.pt2"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / name).symlink_to(tmp_path / "pipe")
    with pytest.raises(OptionError, match="a pipe"):
        write(path, "text")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([name, "pipe"]), "nothing is written"
    assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)


@pytest.mark.parametrize("name", ["pipe", "to-pipe", "to-nowhere/x", "folder"])
def test_it_is_refused_before_there_is_anything_to_write(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-nowhere").symlink_to(os.devnull)
    with pytest.raises(OptionError, match="--output"):
        check_is_writable(tmp_path / name, "output")


def test_a_place_that_nobody_can_write_to_is_found_before_the_work() -> None:
    with pytest.raises(OptionError, match="--output: nothing can be written to /proc"):
        check_is_writable(Path("/proc/model.pt2"), "output", ".pt2")
