"""A folder as a user would have it, and the command run in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lowbit.tools.cli import main

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.gate = nn.Softplus()
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        x = self.gate(self.stem(image))
        return self.head(x.mean((2, 3)))


def module():
    print("building")
    torch.manual_seed(0)
    return Net().eval()


def training():
    return Net(), torch.zeros(4, 3, 8, 8)


def with_inputs():
    return module(), torch.zeros(4, 3, 8, 8)


def by_keyword():
    return module(), {"image": torch.zeros(4, 3, 8, 8)}


def program():
    batch = torch.export.Dim("batch")
    inputs = (torch.zeros(4, 3, 8, 8),)
    return torch.export.export(module().eval(), inputs, dynamic_shapes={"image": {0: batch}})


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        yield torch.randn(4, 3, 8, 8, generator=generator), torch.zeros(4)


def raises():
    raise RuntimeError("a mistake of the user's")


def three():
    return 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with ``net.py`` in it; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL, encoding="utf-8")
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def lowbit() -> Callable[..., Result]:
    """Runs the command with these words, and sees that it ends with the exit code that is wanted."""

    def run(*words: object, code: int = 0) -> Result:
        result = CliRunner().invoke(main, list(map(str, words)))
        assert result.exit_code == code, f"{result.exit_code}: {result.output}"
        return result

    return run
