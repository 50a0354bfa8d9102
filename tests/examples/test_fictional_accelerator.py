"""The example of a backend in a package of its own: installed from its folder, it conforms."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import lowbit
import pytest
import torch
import torch.nn.functional as F
from lowbit import calibrate, convert_pt2e, decisions, lower_pt2e, prepare_pt2e
from lowbit.backends import Backend, backend_names, get_backend, registry
from lowbit.tools.conformance import check_backend
from torch import Tensor, nn
from torch.fx import GraphModule

FOLDER = Path(lowbit.__file__).parent / "examples" / "fictional_accelerator"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The backend as its package offers it, installed without network into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("installed")
    shutil.copytree(FOLDER, source)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index")
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(source)], check=True
    )
    before = dict(registry._backends)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(target))
        assert "fictional_accelerator" in backend_names()
        yield get_backend("fictional_accelerator")
    registry._backends.clear()
    registry._backends.update(before)
    del sys.modules["fictional_accelerator"]


def test_it_comes_from_the_installed_package(backend: Backend) -> None:
    (offer,) = metadata.entry_points(group="lowbit.backends", name="fictional_accelerator")
    assert offer.load() is backend
    assert not Path(sys.modules["fictional_accelerator"].__file__ or "").is_relative_to(FOLDER)


def test_it_conforms(backend: Backend) -> None:
    checks = check_backend(backend)
    assert len(checks) >= 40
    for check in checks:
        check()


def test_it_is_short() -> None:
    lines = [line for file in FOLDER.iterdir() if file.is_file() for line in file.read_text().splitlines()]
    assert sum(map(bool, lines)) <= 150


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        return self.second(y) + y


def test_a_model_runs_on_it_compiled(backend: Backend) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    exported = torch.export.export(Net().eval(), (x,)).module()
    assert isinstance(exported, GraphModule)
    converted = convert_pt2e(calibrate(prepare_pt2e(exported, backend.quantizer()), [(x,)], progress=False))
    lowered = lower_pt2e(converted)
    assert {d.detail for d in decisions(lowered)} == {"runs as fictional.linear", "runs as fictional.add"}
    with torch.no_grad():
        step = max(
            n.args[1]
            for n in converted.graph.find_nodes(
                op="call_function", target=torch.ops.quantized_decomposed.quantize_per_tensor.default
            )
        )
        assert (lowered(x) - converted(x)).abs().max() <= 1.001 * step
        assert torch.equal(torch.compile(lowered, backend="aot_eager")(x), lowered(x))
