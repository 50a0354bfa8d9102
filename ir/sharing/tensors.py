"""Conflicts between a spec and its tensors, as far as their dtypes and shapes are known."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
import torch
from torch.fx import Node

from ..location import describe_point
from ..points import owner_of, tensor_of
from ..problems import Problem, places
from ..specs import (
    PER_CHANNEL_QSCHEMES,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from .chains import chain
from .links import LinkGraph
from .result import SharingGroup

__all__ = ["tensor_problems"]

_Label = TypeVar("_Label", bound=Hashable)
_Tensors = dict[EdgeOrNode, torch.Tensor]


@attrs.frozen
class _Context:
    """What the checks of all groups need: specs as annotated, graph order, and the links for chains."""

    specs: Mapping[EdgeOrNode, QuantizationSpecBase]
    positions: Mapping[EdgeOrNode, int]
    links: LinkGraph


def tensor_problems(
    groups: Iterable[SharingGroup],
    specs: Mapping[EdgeOrNode, QuantizationSpecBase],
    positions: Mapping[EdgeOrNode, int],
    links: LinkGraph,
) -> Iterator[Problem]:
    """What is wrong between the groups' specs and the tensors that ``node.meta["val"]`` shows.

    That is: a node of several outputs; a tensor that is not floating-point; tensors of several dtypes in one
    group; a tensor without the channel axis of its spec; channel axes of several sizes in one group. Symbolic
    sizes are not compared: a comparison would specialize the graph.

    Args:
        groups: the groups.
        specs: the spec that each point is annotated with.
        positions: the place of each point in graph order.
        links: the links, for the chain between two points in conflict.
    """
    context = _Context(specs, positions, links)
    for group in groups:
        # A "quantization" to float32 is how presets say that a tensor stays as it is (a bias, for one).
        if group.spec.dtype is torch.float32:
            continue
        yield from _several_outputs(group, context)
        tensors = _tensors(group)
        yield from _not_floating(group, tensors, context)
        floating = {point: tensor for point, tensor in tensors.items() if tensor.is_floating_point()}
        yield from _several(
            _classes(floating, lambda tensor: tensor.dtype),
            str,
            "cast the tensors to one dtype, or keep them from sharing",
            context,
        )
        axis = _channel_axis(group)
        if axis is None:
            continue
        yield from _without_axis(floating, axis, context)
        yield from _several(
            _channel_counts(floating, axis),
            "{} channels on its channel axis".format,
            "one scale a channel fits tensors of one channel count only: give them specs of their own",
            context,
        )


def _tensors(group: SharingGroup) -> _Tensors:
    """The known tensors of a group, each under the first point that carries it."""
    first: dict[Node, EdgeOrNode] = {}
    for point in group.points:
        first.setdefault(tensor_of(point), point)
    values: Iterator[tuple[EdgeOrNode, Any]] = ((p, node.meta.get("val")) for node, p in first.items())
    return {point: value for point, value in values if isinstance(value, torch.Tensor)}


def _several_outputs(group: SharingGroup, context: _Context) -> Iterator[Problem]:
    for point in group.points:
        if isinstance(tensor_of(point).meta.get("val"), (tuple, list)):
            yield Problem(
                f"{describe_point(point)} is annotated, but %{tensor_of(point).name} has several outputs",
                places([owner_of(point)]),
                "annotate the getitem nodes that take the outputs apart",
                context.positions[point],
            )


def _classes(tensors: _Tensors, label: Callable[[torch.Tensor], _Label]) -> dict[_Label, list[EdgeOrNode]]:
    classes: dict[_Label, list[EdgeOrNode]] = {}
    for point, tensor in tensors.items():
        classes.setdefault(label(tensor), []).append(point)
    return classes


def _not_floating(group: SharingGroup, tensors: _Tensors, context: _Context) -> Iterator[Problem]:
    annotated = next(p for p in group.points if not isinstance(context.specs[p], SharedQuantizationSpec))
    others = {point: tensor for point, tensor in tensors.items() if not tensor.is_floating_point()}
    for dtype, points in _classes(others, lambda tensor: tensor.dtype).items():
        steps = [*context.links.steps(points[0], annotated), ("is to be quantized to", str(group.spec.dtype))]
        yield Problem(
            f"{chain(points[0], steps)}, but {_names(points)} is not floating-point: {dtype}",
            places([owner_of(points[0]), owner_of(annotated)]),
            "annotate floating-point tensors only; leave the spec of this one None",
            context.positions[points[0]],
        )


def _several(
    classes: Mapping[_Label, list[EdgeOrNode]],
    text: Callable[[_Label], str],
    hint: str,
    context: _Context,
) -> Iterator[Problem]:
    """A problem for each class of tensors but the first, with the chain from that first."""
    if len(classes) < 2:
        return
    (kept, (start, *_)), *others = classes.items()
    for label, points in others:
        end = points[0]
        yield Problem(
            f"{chain(start, context.links.steps(start, end))}: one scale for what differs, "
            f"{_names([start])} ({text(kept)}) and {_names(points)} ({text(label)})",
            places([owner_of(start), owner_of(end)]),
            hint,
            context.positions[end],
        )


def _channel_axis(group: SharingGroup) -> int | None:
    """The axis along which a group has a scale a channel; None without one, or where the observer chooses."""
    spec = group.spec
    if isinstance(spec, FixedQParamsQuantizationSpec) or spec.qscheme not in PER_CHANNEL_QSCHEMES:
        return None
    return spec.ch_axis


def _without_axis(tensors: _Tensors, axis: int, context: _Context) -> Iterator[Problem]:
    for point, tensor in tensors.items():
        if tensor.dim() <= axis:
            yield Problem(
                f"{describe_point(point)} is to be quantized per channel on axis {axis}, but "
                f"{_names([point])} has {tensor.dim()} dimensions: {tuple(tensor.shape)}",
                places([owner_of(point)]),
                "count ch_axis from 0; it must be an axis of every tensor that shares the spec",
                context.positions[point],
            )


def _channel_counts(tensors: _Tensors, axis: int) -> dict[int, list[EdgeOrNode]]:
    counted = {
        p: t for p, t in tensors.items() if t.dim() > axis and not isinstance(t.shape[axis], torch.SymInt)
    }
    return _classes(counted, lambda tensor: tensor.shape[axis])


def _names(points: Iterable[EdgeOrNode]) -> str:
    return ", ".join(f"%{tensor_of(point).name}" for point in points)
