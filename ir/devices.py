"""The device that a model is on: one, with values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from ..errors import DeviceError
from .location import locate

__all__ = ["check_device", "device_of"]


def device_of(gm: GraphModule) -> torch.device:
    """The device of the model's tensors, or of its inputs where it has none of its own."""
    return next((device for _, device in _tensors(gm)), torch.device("cpu"))


def check_device(gm: GraphModule) -> torch.device:
    """See that all tensors of ``gm`` are on one device, and have values.

    A number on the CPU (a tensor without dimensions) goes with any device.

    Raises:
        DeviceError: tensors on the meta device, which have no values, or on several devices.
    """
    first: dict[torch.device, str] = {}
    for name, device in _tensors(gm):
        first.setdefault(device, name)
    meta = next((name for device, name in first.items() if device.type == "meta"), None)
    if meta is not None:
        raise DeviceError(
            f"the tensor {meta!r} of the model is on the meta device: it has no values",
            where=_where(gm, meta),
            hint="export the model with its weights on a real device: to_empty(), then load_state_dict()",
        )
    if len(first) > 1:
        found = ", ".join(f"{name!r} is on {device}" for device, name in first.items())
        raise DeviceError(
            f"the tensors of the model are on {len(first)} devices: {found}",
            where=tuple(place for name in first.values() for place in _where(gm, name)),
            hint="move the model to one device before torch.export; one that spans several is not quantized",
        )
    return next(iter(first), torch.device("cpu"))


def _tensors(gm: GraphModule) -> Iterator[tuple[str, torch.device]]:
    """Names and devices of parameters, buffers and inputs, in this order."""
    for tensors in (gm.named_parameters(), gm.named_buffers()):
        for name, tensor in tensors:
            if tensor.dim() or tensor.is_meta:
                yield name, tensor.device
    if not any(True for _ in gm.parameters()):
        for node in gm.graph.find_nodes(op="placeholder"):
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.dim():
                yield node.name, value.device


def _where(gm: GraphModule, name: str) -> tuple[str, ...]:
    """Who reads the tensor ``name``."""
    readers: list[Node] = [
        user
        for node in gm.graph.nodes
        if (node.op == "get_attr" and node.target == name) or (node.op == "placeholder" and node.name == name)
        for user in node.users
    ]
    return locate(readers[0]) if readers else ()
