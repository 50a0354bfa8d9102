"""A model in its Q/DQ form and as integer arithmetic, every operator of it quantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import pytest
import torch
from lowbit import Decision, Quantizer, calibrate, convert_pt2e, decisions, prepare_pt2e
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.observers import MinMaxObserver, PerChannelMinMaxObserver
from lowbit.ir.specs import QuantizationSpec, QuantizationSpecBase
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten

WEIGHTED = (aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
CLAMPS = (aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default)


def activation(dtype: torch.dtype = torch.uint8, low: int = 0, high: int = 127) -> QuantizationSpec:
    return QuantizationSpec(dtype, MinMaxObserver, low, high, torch.per_tensor_affine)


def weight(qscheme: torch.qscheme = torch.per_channel_symmetric, low: int = -128) -> QuantizationSpec:
    if qscheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return QuantizationSpec(torch.int8, MinMaxObserver, low, 127, qscheme)
    return QuantizationSpec(torch.int8, PerChannelMinMaxObserver, low, 127, qscheme, 0)


@attrs.frozen
class EveryOperator(Quantizer):
    """Quantizes what each operator reads, and what it gives unless what reads that belongs to it."""

    activation: QuantizationSpecBase
    other: QuantizationSpecBase
    weight: QuantizationSpecBase
    output: QuantizationSpecBase | None
    bias: Callable[[Node], QuantizationSpecBase | None]
    leave: tuple[Any, ...]

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.op == "call_function" and node.target not in self.leave:
                self._annotate(node)
        return model

    def _annotate(self, node: Node) -> None:
        inputs: dict[Node, QuantizationSpecBase | None] = {}
        for i, source in enumerate(node.all_input_nodes):
            if not isinstance(source.meta["val"], Tensor) or source.target in self.leave:
                continue
            if _fuses(source, node):
                continue
            if node.target in WEIGHTED and i > 0:
                inputs[source] = self.weight if i == 1 else self.bias(node)
            else:
                inputs[source] = self.activation if i == 0 else self.other
        readers = list(node.users)
        fuses = len(readers) == 1 and (_fuses(node, readers[0]) or readers[0].target in self.leave)
        set_annotation(node, QuantizationAnnotation(inputs, None if fuses else self.output))


def _fuses(source: Node, node: Node) -> bool:
    """Whether ``node`` is a clamp, or the addition behind a convolution or linear."""
    if source.op != "call_function" or len(source.users) != 1:
        return False
    return node.target in CLAMPS or (node.target is aten.add.Tensor and source.target in WEIGHTED)


@attrs.frozen
class Forms:
    """A model before conversion, and converted in two ways."""

    prepared: GraphModule
    qdq: GraphModule
    reference: GraphModule

    @property
    def decisions(self) -> dict[str, Decision]:
        return {d.node: d for d in decisions(self.reference)}

    @property
    def rules(self) -> list[str]:
        """The rules that wrote the nodes of the reference, in order."""
        kernels = (node.meta.get("lowbit.kernel") for node in self.reference.graph.nodes)
        return [kernel.split(" → ")[0] for kernel in kernels if kernel is not None]

    def float_operators(self) -> list[str]:
        """The operators of the reference that are of the float model."""
        known = {node.name for node in self.prepared.graph.nodes if node.op == "call_function"}
        return [node.name for node in self.reference.graph.nodes if node.name in known]

    def steps_apart(self, *inputs: Any) -> float:
        """The largest difference of a quantized result of the two, in steps of its scale."""
        with torch.no_grad():
            want, got = self.qdq(*inputs), self.reference(*inputs)
        want, got = ([r] if isinstance(r, Tensor) else list(r) for r in (want, got))
        nodes = self.qdq.graph.output_node().all_input_nodes
        apart = 0.0
        for node, one, other in zip(nodes, want, got, strict=True):
            assert one.shape == other.shape
            assert one.dtype is other.dtype
            scale = node.args[1] if "dequantize_per_tensor.default" in str(node.target) else 1.0
            if one.numel():
                apart = max(apart, float((one.double() - other.double()).abs().max() / scale))
        return apart

    def accumulators(self, *inputs: Any) -> list[tuple[Node, Sequence[Any], Tensor]]:
        """The integer accumulators: node, arguments and result of each."""
        found: list[tuple[Node, Sequence[Any], Tensor]] = []

        class Recorder(Interpreter):
            def run_node(self, n: Node) -> Any:
                value = super().run_node(n)
                if n.target is torch.ops.higher_order.out_dtype:
                    found.append((n, self.fetch_args_kwargs_from_env(n)[0], value))
                return value

        with torch.no_grad():
            Recorder(self.reference, garbage_collect_values=False).run(*inputs)
        return found


class MakeForms(Protocol):
    def __call__(
        self,
        model: nn.Module,
        *inputs: Any,
        activation: QuantizationSpecBase = ...,
        other: QuantizationSpecBase | None = ...,
        weight: QuantizationSpecBase = ...,
        output: QuantizationSpecBase | str | None = ...,
        bias: Callable[[Node], QuantizationSpecBase | None] = ...,
        leave: tuple[Any, ...] = ...,
        fold_quantize: bool = ...,
        **export_options: Any,
    ) -> Forms: ...


@pytest.fixture(scope="session")
def specs() -> Any:
    """``specs.activation(dtype, low, high)`` and ``specs.weight(qscheme, low)``."""

    class Specs:
        activation = staticmethod(activation)
        weight = staticmethod(weight)

    return Specs


@pytest.fixture(scope="session")
def make_forms() -> MakeForms:
    """Export, quantize every operator but those to leave, calibrate on the inputs, convert in both ways."""

    def make(
        model: nn.Module,
        *inputs: Any,
        activation: QuantizationSpecBase = activation(),  # noqa: B008
        other: QuantizationSpecBase | None = None,
        weight: QuantizationSpecBase = weight(),  # noqa: B008
        output: QuantizationSpecBase | str | None = "activation",
        bias: Callable[[Node], QuantizationSpecBase | None] = lambda node: None,
        leave: tuple[Any, ...] = (),
        fold_quantize: bool = True,
        **export_options: Any,
    ) -> Forms:
        exported = torch.export.export(model.eval(), inputs, **export_options).module()
        assert isinstance(exported, GraphModule)
        out = activation if output == "activation" else output
        assert not isinstance(out, str)
        quantizer = EveryOperator(activation, other or activation, weight, out, bias, leave)
        prepared = prepare_pt2e(exported, quantizer)
        calibrate(prepared, [inputs], progress=False)
        options = {"fold_quantize": fold_quantize}
        qdq = convert_pt2e(prepared, **options)
        return Forms(prepared, qdq, convert_pt2e(prepared, use_reference_representation=True, **options))

    return make
