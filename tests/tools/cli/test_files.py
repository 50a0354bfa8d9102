"""Files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from lowbit.tools.cli.quantizing.files import written_whole


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
