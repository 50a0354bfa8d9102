"""Lowered models compiled to C++: ``lower_pt2e(…, cpp_wrapper=True)`` and ``package_pt2e``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    X86InductorQuantizer,
    convert_pt2e,
    errors,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    package_pt2e,
    prepare_pt2e,
)
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree


class Network(nn.Module):
    """A residual, values moved in 8 bits, a linear, and an argument by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        r = F.max_pool2d(F.relu(self.stem(x)), 2)
        y = F.relu(self.a(r) + r)
        return {"logits": self.head(torch.flatten(y, 1)) * scale}


@pytest.fixture(scope="module")
def converted() -> GraphModule:
    torch.manual_seed(0)
    x, scale = torch.randn(2, 3, 8, 8), torch.ones(5)
    exported = torch.export.export(
        Network().eval(),
        (x,),
        {"scale": scale},
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}, "scale": None},
    ).module()
    assert isinstance(exported, GraphModule)
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(preset))
    with torch.no_grad():
        prepared(x, scale=scale)
    return convert_pt2e(prepared)


def assert_equal(first: Any, second: Any) -> None:
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_package_computes_what_the_lowered_model_does(converted: GraphModule, tmp_path: Path) -> None:
    lowered = lower_pt2e(converted, pack_weights=False)
    path = tmp_path / "model.pt2"
    assert package_pt2e(lowered, path) == str(path)
    run = torch._inductor.aoti_load_package(str(path))
    with torch.no_grad():
        for size in (2, 5):
            x, scale = torch.randn(size, 3, 8, 8), torch.rand(5)
            assert_equal(run(x, scale=scale), lowered(x, scale=scale))


def test_the_cpp_wrapper(converted: GraphModule) -> None:
    torch._dynamo.reset()
    lowered, wrapped = lower_pt2e(converted), lower_pt2e(converted, cpp_wrapper=True)
    assert isinstance(wrapped, GraphModule)
    x, scale = torch.randn(2, 3, 8, 8), torch.rand(5)
    with torch.no_grad():
        assert_equal(wrapped(x, scale=scale), lowered(x, scale=scale))
        # The same graph, compiled: what is left of it is called eagerly as before.
        assert_equal(wrapped.forward(x, scale=scale), lowered(x, scale=scale))


def test_what_cannot_be_packaged(converted: GraphModule, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    with pytest.raises(errors.StageError, match="not lowered"):
        package_pt2e(converted, file)
    with pytest.raises(errors.GraphInputError, match="packed") as packed:
        package_pt2e(lower_pt2e(converted), file)
    assert "pack_weights=False" in packed.value.hint
    with pytest.raises(errors.GraphInputError, match=r"model\.so"):
        package_pt2e(lower_pt2e(converted, pack_weights=False), tmp_path / "model.so")
    assert not list(tmp_path.iterdir())


def test_what_is_relied_on_of_inductor() -> None:
    """Should these move, ``lowbit.aot_package`` changes."""
    parameters = inspect.signature(torch._inductor.aoti_compile_and_package).parameters
    assert next(iter(parameters)) == "exported_program"
    assert parameters["package_path"].kind is inspect.Parameter.KEYWORD_ONLY
    assert callable(torch._inductor.aoti_load_package)


class Residuals(nn.Module):
    """Blocks behind each other, the last one with a stride: accumulators that kernels wrote in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.end = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(16, 32, 1, 2),
            nn.Conv2d(16, 32, 3, 2, 1),
        )
        self.a, self.b, self.c = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = F.relu(self.a(y) + y)
        y = F.relu(self.c(F.relu(self.b(y))) + y)
        return F.relu(self.end(y) + self.down(y))


def test_residuals_behind_each_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 18, 18)
    exported = torch.export.export(Residuals().eval(), (x,)).module()
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(preset))
    with torch.no_grad():
        prepared(x)
        lowered = lower_pt2e(convert_pt2e(prepared), pack_weights=False)
        run = torch._inductor.aoti_load_package(package_pt2e(lowered, tmp_path / "model.pt2"))
        for factor in (1, 5):
            torch.testing.assert_close(run(factor * x), lowered(factor * x), rtol=0, atol=1e-5)
