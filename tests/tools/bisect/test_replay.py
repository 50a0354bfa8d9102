"""Reproducers: a failing pass fails again from the file, and from a smaller one."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lowbit import convert_pt2e, lower_pt2e, prepare_pt2e
from lowbit.backends.registry import get_backend
from lowbit.backends.x86_inductor import get_default_x86_inductor_quantization_config
from lowbit.errors import GraphInputError, PassFailedError, PipelineError, StageError
from lowbit.ir.text import parse
from lowbit.passes import (
    EmitInductor,
    PassManager,
    Pipeline,
    annotate,
    emit_inductor,
    fold_quantize,
    instruments,
    observers_to_qdq,
    registry,
)
from lowbit.passes.instruments import Reproducer
from lowbit.tools.bisect import reduce_reproducer, replay
from lowbit.tools.bisect.steps import states
from safetensors.torch import load
from torch.fx import GraphModule

aten = torch.ops.aten


def fail(*arguments: Any) -> Any:
    raise KeyError("nothing here")


def state_before(exact: Any, name: str) -> GraphModule:
    """The model of the fixture as it is handed to a pass."""
    trail = list(states(exact.model, exact.steps()))
    index = next(i for i, state in enumerate(trail) if state.pass_ is not None and state.pass_.name == name)
    gm = trail[index - 1].gm
    assert gm is not None
    return gm


def graph_in(path: Path) -> GraphModule:
    with zipfile.ZipFile(path) as file:
        return parse(file.read("graph.lowbit").decode(), load(file.read("graph.safetensors")))


def test_a_pass_that_raises(exact: Any, tmp_path: Path) -> None:
    gm = state_before(exact, "fold-conv-bn-qat")
    reproducer = Reproducer(tmp_path / "folder")
    with patch.object(fold_quantize, "_fold", fail):
        with pytest.raises(PassFailedError, match="nothing here") as raised:
            convert_pt2e(gm, instruments=(reproducer,))
        (path,) = reproducer.written
        assert path == tmp_path / "folder" / "fold-quantize.zip"
        assert raised.value.__notes__ == [f"to see it again: python {path}"]
        with pytest.raises(PassFailedError, match="nothing here"):
            replay(path)
        smaller = reduce_reproducer(path)
        with pytest.raises(PassFailedError, match="nothing here"):
            replay(smaller)
    # One quantize of one constant is all it takes.
    calls = [node for node in graph_in(smaller).graph.nodes if node.op == "call_function"]
    assert len(calls) == 1
    # And without the fault the pass runs to its end.
    assert isinstance(replay(path), GraphModule)


def test_a_verifier_that_fails(exact: Any, tmp_path: Path) -> None:
    gm = state_before(exact, "fold-conv-bn-qat")
    right = observers_to_qdq._quantize_and_dequantize

    def wrong(*arguments: Any) -> Any:
        node = right(*arguments)
        if len(node.args) == 6:
            node.update_arg(2, 3)
        return node

    reproducer = Reproducer(tmp_path)
    with patch.object(observers_to_qdq, "_quantize_and_dequantize", wrong):
        with pytest.raises(StageError, match="other parameters"):
            convert_pt2e(gm, instruments=(reproducer,))
        smaller = reduce_reproducer(reproducer.written[0], tmp_path / "small.zip")
        assert smaller == tmp_path / "small.zip"
        with pytest.raises(StageError, match="other parameters"):
            replay(smaller)
    assert sum(node.op == "call_module" for node in graph_in(smaller).graph.nodes) == 1


def test_a_quantizer_travels_along(exact: Any, tmp_path: Path) -> None:
    quantizer = exact.steps()[0].quantizer
    reproducer = Reproducer(tmp_path)
    with patch.object(annotate, "annotated_points", fail):
        with pytest.raises(PassFailedError):
            prepare_pt2e(exact.model, quantizer, instruments=(reproducer,))
        with pytest.raises(PassFailedError):
            replay(reproducer.written[0])
    annotated = replay(reproducer.written[0])
    assert any("quantization_annotation" in node.meta for node in annotated.graph.nodes)


def test_the_patterns_of_a_backend_travel_by_name(exact: Any, tmp_path: Path) -> None:
    gm = state_before(exact, "emit-inductor")
    reproducer = Reproducer(tmp_path)
    with patch.object(emit_inductor, "_sink_dequantizes", fail), pytest.raises(PassFailedError):
        lower_pt2e(gm, "x86_inductor", instruments=(reproducer,))
    lowered = replay(reproducer.written[0])
    assert any("qconv" in str(node.target) for node in lowered.graph.nodes)


def test_packed_models_cannot_be_written(
    exact: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The error at hand is the one that is raised."""
    gm = state_before(exact, "emit-inductor")
    reproducer = Reproducer(tmp_path)
    lower = get_backend("x86_inductor").lower
    assert lower is not None
    twice = Pipeline((*lower, lower.passes[-1]))
    right = instruments.Verify.after
    seen: list[str] = []

    def second(self: Any, pass_: Any, gm: Any, change: Any) -> None:
        seen.append(pass_.name)
        if seen.count("pack-weights") == 2:
            raise StageError("twice")
        right(self, pass_, gm, change)

    with patch.object(instruments.Verify, "after", second), pytest.raises(StageError, match="twice"):
        lower_pt2e(gm, "x86_inductor", pipeline=twice, instruments=(reproducer,))
    assert reproducer.written == []
    assert "no reproducer of pack-weights was written" in caplog.text


def test_the_file_is_a_program(exact: Any, tmp_path: Path) -> None:
    gm = state_before(exact, "emit-inductor")
    reproducer = Reproducer(tmp_path)
    with pytest.raises(PipelineError, match="no operator patterns"):
        PassManager((reproducer,)).run(gm, Pipeline((EmitInductor(),)))
    # What `python FILE.zip` does.
    with pytest.raises(PipelineError, match="no operator patterns"):
        runpy.run_path(str(reproducer.written[0]), run_name="__main__")


def test_a_pass_of_the_users_own_is_imported(
    exact: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lowbit_tests_own_pass.py").write_text(
        "from typing import ClassVar\n"
        "import attrs\n"
        "from lowbit import Stage\n"
        "from lowbit.passes import register_pass\n"
        "@register_pass\n"
        "@attrs.frozen\n"
        "class Refuse:\n"
        "    name: ClassVar = 'lowbit-tests-refuse'\n"
        "    requires: ClassVar = frozenset({Stage.FLOAT})\n"
        "    ensures: ClassVar = None\n"
        "    word: str = ''\n"
        "    def run(self, gm, context):\n"
        "        raise RuntimeError(f'{self.word} of {len(gm.graph.nodes)}')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    own = importlib.import_module("lowbit_tests_own_pass")
    reproducer = Reproducer(tmp_path)
    with pytest.raises(PassFailedError, match="none of"):
        PassManager((reproducer,)).run(exact.model, Pipeline((own.Refuse(word="none"),)))
    # As in another process.
    del registry._classes["lowbit-tests-refuse"]
    monkeypatch.delitem(sys.modules, "lowbit_tests_own_pass")
    with pytest.raises(PassFailedError, match="none of"):
        replay(reproducer.written[0])


def test_equal_failures_give_equal_bytes(exact: Any, tmp_path: Path) -> None:
    gm = state_before(exact, "fold-conv-bn-qat")
    contents: list[bytes] = []
    for name in ("a", "b"):
        reproducer = Reproducer(tmp_path / name)
        with patch.object(fold_quantize, "_fold", fail), pytest.raises(PassFailedError):
            convert_pt2e(gm, instruments=(reproducer,))
        contents.append(reproducer.written[0].read_bytes())
    assert contents[0] == contents[1]


def test_what_is_no_reproducer_is_refused(exact: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    path.write_bytes(b"nothing")
    with pytest.raises(GraphInputError, match="cannot be replayed"):
        replay(path)


def test_missing_modules_are_named(exact: Any, tmp_path: Path) -> None:
    gm = state_before(exact, "fold-conv-bn-qat")
    reproducer = Reproducer(tmp_path)
    with patch.object(fold_quantize, "_fold", fail), pytest.raises(PassFailedError):
        convert_pt2e(gm, instruments=(reproducer,))
    with zipfile.ZipFile(reproducer.written[0]) as file:
        content = {name: file.read(name) for name in file.namelist()}
    about = json.loads(content["about.json"])
    about["imports"].append("no_such_module_here")
    content["about.json"] = json.dumps(about).encode()
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as file:
        for name, data in content.items():
            file.writestr(name, data)
    with pytest.raises(GraphInputError, match="no_such_module_here"):
        replay(tmp_path / "changed.zip")


def test_what_does_not_fail_is_not_shrunk(exact: Any, tmp_path: Path) -> None:
    gm = state_before(exact, "fold-conv-bn-qat")
    reproducer = Reproducer(tmp_path)
    with patch.object(fold_quantize, "_fold", fail), pytest.raises(PassFailedError):
        convert_pt2e(gm, instruments=(reproducer,))
    with pytest.raises(GraphInputError, match="does not fail"):
        reduce_reproducer(reproducer.written[0])


_OWN_BACKEND = """\
import attrs
from lowbit.backends.registry import get_backend
x86 = get_backend("x86_inductor")
OWN = attrs.evolve(x86, name="own", patterns=tuple(list(x86.patterns)))
def local():
    return attrs.evolve(OWN, patterns=tuple(list(OWN.patterns)))
"""


def test_a_backend_that_is_not_registered(
    exact: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lowbit_tests_own_backend.py").write_text(_OWN_BACKEND, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("lowbit_tests_own_backend")
    gm = state_before(exact, "emit-inductor")
    reproducer = Reproducer(tmp_path / "folder")
    for backend in (own.OWN, own.local()):
        with patch.object(emit_inductor, "_sink_dequantizes", fail), pytest.raises(PassFailedError):
            lower_pt2e(gm, backend, instruments=(reproducer,))
    monkeypatch.delitem(sys.modules, "lowbit_tests_own_backend")
    found, lost = reproducer.written
    lowered = replay(found)
    assert any("qconv" in str(node.target) for node in lowered.graph.nodes)
    with pytest.raises(GraphInputError, match="no backend named 'own'") as caught:
        replay(lost)
    assert f"{lost} lacks the operator patterns" in str(caught.value)
    with zipfile.ZipFile(lost) as file:
        assert "where 'own' is registered" in json.loads(file.read("about.json"))["lacks"][0]


def test_a_quantizer_whose_class_is_gone(exact: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lowbit_tests_own_quantizer.py").write_text(
        "from lowbit import X86InductorQuantizer\nclass Own(X86InductorQuantizer): pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("lowbit_tests_own_quantizer")
    quantizer = own.Own().set_global(get_default_x86_inductor_quantization_config(reduce_range=True))
    reproducer = Reproducer(tmp_path)
    with patch.object(annotate, "annotated_points", fail), pytest.raises(PassFailedError):
        prepare_pt2e(exact.model, quantizer, instruments=(reproducer,))
    (path,) = reproducer.written
    assert isinstance(replay(path), GraphModule)
    monkeypatch.delattr(own, "Own")
    with pytest.raises(GraphInputError, match=r"quantizer .* cannot be read: AttributeError") as raised:
        replay(path)
    assert "quantizer=" in raised.value.hint
    assert isinstance(replay(path, quantizer=quantizer), GraphModule)
