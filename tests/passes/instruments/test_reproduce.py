"""Reproducers: what is written, what is not, and that the error of the pass arrives whatever happens."""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import attrs
import pytest
import torch
from lowbit import PassManager, Stage, X86InductorQuantizer
from lowbit.errors import ContractError, PassFailedError, StageError, UnsupportedError
from lowbit.passes import Pass, PassContext, Pipeline, register_pass, registry
from lowbit.passes.instruments import Reproducer, Verify, reproducer_file
from torch.fx import GraphModule


@attrs.frozen
class Boom:
    """Raises, if told to."""

    name: ClassVar[str] = "boom"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = Stage.FLOAT
    raises: bool = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        if self.raises:
            raise RuntimeError("boom")
        return False


class Looks:
    """An instrument that raises."""

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Nothing to do."""

    def after(self, pass_: Pass, gm: GraphModule, change: Any) -> None:
        raise ContractError("numbers changed")


class StubbornQuantizer(X86InductorQuantizer):
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("stubborn")


@pytest.fixture(autouse=True)
def _boom_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    register_pass(Boom)


@pytest.fixture(scope="module")
def linear() -> GraphModule:
    model = torch.nn.Linear(64, 64).eval()
    with torch.no_grad():
        model.weight.zero_()
    return torch.export.export(model, (torch.zeros(1, 64),)).module()


def fail(gm: GraphModule, reproducer: Reproducer, pass_: Any = None, context: Any = None) -> PassFailedError:
    with pytest.raises(PassFailedError, match="boom") as raised:
        PassManager((reproducer, Verify())).run(gm, Pipeline((pass_ or Boom(),)), context)
    return raised.value


def about(path: Path) -> Any:
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("about.json"))


def test_a_folder_that_cannot_be_made(
    linear: GraphModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    reproducer = Reproducer(tmp_path / "file" / "folder")
    error = fail(linear, reproducer)
    assert reproducer.written == []
    assert not hasattr(error, "__notes__")
    assert "no reproducer of boom was written: NotADirectoryError" in caplog.text


def test_a_quantizer_that_cannot_be_pickled(linear: GraphModule, tmp_path: Path) -> None:
    reproducer = Reproducer(tmp_path)
    error = fail(linear, reproducer, context=PassContext(StubbornQuantizer()))
    (path,) = reproducer.written
    assert about(path)["lacks"] == ["the quantizer (stubborn): pass quantizer=…"]
    assert error.__notes__ == [
        f"to see it again: lowbit.tools.bisect.replay({str(path)!r}), as the file lacks the quantizer "
        "(stubborn): pass quantizer=…"
    ]


def test_what_cannot_be_written_leaves_nothing(
    linear: GraphModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reproducer = Reproducer(tmp_path)
    fail(linear, reproducer)
    good = tmp_path / "boom.zip"
    content = good.read_bytes()
    for refusal in (UnsupportedError("no text"), TypeError("no text either")):
        with patch.object(reproducer_file, "take_apart", side_effect=refusal):
            fail(linear, reproducer)
        assert str(refusal) in caplog.text
    with patch.object(zipfile.ZipFile, "writestr", side_effect=OSError("disk full")):
        fail(linear, reproducer)
    assert "disk full" in caplog.text
    assert good.read_bytes() == content
    assert list(tmp_path.iterdir()) == reproducer.written == [good]


def test_a_reproducer_is_never_overwritten(linear: GraphModule, tmp_path: Path) -> None:
    for _ in range(2):
        reproducer = Reproducer(tmp_path)
        fail(linear, reproducer)
        fail(linear, reproducer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "boom-2.zip",
        "boom-3.zip",
        "boom-4.zip",
        "boom.zip",
    ]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_the_file_is_compressed(linear: GraphModule, tmp_path: Path) -> None:
    reproducer = Reproducer(tmp_path)
    fail(linear, reproducer)
    with zipfile.ZipFile(reproducer.written[0]) as file:
        assert all(info.compress_type == zipfile.ZIP_DEFLATED for info in file.infolist())
        tensors = file.getinfo("graph.safetensors")
        assert tensors.file_size > 64 * 64 * 4 > 10 * tensors.compress_size


@pytest.mark.parametrize("is_first", [True, False])
def test_errors_of_other_instruments_are_not_the_passs(
    linear: GraphModule, tmp_path: Path, is_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lowbit.passes")
    reproducer = Reproducer(tmp_path)
    looking_on = (reproducer, Looks()) if is_first else (Looks(), reproducer)
    with pytest.raises(ContractError) as raised:
        PassManager(looking_on).run(linear, Pipeline((Boom(raises=False),)))
    assert not hasattr(raised.value, "__notes__")
    assert list(tmp_path.iterdir()) == []
    assert "the instrument Looks raised" in caplog.text


def test_errors_of_the_verifier_are_the_passs(linear: GraphModule, tmp_path: Path) -> None:
    reproducer = Reproducer(tmp_path)
    with patch.object(Verify, "after", side_effect=StageError("broken")), pytest.raises(StageError):
        PassManager((Verify(), reproducer)).run(linear, Pipeline((Boom(raises=False),)))
    assert [path.name for path in reproducer.written] == ["boom.zip"]


def test_what_another_process_would_not_find_is_said(
    linear: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproducer = Reproducer(tmp_path)
    monkeypatch.setattr(StubbornQuantizer, "__reduce__", X86InductorQuantizer.__reduce__)
    monkeypatch.setattr(StubbornQuantizer, "__module__", "__main__")
    fail(linear, reproducer, context=PassContext(StubbornQuantizer()))
    (lack,) = about(reproducer.written[-1])["lacks"]
    assert lack == "the quantizer (StubbornQuantizer is defined in __main__): pass quantizer=…"

    monkeypatch.setattr(Boom, "__module__", "__main__")
    fail(linear, reproducer)
    found = about(reproducer.written[-1])
    assert found["lacks"] == ["the pass boom, which is defined in __main__"]
    assert "__main__" not in found["imports"]
    monkeypatch.undo()
    fail(linear, reproducer)  # no longer registered
    assert about(reproducer.written[-1])["lacks"] == ["the pass boom (there is no pass named 'boom')"]
