"""Tensors of a module tree and the file beside the text: what shares memory is one tensor in it.

A tensor that nothing else shares memory with is stored under its first name, in its shape. Of tensors that
share memory, the memory is stored, as one dimension, and each says where in it it lies. A tensor that has
several names is stored, and read, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import torch
from safetensors.torch import save
from torch import Tensor

from ...errors import UnsupportedError

__all__ = ["Placement", "Stored", "as_stored", "from_stored", "place_tensors", "to_bytes"]

_STORED_DTYPES: Final = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8),
        *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
    }
)


@attrs.frozen
class Placement:
    """Where a tensor of the module tree is found in the file.

    Args:
        key: the name in the file.
        same: the first name of the tensor object, if this is another name of it.
        offset: where it begins in the memory stored under ``key``, in elements; None when what is stored is
            the tensor itself.
    """

    key: str
    same: str | None = None
    offset: int | None = None


@attrs.frozen
class Stored:
    """What the text says of a tensor: all that the file does not.

    Args:
        dtype: its dtype.
        shape: its sizes.
        strides: its strides, in elements; None when it is contiguous.
        device: where it is to be.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    device: torch.device


def place_tensors(tensors: Sequence[tuple[str, Tensor]]) -> list[Placement]:
    """Where each of the named tensors goes.

    Raises:
        UnsupportedError: tensors of different dtypes share memory.
    """
    sharing: dict[object, list[tuple[str, Tensor]]] = {}
    first_name: dict[int, str] = {}
    for name, tensor in tensors:
        if first_name.setdefault(id(tensor), name) == name:
            sharing.setdefault(_memory(tensor), []).append((name, tensor))
    placed: dict[int, Placement] = {}
    for group in sharing.values():
        key, first = group[0]
        if any(tensor.dtype != first.dtype for _, tensor in group):
            raise UnsupportedError(
                f"{', '.join(name for name, _ in group)} share memory and have different dtypes",
                hint="clone one of them",
            )
        if len(group) == 1 and _has_own_elements(first):
            placed[id(first)] = Placement(key)
            continue
        start = min(tensor.storage_offset() for _, tensor in group)
        for _, tensor in group:
            placed[id(tensor)] = Placement(key, offset=int(tensor.storage_offset() - start))
    return [
        attrs.evolve(
            placed[id(tensor)], same=None if first_name[id(tensor)] == name else first_name[id(tensor)]
        )
        for name, tensor in tensors
    ]


def _memory(tensor: Tensor) -> object:
    address = tensor.untyped_storage().data_ptr()
    return (tensor.device, address) if address else id(tensor)


def _has_own_elements(tensor: Tensor) -> bool:
    """Whether no two elements lie at one address."""
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return False
            extent = stride * (size - 1) + extent
    return True


def as_stored(tensors: Sequence[tuple[str, Tensor]], placements: Sequence[Placement]) -> dict[str, Tensor]:
    """What goes into the file, by key: contiguous, on the CPU, of dtypes that the file format has.

    Other dtypes are stored as their bytes.
    """
    extents: dict[str, int] = {}
    for (_, tensor), place in zip(tensors, placements, strict=True):
        if place.offset is not None:
            extents[place.key] = max(extents.get(place.key, 0), place.offset + _extent(tensor))
    stored: dict[str, Tensor] = {}
    for (_, tensor), place in zip(tensors, placements, strict=True):
        if place.key in stored:
            continue
        plain = tensor.detach()
        if place.offset is not None:
            start = tensor.storage_offset() - place.offset
            plain = plain.as_strided((extents[place.key],), (1,), start)
        plain = plain.cpu().contiguous()
        if plain.dtype not in _STORED_DTYPES:
            plain = plain.reshape(-1).view(torch.uint8)
        stored[place.key] = plain
    return stored


def _extent(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def from_stored(
    stored: Mapping[str, Tensor], place: Placement, what: Stored, memory: dict[str, Tensor]
) -> Tensor:
    """The tensor that was stored at ``place``; ``memory`` keeps what is shared from call to call.

    Raises:
        ValueError: what is stored does not fit.
    """
    tensor = stored[place.key].detach()
    if tensor.dtype != what.dtype:
        if tensor.dtype != torch.uint8:
            raise ValueError(f"it is {tensor.dtype} there")
        tensor = tensor.view(what.dtype)
    if place.offset is not None:
        tensor = memory.setdefault(place.key, tensor.to(what.device).clone())
        return tensor.as_strided(what.shape, what.strides or _contiguous(what.shape), place.offset)
    if tensor.numel() != _numel(what.shape):
        raise ValueError(f"it has the shape {list(tensor.shape)} there")
    tensor = tensor.reshape(what.shape).to(what.device)
    if what.strides is None:
        # A copy: what was handed in stays the caller's.
        return tensor.clone(memory_format=torch.contiguous_format)
    made = torch.empty_strided(what.shape, what.strides, dtype=what.dtype, device=what.device)
    return made.copy_(tensor)


def _numel(shape: tuple[int, ...]) -> int:
    numel = 1
    for size in shape:
        numel *= size
    return numel


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def to_bytes(stored: Mapping[str, Tensor]) -> bytes:
    """The contents of the safetensors file: equal tensors give equal bytes."""
    return save(dict(sorted(stored.items())))
