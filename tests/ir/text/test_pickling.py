"""``torch.save``, ``torch.load`` and ``pickle`` keep the graph modules of every stage whole."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from lowbit import (
    Stage,
    convert_pt2e,
    decisions,
    get_stage,
    lower_pt2e,
    move_exported_model_to_eval,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends.x86_inductor import X86InductorQuantizer, get_default_x86_inductor_quantization_config
from lowbit.errors import UnsupportedError
from lowbit.ir.graph_module import ExportedGraphModule
from lowbit.ir.text import to_text
from torch import Tensor, nn
from torch.fx import GraphModule


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.tied = self.conv.weight
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return {"logits": self.linear(self.drop(features)), "features": features}


BATCHES = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def export(model: nn.Module) -> GraphModule:
    batch = torch.export.Dim("batch", min=2, max=64)
    return torch.export.export(model, (BATCHES[0],), dynamic_shapes=({0: batch},)).module()


def quantizer(*, is_qat: bool) -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=True)
    return X86InductorQuantizer().set_global(config)


def calibrated() -> GraphModule:
    torch.manual_seed(0)
    prepared = prepare_pt2e(export(Model().eval()), quantizer(is_qat=False))
    run(prepared, BATCHES[0])
    return prepared


def trained() -> GraphModule:
    torch.manual_seed(0)
    prepared = prepare_qat_pt2e(export(Model().train()), quantizer(is_qat=True))
    train(prepared, BATCHES[0])
    return prepared


def run(gm: GraphModule, batch: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(gm(batch).values())


def train(gm: GraphModule, batch: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.SGD(gm.parameters(), lr=0.1)
    torch.manual_seed(1)
    gm(batch)["logits"].square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def by_torch(thing: object) -> object:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_pickle(thing: object) -> object:
    return pickle.loads(pickle.dumps(thing))


def assert_same(a: GraphModule, b: GraphModule) -> None:
    """The same text (graph, annotations, observers, decisions) and the same tensors."""
    assert to_text(a) == to_text(b)
    assert_same_state(a, b)


def assert_same_state(a: GraphModule, b: GraphModule) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for one, other in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def assert_computes_the_same(a: GraphModule, b: GraphModule) -> None:
    for batch in (BATCHES[1], BATCHES[2][:2]):
        assert all(map(torch.equal, run(a, batch), run(b, batch)))


MODELS: dict[str, Callable[[], GraphModule]] = {
    "prepared": calibrated,
    "prepared for training": trained,
    "converted": lambda: convert_pt2e(calibrated()),
    "reference": lambda: convert_pt2e(calibrated(), use_reference_representation=True),
    "lowered": lambda: lower_pt2e(convert_pt2e(calibrated()), pack_weights=False),
}


@pytest.mark.parametrize("through", [by_torch, by_pickle])
@pytest.mark.parametrize("stage", MODELS)
def test_a_loaded_model_is_the_model(stage: str, through: Callable[[object], object]) -> None:
    model = MODELS[stage]()
    loaded = through(model)
    assert isinstance(loaded, ExportedGraphModule)
    assert_same(loaded, model)
    assert decisions(loaded) == decisions(model)
    assert loaded.training == model.training
    if stage == "prepared for training":
        loaded.eval()
        model.eval()
    assert_computes_the_same(loaded, model)


def test_a_loaded_prepared_model_goes_on() -> None:
    model = calibrated()
    loaded = by_torch(model)
    assert isinstance(loaded, GraphModule)
    for gm in (model, loaded):
        run(gm, BATCHES[1])
    assert_same(loaded, model)
    lowered = [lower_pt2e(convert_pt2e(gm)) for gm in (model, loaded)]
    assert get_stage(lowered[1]) is Stage.LOWERED
    assert_computes_the_same(*lowered)


def test_a_loaded_model_goes_on_training() -> None:
    model = trained()
    loaded = by_torch(model)
    assert isinstance(loaded, GraphModule)
    for gm in (model, loaded):
        train(gm, BATCHES[1])
        move_exported_model_to_eval(gm)
    assert_same(loaded, model)
    converted = [convert_pt2e(gm) for gm in (model, loaded)]
    assert_same_state(*converted)
    assert_computes_the_same(*map(lower_pt2e, converted))


@pytest.mark.parametrize("through", [by_torch, by_pickle])
def test_an_optimizer_saved_with_the_model_trains_it(through: Callable[[object], object]) -> None:
    model = trained()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, BATCHES[1], optimizer)
    loaded = through((model, optimizer))
    assert isinstance(loaded, tuple)
    train(model, BATCHES[2], optimizer)
    train(loaded[0], BATCHES[2], loaded[1])
    assert_same(loaded[0], model)


def test_saved_memory_is_shared_as_it_was() -> None:
    model = trained()
    model.eval()
    loaded = by_torch(model)
    assert isinstance(loaded, GraphModule)
    shared = [name for name, p in loaded.named_parameters(remove_duplicate=False) if p is loaded.conv.weight]
    assert shared == [n for n, p in model.named_parameters(remove_duplicate=False) if p is model.conv.weight]
    assert loaded.conv.weight is not model.conv.weight


def test_a_model_inside_of_another_is_saved_with_it() -> None:
    outer = nn.Sequential(calibrated(), nn.Identity())
    loaded = by_torch(outer)
    assert isinstance(loaded, nn.Sequential)
    assert_same(loaded[0], outer[0])


def test_packed_weights_are_refused_with_the_way_out() -> None:
    lowered = lower_pt2e(convert_pt2e(calibrated()))
    with pytest.raises(UnsupportedError) as caught:
        pickle.dumps(lowered)
    assert "pack_weights=False" in caught.value.hint


def test_a_deep_copy_needs_no_text() -> None:
    model = calibrated()
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedError, match="hook"):
        pickle.dumps(model)
    copied = copy.deepcopy(model)
    assert_computes_the_same(copied, model)


def test_another_process_loads_it(tmp_path) -> None:
    model = calibrated()
    torch.save((model, BATCHES[1], run(copy.deepcopy(model), BATCHES[1])), tmp_path / "model.pt")
    program = (
        "import sys, torch\n"
        "gm, batch, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "assert 'lowbit' in sys.modules\n"
        "assert all(map(torch.equal, gm(batch).values(), expected))\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "model.pt"], check=True, cwd=tmp_path)
