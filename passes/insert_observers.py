"""``insert-observers``: put an observer at every annotated point, one module a sharing group."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

import attrs
import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import DeviceError, UnsupportedError
from ..ir.aliasing import aliased_inputs, find_aliases, written_inputs
from ..ir.attributes import FreeNames, is_constant
from ..ir.devices import device_of_value, only_device
from ..ir.inputs import replace_inputs
from ..ir.location import describe_point, locate
from ..ir.observers import create_observer
from ..ir.points import owner_of, tensor_of
from ..ir.sharing import SharingGroup, SharingResult, resolve_sharing
from ..ir.specs import CAST_DTYPES, ConcreteSpec, DerivedQuantizationSpec, EdgeOrNode
from ..ir.stages import Stage
from .base import PassContext
from .contracts import EXACT, Contract
from .registry import register_pass

__all__ = ["Create", "InsertObservers", "insert"]

# A spec with one of these is how presets say that a tensor stays as it is (a bias, for one).
_FLOAT_DTYPES = frozenset({torch.float32, torch.float64})
_KEPT_META = ("val", "nn_module_stack", "stack_trace", "from_node", "tensor_meta")


@register_pass
@attrs.frozen
class InsertObservers:
    """Inserts the observers that annotations and their sharing ask for.

    Points of one group call the same module, registered once as ``activation_post_process``,
    ``activation_post_process_1``, …. An edge whose group is not that of its producer's output gets an
    observer of its own behind the producer's: two quantizations in a row after conversion.

    Memory that the graph writes into is observed where it is read, not where it comes from: conversion puts
    a copy in the observer's place, which must be of the value at that moment. Whoever writes into it, or
    makes a view of it, gets the memory itself (``written-in-place`` in the ledger).
    """

    name: ClassVar[str] = "insert-observers"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.ANNOTATED})
    ensures: ClassVar[Stage | None] = Stage.OBSERVED
    contract: ClassVar[Contract | None] = EXACT
    bodies: ClassVar[bool] = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Insert observers into ``gm``.

        Raises:
            SharingError: the annotations contradict each other.
            AnnotationError: an annotation names an edge that does not exist.
            DeviceError: tensors on different devices are to share one scale.
            UnsupportedError: a dtype that the quantize operators do not know.
        """
        return insert(gm, context, _create_observer)


class Create(Protocol):
    """Makes the module for a spec."""

    def __call__(
        self, spec: ConcreteSpec, *, derived_from: Sequence[torch.nn.Module], shape: torch.Size | None
    ) -> torch.nn.Module:
        """``derived_from``: the modules of the points that a derived spec names; ``shape``: of the tensor."""
        ...


def _create_observer(
    spec: ConcreteSpec, *, derived_from: Sequence[torch.nn.Module], shape: torch.Size | None
) -> torch.nn.Module:
    return create_observer(spec, derived_from=derived_from)


def insert(gm: GraphModule, context: PassContext, create: Create) -> bool:
    """Insert what ``create`` makes at every annotated point, one a sharing group; say whether there was one.

    Args:
        gm: the annotated graph module.
        context: of the pass.
        create: makes the modules.

    Raises:
        SharingError, AnnotationError, UnsupportedError: see :meth:`InsertObservers.run`.
    """
    sharing = resolve_sharing(gm.graph)
    targets = _make_observers(gm, sharing, create)
    _Insertion(gm, sharing, targets, context).run()
    return _drop_unread(gm, targets.values())


def _drop_unread(gm: GraphModule, targets: Iterable[str]) -> bool:
    """Drop the modules of points that nobody reads, which see no data; say whether others are left."""
    called = {str(node.target) for node in gm.graph.find_nodes(op="call_module")}
    unread = [target for target in targets if target not in called]
    for target in unread:
        gm.delete_submodule(target)
    return any(target in called for target in targets)


def _needs_observer(group: SharingGroup) -> bool:
    spec = group.spec
    if spec.dtype in _FLOAT_DTYPES:
        return False
    if spec.dtype.is_floating_point and spec.dtype not in CAST_DTYPES:
        raise UnsupportedError(
            f"{describe_point(group.points[0])} is to be quantized to {spec.dtype}",
            where=locate(owner_of(group.points[0])),
            hint="use an integer dtype, or torch.float16 or torch.bfloat16 for a cast",
        )
    if spec.dtype not in CAST_DTYPES:
        for point in group.points:
            value = tensor_of(point).meta.get("val")
            if isinstance(value, torch.Tensor) and value.dtype is torch.float64:
                raise UnsupportedError(
                    f"{describe_point(point)} carries float64, which quantize operators do not take",
                    where=locate(owner_of(point)),
                    hint="export the model in float32 (model.float()), or leave the spec of this tensor None",
                )
    return True


def _make_observers(gm: GraphModule, sharing: SharingResult, create: Create) -> dict[int, str]:
    """One observer module a group, registered on ``gm``: group index → attribute name."""
    names = FreeNames(gm)
    modules: dict[int, torch.nn.Module] = {}
    device = only_device(gm)
    # A tied weight may have as many groups as users, and each look goes through the users.
    constant = functools.cache(is_constant)
    for group in sharing.creation_order:
        if _needs_observer(group):
            modules[group.index] = observer = _make_observer(group, sharing, modules, create)
            observer.to(device or _device_of(group))
            tensors = dict.fromkeys(tensor_of(point) for point in group.points)
            is_of_one_constant = len({n.target for n in tensors}) == 1 and all(map(constant, tensors))
            # In training too: an observer of a weight is to know the weight as it is, not all that it was.
            if is_of_one_constant and hasattr(observer, "observe_once"):
                observer.observe_once = True  # pyright: ignore[reportArgumentType]  (as nn.Module types it)
    targets: dict[int, str] = {}
    # Registered in graph order, so that names read in the order of the model.
    for group in sharing.groups:
        if group.index in modules:
            targets[group.index] = names.fresh("activation_post_process")
            gm.add_module(targets[group.index], modules[group.index])
    return targets


def _device_of(group: SharingGroup) -> torch.device:
    """The device of the tensors of ``group``, in a model on several."""
    points: dict[torch.device, EdgeOrNode] = {}
    for point in group.points:
        points.setdefault(device_of_value(tensor_of(point)), point)
    if len(points) > 1:
        found = " and ".join(f"{describe_point(point)} on {device}" for device, point in points.items())
        raise DeviceError(
            f"one scale is shared between devices: {found}",
            where=tuple(line for point in points.values() for line in locate(owner_of(point))),
            hint="give the tensors specs of their own, or put them on one device",
        )
    return next(iter(points))


def _make_observer(
    group: SharingGroup, sharing: SharingResult, modules: dict[int, torch.nn.Module], create: Create
) -> torch.nn.Module:
    spec = group.spec
    sources: list[torch.nn.Module] = []
    if isinstance(spec, DerivedQuantizationSpec):
        for point in spec.derived_from:
            source = sharing.group_of(point)
            assert source is not None  # the resolver reports derivations from un-annotated points
            if source.index not in modules:
                raise UnsupportedError(
                    f"a spec is derived from {describe_point(point)}, which stays {source.spec.dtype}",
                    where=locate(owner_of(point)),
                    hint="derive from points that are quantized",
                )
            sources.append(modules[source.index])
    value = tensor_of(group.points[0]).meta.get("val")
    shape = value.shape if isinstance(value, torch.Tensor) else None
    return create(spec, derived_from=sources, shape=shape)


def _written_memory(graph: Graph) -> frozenset[Node]:
    """The values that may share memory with what an operator of ``graph`` writes into."""
    written = {source for node in graph.nodes for source in written_inputs(node)}
    if not written:
        return frozenset()
    aliases = find_aliases(graph)
    groups = {aliases.group(node) for node in written}
    return frozenset(node for node in graph.nodes if aliases.group(node) in groups)


@attrs.define
class _Insertion:
    """Makes the readers of annotated tensors read through the observers of their points."""

    gm: GraphModule
    sharing: SharingResult
    targets: dict[int, str]
    context: PassContext
    written: frozenset[Node] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.written = _written_memory(self.gm.graph)

    def run(self) -> None:
        producers = dict.fromkeys(tensor_of(p) for group in self.sharing.groups for p in group.points)
        # Each reader is changed once for all of its inputs: one by one, an operator of n inputs costs n².
        read_as: dict[Node, dict[Node, Node]] = {}
        for producer in producers:
            calls: dict[tuple[Node, str], Node] = {}
            for reader in list(producer.users):
                value = self._observed(producer, reader, calls)
                if value is not producer:
                    read_as.setdefault(reader, {})[producer] = value
        for reader, values in read_as.items():
            replace_inputs(reader, values)

    def _observed(self, producer: Node, reader: Node, calls: dict[tuple[Node, str], Node]) -> Node:
        """What ``reader`` is to read in place of ``producer``; ``calls`` are the observers made already."""
        chain = [] if _is_check(reader) else self._chain(producer, reader)
        if chain and not self._may_observe(producer, reader):
            detail = f"%{producer.name} is memory that is written into"
            self.context.ledger.missed("written-in-place", reader, detail)
            return producer
        if chain and not self.context.allows("observe", producer):
            return producer
        value = producer
        for target in chain:
            if producer in self.written:
                with self.gm.graph.inserting_before(reader):
                    value = self._call(target, value)
            else:
                if (value, target) not in calls:
                    with self.gm.graph.inserting_after(value):
                        calls[value, target] = self._call(target, value)
                value = calls[value, target]
        return value

    def _chain(self, producer: Node, reader: Node) -> list[str]:
        """The observers between the two: that of the output, then that of the edge if it is another."""
        groups = (self.sharing.group_of(producer), self.sharing.group_of((producer, reader)))
        indices = dict.fromkeys(g.index for g in groups if g is not None and g.index in self.targets)
        return [self.targets[index] for index in indices]

    def _may_observe(self, producer: Node, reader: Node) -> bool:
        if producer not in self.written:
            return True
        return producer not in written_inputs(reader) and producer not in aliased_inputs(reader)

    def _call(self, target: str, source: Node) -> Node:
        node = self.gm.graph.call_module(target, (source,))
        node.meta = {key: source.meta[key] for key in _KEPT_META if key in source.meta}
        return node


def _is_check(node: Node) -> bool:
    """Whether ``node`` only looks at its inputs, as the guards of exported programs do."""
    return node.op == "call_module" and not node.users
