"""How the tensors around an operator are quantized, read from the graph at whatever stage it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Node

from ...errors import NotCalibratedError
from ...ir import quantized_decomposed as qd
from ...ir.attributes import AttributeFinder
from ...ir.points import owner_of, tensor_of
from ...ir.schema import OpOverload, argument, signature
from ...ir.sharing import SharingGroup, SharingResult
from ...ir.specs import ConcreteSpec, EdgeOrNode, QuantizationSpec
from ...ir.text.short import DTYPE_NAMES, format_spec
from ...ir.verifiers import is_observer

__all__ = ["TensorExplanation", "TensorReader"]


@attrs.frozen
class TensorExplanation:
    """How a tensor that an operator reads or writes is quantized.

    Args:
        tensor: name of the node that makes it; of a kernel, of the argument.
        role: "reads" or "writes"; of a kernel "argument" or "result".
        spec: dtype, range and scheme, as far as they are known.
        scale: the smallest and the largest scale; None before calibration, and of what is found at run time.
        zero_point: likewise.
        channels: the number of scales; 1 for one a tensor.
        group: number of its sharing group, in a prepared model.
        shared_by: how many points are in that group.
        observer: name of the observer, in a prepared model.
    """

    tensor: str
    role: str
    spec: str = ""
    scale: tuple[float, float] | None = None
    zero_point: tuple[int, int] | None = None
    channels: int = 1
    group: int | None = None
    shared_by: int = 1
    observer: str = ""

    def __str__(self) -> str:
        of_kernel = self.role in {"argument", "result"}
        name = f"{self.tensor} of the kernel" if of_kernel else f"%{self.tensor}"
        words = [f"{self.role} {name}", self.spec]
        if self.scale is not None:
            words.append(f"scale {_range(self.scale)}")
        if self.zero_point is not None:
            words.append(f"zero point {_range(self.zero_point)}")
        if self.channels > 1:
            words.append(f"{self.channels} channels")
        if self.group is not None:
            shared = f", shared by {self.shared_by} points" if self.shared_by > 1 else ""
            words.append(f"group {self.group}{shared}")
        if self.observer:
            words.append(f"observer {self.observer}")
        return "; ".join(filter(None, words))


def _range(pair: tuple[float, float]) -> str:
    low, high = (f"{value:.6g}" for value in pair)
    return low if low == high else f"{low} … {high}"


class TensorReader:
    """Reads how tensors of a graph are quantized.

    Args:
        gm: a prepared, converted or lowered model.
        sharing: the sharing of its annotations, if it is prepared.
    """

    def __init__(self, gm: GraphModule, sharing: SharingResult | None) -> None:
        self._find = AttributeFinder(gm).find
        self._points: dict[str, list[tuple[EdgeOrNode, SharingGroup]]] = {}
        for group in sharing.groups if sharing is not None else ():
            for point in group.points:
                self._points.setdefault(owner_of(point).name, []).append((point, group))

    def around(self, node: Node) -> tuple[TensorExplanation, ...]:
        """The quantized tensors that an operator reads, then the one that it writes."""
        annotated = sorted(self._points.get(node.name, []), key=lambda found: isinstance(found[0], Node))
        if annotated:
            return tuple(self._annotated(node, point, group) for point, group in annotated)
        reads = [
            self._converted(source.args, str(_original(source)), "reads")
            for source in node.all_input_nodes
            if qd.is_dequantize(source)
        ]
        writes = [user for user in node.users if qd.is_quantize(user)]
        return (*reads, *(self._converted(user.args, node.name, "writes") for user in writes[:1]))

    def of_kernel(self, kernel: Node) -> tuple[TensorExplanation, ...]:
        """The parameters that the call of a kernel has among its arguments, by their names."""
        return tuple(self._parameters_of(kernel))

    def _annotated(self, node: Node, point: EdgeOrNode, group: SharingGroup) -> TensorExplanation:
        tensor = tensor_of(point).name
        writes = isinstance(point, Node)
        call = self._observer_behind(node) if writes else self._observer_before(node, tensor)
        name = "" if call is None else str(call.target)
        return attrs.evolve(
            self._observed(self._find(name) if name else None),
            tensor=tensor,
            role="writes" if writes else "reads",
            spec=_spec(group.spec),
            group=group.index,
            shared_by=len(group.points),
            observer=name,
        )

    def _observer_before(self, reader: Node, tensor: str) -> Node | None:
        """The observer through which ``reader`` reads ``tensor``: the nearest of them."""
        for source in reader.all_input_nodes:
            at = source
            while self._is_observer(at):
                (at,) = at.all_input_nodes
            if at.name == tensor and at is not source:
                return source
        return None

    def _observer_behind(self, node: Node) -> Node | None:
        return next(filter(self._is_observer, node.users), None)

    def _is_observer(self, node: Node) -> bool:
        return node.op == "call_module" and is_observer(self._find(str(node.target)))

    def _observed(self, observer: Any) -> TensorExplanation:
        has_data = not getattr(observer, "is_dynamic", False) and bool(getattr(observer, "has_data", True))
        if observer is None or not has_data:
            return TensorExplanation("", "")
        try:
            scale, zero_point = observer.calculate_qparams()
        except NotCalibratedError:
            return TensorExplanation("", "")
        return _with_parameters(TensorExplanation("", ""), scale, zero_point)

    def _converted(self, args: tuple[Any, ...], tensor: str, role: str) -> TensorExplanation:
        """Of the arguments of a quantize or dequantize."""
        _, scale, zero_point, *axis, low, high, dtype = args
        at = f", axis {axis[0]}" if axis else ""
        spec = f"{DTYPE_NAMES.get(dtype, str(dtype))}[{low}, {high}]{at}"
        found = TensorExplanation(tensor, role, spec)
        return _with_parameters(found, self._value(scale), self._value(zero_point))

    def _parameters_of(self, kernel: Node) -> Iterator[TensorExplanation]:
        assert isinstance(kernel.target, OpOverload)
        names = signature(kernel.target).positional
        for name in names:
            stem = name.removesuffix("s").removesuffix("scale")
            zero = next((n for n in (f"{stem}zero_point", f"{stem}zero_points") if n in names), None)
            if stem == name.removesuffix("s") or zero is None:
                continue
            scale, zero_point = (self._value(argument(kernel, n)) for n in (name, zero))
            role = "result" if stem.startswith("out") else "argument"
            value = kernel.meta.get("val")
            if role == "result" and isinstance(value, torch.Tensor) and value.is_floating_point():
                continue
            found = TensorExplanation(stem.strip("_") or name, role)
            yield _with_parameters(found, scale, zero_point)

    def _value(self, value: Any) -> Any:
        """A number, or the tensor of a constant; None for what is found at run time."""
        if isinstance(value, Node):
            return self._find(str(value.target)) if value.op == "get_attr" else None
        return value


def _spec(spec: ConcreteSpec) -> str:
    """What is quantized to what, without who observes it."""
    if not isinstance(spec, QuantizationSpec):
        return format_spec(spec)
    words = [DTYPE_NAMES.get(spec.dtype, str(spec.dtype))]
    if spec.quant_min is not None and spec.quant_max is not None:
        words = [f"{words[0]}[{spec.quant_min}, {spec.quant_max}]"]
    if spec.qscheme is not None:
        words.append(str(spec.qscheme).removeprefix("torch.").replace("_", " "))
    if spec.ch_axis is not None and "channel" in words[-1]:
        words.append(f"axis {spec.ch_axis}")
    return ", ".join([*words, *(["found at run time"] if spec.is_dynamic else [])])


def _original(dequantize: Node) -> Node:
    """What is dequantized, before it was quantized."""
    stored = dequantize.args[0]
    assert isinstance(stored, Node)
    before = stored.args[0] if qd.is_quantize(stored) else stored
    assert isinstance(before, Node)
    return before


def _with_parameters(found: TensorExplanation, scale: Any, zero_point: Any) -> TensorExplanation:
    if scale is None:
        return found
    scales = torch.as_tensor(scale, dtype=torch.float64).flatten()
    zeros = None if zero_point is None else torch.as_tensor(zero_point).flatten()
    return attrs.evolve(
        found,
        scale=(_short(scales.min().item()), _short(scales.max().item())) if scales.numel() else None,
        zero_point=(int(zeros.min()), int(zeros.max())) if zeros is not None and zeros.numel() else None,
        channels=scales.numel(),
    )


def _short(value: float) -> float:
    """Seven digits, which is all that float32 has."""
    return float(f"{value:.7g}")
