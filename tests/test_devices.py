"""Devices: models without values, and models on several devices, get a clear answer from every verb."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends.pipelines import PREPARE, PREPARE_QAT
from lowbit.backends.x86_inductor import has_vnni
from lowbit.errors import CalibrationDataError, DeviceError
from lowbit.ir.devices import device_of
from lowbit.passes import PassContext, PassManager
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


X = torch.randn(1, 3, 8, 8)


def quantizer(**preset: bool) -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(reduce_range=not has_vnni(), **preset)
    return X86InductorQuantizer().set_global(config)


def export(device: str = "cpu") -> GraphModule:
    exported = torch.export.export(Net().eval().to(device), (X.to(device),)).module()
    assert isinstance(exported, GraphModule)
    return exported


def prepared() -> GraphModule:
    return calibrate(prepare_pt2e(export(), quantizer()), [(X,)], progress=False)


def converted() -> GraphModule:
    return convert_pt2e(prepared())


VERBS: dict[str, tuple[Callable[[], GraphModule], Callable[[GraphModule], GraphModule]]] = {
    "prepare": (export, lambda m: prepare_pt2e(m, quantizer())),
    "prepare_qat": (export, lambda m: prepare_qat_pt2e(m, quantizer(is_qat=True))),
    "convert": (prepared, convert_pt2e),
    "lower": (converted, lower_pt2e),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_meta_device(verb: str) -> None:
    make, run = VERBS[verb]
    with pytest.raises(DeviceError, match="is on the meta device: it has no values") as caught:
        run(make().to("meta"))
    assert caught.value.where
    assert "load_state_dict" in caught.value.hint


@pytest.mark.parametrize("verb", VERBS)
def test_a_part_on_the_meta_device(verb: str) -> None:
    make, run = VERBS[verb]
    model = make()
    model.get_submodule("second").to("meta")
    with pytest.raises(DeviceError, match=r"the tensor 'second\.\w+' of the model is on the meta") as caught:
        run(model)
    if verb != "convert":  # there an observer reads it first
        assert "module second" in str(caught.value)
        assert "test_devices.py" in str(caught.value)


def elsewhere(model: GraphModule, path: str) -> GraphModule:
    """``model`` with the tensors of a module on a GPU, which need not be there."""
    with FakeTensorMode():
        for owner in model.get_submodule(path).modules():
            for tensors in (owner._parameters, owner._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda:0")
                        is_parameter = isinstance(tensor, nn.Parameter)
                        tensors[name] = nn.Parameter(fake) if is_parameter else fake
    return model


@pytest.mark.parametrize("verb", VERBS)
def test_several_devices(verb: str) -> None:
    make, run = VERBS[verb]
    with pytest.raises(DeviceError, match="tensors of the model are on 2 devices") as caught:
        run(elsewhere(make(), "second"))
    assert "is on cpu" in caught.value.found
    assert "is on cuda:0" in caught.value.found
    assert caught.value.where
    assert "one device" in caught.value.hint


def test_kernels_of_another_device() -> None:
    model = elsewhere(converted(), "")
    with pytest.raises(
        DeviceError, match="is on cuda:0, and the kernels of x86_inductor run on cpu"
    ) as caught:
        lower_pt2e(model)
    assert "model.to('cpu')" in caught.value.hint
    # Those of Intel GPUs are not packed on a CPU.
    with pytest.raises(DeviceError, match="is on cpu, and the kernels of xpu_inductor run on xpu"):
        lower_pt2e(converted(), "xpu_inductor")


def test_data_without_values() -> None:
    with pytest.raises(CalibrationDataError, match="tensor on the meta device") as caught:
        calibrate(prepare_pt2e(export(), quantizer()), [(X.to("meta"),)], progress=False)
    assert "batch 0" in str(caught.value)


def test_numbers_on_the_cpu_go_with_any_device() -> None:
    model = elsewhere(export(), "")
    model.register_buffer("number", torch.tensor(2.0))
    assert device_of(model) == torch.device("cuda:0")


@pytest.mark.parametrize("passes", [PREPARE, PREPARE_QAT], ids=["ptq", "qat"])
def test_observers_are_made_on_the_device_of_the_model(passes: object) -> None:
    # The passes themselves ask for no values, so that the meta device can stand for a GPU.
    is_qat = passes is PREPARE_QAT
    observed = PassManager().run(export("meta"), passes, PassContext(quantizer=quantizer(is_qat=is_qat)))
    buffers = [b for m in observed.children() if hasattr(m, "calculate_qparams") for b in m.buffers()]
    assert buffers
    assert {b.device.type for b in buffers} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("is_qat", [False, True])
def test_a_gpu(is_qat: bool) -> None:
    exported, x = export("cuda"), X.to("cuda")
    verb = prepare_qat_pt2e if is_qat else prepare_pt2e
    model = verb(exported, quantizer(is_qat=is_qat))
    model(x)
    result = convert_pt2e(model)
    with torch.no_grad():
        difference = result(x) - exported(x)
    assert result(x).device.type == "cuda"
    assert difference.abs().max() < 0.1
    with pytest.raises(DeviceError, match="kernels of x86_inductor run on cpu"):
        lower_pt2e(result)
