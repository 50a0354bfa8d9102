"""What ``lower_pt2e(…, cpp_wrapper=True)`` compiles, when it compiles again, and what it does not look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    X86InductorQuantizer,
    convert_pt2e,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from torch import Tensor, nn
from torch.fx import GraphModule


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def _converted(seed: int) -> GraphModule:
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 6, 6)
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(Network().eval(), (x,), dynamic_shapes=(batch,)).module()
    assert isinstance(exported, GraphModule)
    preset = get_default_x86_inductor_quantization_config(reduce_range=True)
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(preset))
    with torch.no_grad():
        prepared(x)
    return convert_pt2e(prepared)


@pytest.fixture(scope="module")
def converted() -> GraphModule:
    return _converted(0)


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The guards of each frame that is compiled, before any is left out."""
    torch._dynamo.reset()
    found: list[list[Any]] = []
    public = torch.compiler.skip_guard_on_all_nn_modules_unsafe

    def watch(guards: Any) -> Any:
        found.append(list(guards))
        return public(guards)

    monkeypatch.setattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe", watch)
    return found


def test_inputs_are_looked_at_and_constants_are_not(
    converted: GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: asked.append(options))
    lower_pt2e(converted)
    assert not asked
    lowered = lower_pt2e(converted, cpp_wrapper=True)
    (given,) = asked
    options = given["options"]
    assert options["cpp_wrapper"] is True
    monkeypatch.undo()

    kept: list[Any] = []

    def watch(guards: Any) -> list[bool]:
        chosen = options["guard_filter_fn"](guards)
        kept.extend(guard for guard, keep in zip(guards, chosen, strict=True) if keep)
        return chosen

    torch._dynamo.reset()
    compiled = torch.compile(lowered, backend="eager", options={"guard_filter_fn": watch})
    with torch.no_grad():
        compiled(torch.randn(2, 3, 6, 6))
    tensors = [guard.name for guard in kept if guard.guard_type == "TENSOR_MATCH"]
    assert len(list(lowered.parameters())) + len(list(lowered.buffers())) > 6
    assert len(tensors) == 2
    assert "x" in tensors
    assert {"GLOBAL_STATE", "SHAPE_ENV"} <= {guard.guard_type for guard in kept}


def test_other_inputs_and_grad_mode_compile_again(converted: GraphModule, frames: list[list[Any]]) -> None:
    eager, wrapped = lower_pt2e(converted), lower_pt2e(converted, cpp_wrapper=True)
    inputs = [torch.randn(size, 3, 6, 6) for size in (2, 5)]
    with torch.no_grad():
        for compiled, x in enumerate(inputs, start=1):
            for _ in range(2):
                assert torch.equal(wrapped(x), eager(x))
            assert len(frames) == compiled
    assert torch.equal(wrapped(inputs[0]), eager(inputs[0]))
    assert len(frames) == 3


def test_two_models_at_once(converted: GraphModule, frames: list[list[Any]]) -> None:
    models = [converted, _converted(1), converted]
    eager = [lower_pt2e(model) for model in models]
    wrapped = [lower_pt2e(model, cpp_wrapper=True) for model in models]
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        for _ in range(2):
            for compiled, lowered in zip(wrapped, eager, strict=True):
                assert torch.equal(compiled(x), lowered(x))
    assert len(frames) == 3


def test_other_values_are_read(converted: GraphModule, frames: list[list[Any]]) -> None:
    eager, wrapped = lower_pt2e(converted), lower_pt2e(converted, cpp_wrapper=True)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        before = wrapped(x)
        biases = {name: t + 1 for name, t in wrapped.state_dict().items() if name.endswith("bias")}
        assert biases
        for lowered in (eager, wrapped):
            lowered.load_state_dict(biases, strict=False)
        assert torch.equal(wrapped(x), eager(x))
        assert not torch.equal(wrapped(x), before)
    assert len(frames) == 1


def test_to_is_noticed(converted: GraphModule, frames: list[list[Any]]) -> None:
    eager, wrapped = lower_pt2e(converted), lower_pt2e(converted, cpp_wrapper=True)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        wrapped(x)
        for model in (eager, wrapped):
            model.double()
        assert torch.equal(wrapped(x), eager(x))
    assert len(frames) == 2
