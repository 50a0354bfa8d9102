"""The demo: its data, its measures, its tables, and the whole of it from the command line."""

from __future__ import annotations

import math
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from lowbit.backends.x86_inductor import has_vnni
from lowbit.errors import MissingDependencyError
from lowbit.passes.instruments import PassRecord
from lowbit.tools.cli import main
from lowbit.tools.demo.data import blended_colours, load_digits
from lowbit.tools.demo.measure import accuracy, agreement, saved_bytes
from lowbit.tools.demo.report import passes_table
from rich.console import Console


def test_digits_are_split_without_overlap() -> None:
    digits = load_digits(seed=0)
    assert digits.train_images.shape == (1297, 1, 8, 8)
    assert digits.test_images.shape == (500, 1, 8, 8)
    assert (digits.train_images.min(), digits.train_images.max()) == (0.0, 1.0)
    everything = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    # scikit-learn's images are all different, so a lost or doubled one shows.
    assert len(everything.unique(dim=0)) == 1797


def test_a_seed_decides_the_split() -> None:
    first, again, other = load_digits(seed=1), load_digits(seed=1), load_digits(seed=2)
    assert torch.equal(first.test_images, again.test_images)
    assert torch.equal(first.train_labels, again.train_labels)
    assert not torch.equal(first.test_images, other.test_images)


def test_calibration_batches_are_training_images() -> None:
    digits = load_digits(seed=0)
    batches = digits.calibration_batches(100, count=4)
    assert [len(batch) for batch in batches] == [100] * 4
    assert torch.equal(torch.cat(batches), digits.train_images[:400])
    assert sum(len(labels) for _images, labels in digits.test_batches(100)) == 500


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"scikit-learn(.|\n)*lowbit\[demo\]"):
        load_digits(seed=0)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 3
    assert "pip install 'lowbit[demo]'" in result.output
    assert "Traceback" not in result.output


def test_blended_colours_are_seeded_pictures() -> None:
    batches = blended_colours(2, batch=3, seed=0, size=32)
    assert [batch.shape for batch in batches] == [(3, 3, 32, 32)] * 2
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert torch.equal(batches[1], blended_colours(2, batch=3, seed=0, size=32)[1])
    assert not torch.equal(batches[0], batches[1])


def test_accuracy_counts_over_batches_of_unequal_size() -> None:
    logits = torch.eye(4)
    batches = [(logits[:3], torch.tensor([0, 1, 0])), (logits[3:], torch.tensor([3]))]
    assert accuracy(lambda images: images, batches) == 3 / 4


def test_agreement_is_the_signal_to_noise_ratio() -> None:
    images = [torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 10.0]])]
    found = agreement(lambda x: x, lambda x: x + torch.tensor([0.0, 1.0]), images)
    assert found.sqnr_db == pytest.approx(10 * math.log10(110 / 2), abs=1e-12)
    assert found.top1 == 1.0
    swapped = agreement(lambda x: x, lambda x: x.flip(1), images)
    assert swapped.top1 == 0.0
    assert agreement(lambda x: x, lambda x: x, images).sqnr_db == math.inf


def test_saved_bytes_follow_the_dtype() -> None:
    sizes = {}
    for dtype in (torch.float32, torch.int8):
        holder = torch.nn.Module()
        holder.register_buffer("weight", torch.zeros(100_000, dtype=dtype))
        sizes[dtype] = saved_bytes(holder)
    assert 300_000 <= sizes[torch.float32] - sizes[torch.int8] < 301_000


def test_passes_table_shows_what_each_pass_did() -> None:
    records = [
        PassRecord(pass_name="fold", seconds=0.0015, nodes_before=10, nodes_after=7, changed=True),
        PassRecord(pass_name="check", seconds=0.0, nodes_before=7, nodes_after=7, changed=False),
    ]
    console = Console(width=80, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(passes_table({"prepare": records}))
    fold, check = (line for line in captured.get().splitlines() if "fold" in line or "check" in line)
    assert [cell.strip() for cell in fold.strip("│").split("│")] == ["prepare", "fold", "1.5", "10", "7"]
    assert [cell.strip() for cell in check.strip("│").split("│")] == ["", "check", "0.0", "7", "unchanged"]


def test_version_and_help() -> None:
    runner = CliRunner()
    assert runner.invoke(main, ["--version"]).output == f"lowbit, version {metadata.version('lowbit')}\n"
    shown = runner.invoke(main, ["demo", "-h"])
    assert shown.exit_code == 0
    assert {"--model", "--seed", "--threads", "--diffs", "--report"} <= set(shown.output.split())
    assert runner.invoke(main, ["demo", "--model", "nothing"]).exit_code == 2


def test_the_whole_demo(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        places = ["--diffs", str(tmp_path / "diffs"), "--report", str(tmp_path / "report.html")]
        result = CliRunner().invoke(main, ["demo", *places])
    finally:
        torch.set_num_threads(threads)
    assert result.exception is None
    assert result.exit_code == 0
    assert ("no VNNI" in result.output) is not has_vnni()
    accuracies = next(line for line in result.output.splitlines() if "accuracy" in line)
    float32, int8 = (float(cell.strip().rstrip("%")) for cell in accuracies.strip("│").split("│")[1:3])
    assert float32 > 95
    assert abs(int8 - float32) <= 1
    for word in ("size on disk", "latency", "insert-observers", "fold-quantize", "emit-inductor"):
        assert word in result.output
    assert "emit-inductor" in (tmp_path / "report.html").read_text(encoding="utf-8")
    names = sorted(path.name for path in (tmp_path / "diffs").iterdir())
    assert [name[:2] for name in names] == [f"{index:02}" for index in range(len(names))]
    assert any("fold-batch-norm" in name for name in names)
