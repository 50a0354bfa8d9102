"""The devices that a model is on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import GraphModule, Node

from ..errors import DeviceError
from .location import locate

__all__ = ["check_has_values", "check_is_on", "device_of_value", "only_device"]


def only_device(gm: GraphModule) -> torch.device | None:
    """The device of all tensors of ``gm``; None where they are on several, or there are none.

    A number on the CPU (a tensor without dimensions) goes with any device.
    """
    devices = {device for _, device in _tensors(gm)}
    return devices.pop() if len(devices) == 1 else None


def device_of_value(node: Node) -> torch.device:
    """The device that the result of ``node`` was on when the model was exported."""
    value = node.meta.get("val")
    return value.device if isinstance(value, torch.Tensor) else torch.device("cpu")


def check_has_values(gm: GraphModule) -> None:
    """See that no tensor of ``gm`` is on the meta device.

    Raises:
        DeviceError: one is; it has no values to work with.
    """
    name = next((name for name, device in _tensors(gm) if device.type == "meta"), None)
    if name is not None:
        raise DeviceError(
            f"the tensor {name!r} of the model is on the meta device: it has no values",
            where=_where(gm, name),
            hint="export the model with its weights on a real device: to_empty(), then load_state_dict()",
        )


def check_is_on(gm: GraphModule, device: str, whose: str) -> None:
    """See that all tensors of ``gm`` are on a ``device`` (a type), where the kernels of ``whose`` run.

    Raises:
        DeviceError: one is elsewhere.
    """
    for name, found in _tensors(gm):
        if found.type != device:
            raise DeviceError(
                f"the tensor {name!r} of the model is on {found}, and the kernels of {whose} run on {device}",
                where=_where(gm, name),
                hint=f"move the model there, model.to({device!r}), or pass pack_weights=False",
            )


def _tensors(gm: GraphModule) -> Iterator[tuple[str, torch.device]]:
    """Names and devices of parameters and buffers."""
    for tensors in (gm.named_parameters(), gm.named_buffers()):
        for name, tensor in tensors:
            if tensor.dim() or tensor.is_meta:
                yield name, tensor.device


def _where(gm: GraphModule, name: str) -> tuple[str, ...]:
    """Who reads the tensor ``name``, the first of them."""
    for node in gm.graph.find_nodes(op="get_attr"):
        if node.target == name and node.users:
            return locate(next(iter(node.users)))
    return ()
