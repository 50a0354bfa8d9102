"""Devices: models without values and models on several devices are prepared, or get a clear answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lowbit import (
    QuantizationAnnotation,
    Quantizer,
    SharedQuantizationSpec,
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    get_default_qconfig_mapping,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_fx,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from lowbit.errors import CalibrationDataError, DeviceError, GraphInputError
from lowbit.ir.annotation import ANNOTATION_KEY
from lowbit.ir.devices import only_device
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


def test_kernels_of_another_device() -> None:
    with pytest.raises(DeviceError, match="on cuda:0, and the kernels of x86_inductor run on cpu") as caught:
        lower_pt2e(elsewhere(converted(), "second"))
    assert "the tensor 'second." in caught.value.found
    assert "module second" in str(caught.value)
    assert "model.to('cpu')" in caught.value.hint
    # Those of Intel GPUs are not packed on a CPU.
    with pytest.raises(DeviceError, match="is on cpu, and the kernels of xpu_inductor run on xpu"):
        lower_pt2e(converted(), "xpu_inductor")


def test_data_without_values() -> None:
    with pytest.raises(CalibrationDataError, match="tensor on the meta device") as caught:
        calibrate(prepare_pt2e(export(), quantizer()), [(X.to("meta"),)], progress=False)
    assert "batch 0" in str(caught.value)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))


def test_batch_norm_without_values_is_not_folded() -> None:
    model, x = Normed().eval().to("meta"), X.to("meta")
    exported = torch.export.export(model, (x,)).module()
    assert isinstance(exported, GraphModule)
    with pytest.raises(DeviceError, match=r"'first.weight' of the model is on the meta device") as caught:
        prepare_pt2e(exported, quantizer())
    assert "fold-batch-norm" in str(caught.value)
    with pytest.raises(DeviceError, match=r"'first.weight' of the model is on the meta device") as caught:
        prepare_fx(model, get_default_qconfig_mapping(), (x,))
    assert "load_state_dict" in caught.value.hint


def test_a_model_and_inputs_on_different_devices() -> None:
    with pytest.raises(DeviceError, match="tensors on meta, does not export with inputs on cpu") as caught:
        prepare_fx(Normed().eval().to("meta"), get_default_qconfig_mapping(), (X,))
    assert "to_empty(), then load_state_dict()" in caught.value.hint
    # On one device it is the model itself that does not export.
    with pytest.raises(GraphInputError, match="does not export with these inputs: RuntimeError: "):
        prepare_fx(Normed().eval(), get_default_qconfig_mapping(), (X[:, :2],))


def test_numbers_on_the_cpu_go_with_any_device() -> None:
    model = elsewhere(export(), "")
    model.register_buffer("number", torch.tensor(2.0))
    assert only_device(model) == torch.device("cuda:0")


def observer_devices(model: GraphModule) -> list[set[str]]:
    observers = [module for module in model.children() if hasattr(module, "calculate_qparams")]
    return [{buffer.device.type for buffer in observer.buffers()} for observer in observers]


@pytest.mark.parametrize("is_qat", [False, True])
def test_observers_are_made_on_the_device_of_the_model(is_qat: bool) -> None:
    # Preparing asks for no values, so the meta device stands for a GPU.
    verb = prepare_qat_pt2e if is_qat else prepare_pt2e
    assert observer_devices(verb(export("meta"), quantizer(is_qat=is_qat))) == [{"meta"}] * 4
    # Also of one that was moved after it was exported.
    assert observer_devices(verb(export().to("meta"), quantizer(is_qat=is_qat))) == [{"meta"}] * 4


class TwoDevices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.here, self.there = nn.Linear(4, 4), nn.Linear(4, 4, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return self.there(self.here(x).to("meta"))


def test_a_model_on_two_devices_has_observers_on_both() -> None:
    exported = torch.export.export(TwoDevices().eval(), (torch.zeros(2, 4),)).module()
    assert isinstance(exported, GraphModule)
    found = observer_devices(prepare_pt2e(exported, quantizer()))
    assert sorted(map(str, found)) == ["{'cpu'}", "{'cpu'}", "{'meta'}", "{'meta'}"]


def test_a_scale_is_not_shared_between_devices() -> None:
    class Shares(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            first, second = model.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
            spec = get_default_x86_inductor_quantization_config().input_activation
            first.meta[ANNOTATION_KEY] = QuantizationAnnotation({first.args[0]: spec})
            shared = SharedQuantizationSpec((first.args[0], first))
            second.meta[ANNOTATION_KEY] = QuantizationAnnotation({second.args[0]: shared})
            return model

    exported = torch.export.export(TwoDevices().eval(), (torch.zeros(2, 4),)).module()
    assert isinstance(exported, GraphModule)
    with pytest.raises(DeviceError, match=r"shared between devices: .* on cpu and .* on meta") as caught:
        prepare_pt2e(exported, Shares())
    assert "module here" in str(caught.value)
    assert "module there" in str(caught.value)


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
