"""``insert-observers``: put an observer at every annotated point, one module a sharing group."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs
import torch
from torch.fx import GraphModule, Node

from ..ir.aliasing import written_inputs
from ..ir.attributes import FreeNames, is_constant
from ..ir.observers import create_observer
from ..ir.sharing import SharingGroup, SharingResult
from ..ir.specs import ConcreteSpec, DerivedQuantizationSpec
from ..ir.stages import Stage
from .base import PassContext
from .registry import register_pass
from .resolve_sharing import sharing_of

__all__ = ["InsertObservers"]

# Low-precision floats are casts, which convert needs a marker for; wider ones mean "leave float".
_CAST_DTYPES = frozenset({torch.float16, torch.bfloat16})
_KEPT_META = ("val", "nn_module_stack", "stack_trace", "from_node", "tensor_meta")


@register_pass
@attrs.frozen
class InsertObservers:
    """Inserts the observers that annotations and their sharing ask for.

    Points of one group call the same module, registered once as ``activation_post_process_<n>``. An edge
    whose group is not that of its producer's output gets an observer of its own behind the producer's: two
    quantizations in a row after conversion.
    """

    name: ClassVar[str] = "insert-observers"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.ANNOTATED})
    ensures: ClassVar[Stage | None] = Stage.OBSERVED

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        """Insert observers into ``gm``."""
        sharing = sharing_of(gm)
        targets = _make_observers(gm, sharing)
        _insert(gm, sharing, targets)
        return bool(targets)


def _needs_observer(spec: ConcreteSpec) -> bool:
    return not spec.dtype.is_floating_point or spec.dtype in _CAST_DTYPES


def _make_observers(gm: GraphModule, sharing: SharingResult) -> dict[int, str]:
    """One observer module a group, registered on ``gm``: group index → attribute name."""
    names = FreeNames(gm)
    modules: dict[int, torch.nn.Module] = {}
    for group in sharing.creation_order:
        if not _needs_observer(group.spec):
            continue
        sources: list[torch.nn.Module] = []
        if isinstance(group.spec, DerivedQuantizationSpec):
            for point in group.spec.derived_from:
                source = sharing.group_of(point)
                assert source is not None  # the resolver reports derivations from un-annotated points
                sources.append(modules[source.index])
        observer = create_observer(group.spec, derived_from=sources)
        if _is_of_one_constant(group) and hasattr(observer, "observe_once"):
            observer.observe_once = True  # pyright: ignore[reportArgumentType]  (nn.Module types its setattr)
        modules[group.index] = observer
    targets: dict[int, str] = {}
    # Registered in graph order, so that names read in the order of the model.
    for group in sharing.groups:
        if group.index in modules:
            targets[group.index] = names.fresh("activation_post_process")
            gm.add_module(targets[group.index], modules[group.index])
    return targets


def _is_of_one_constant(group: SharingGroup) -> bool:
    tensors = [point if isinstance(point, Node) else point[0] for point in group.points]
    return all(map(is_constant, tensors)) and len({node.target for node in tensors}) == 1


def _insert(gm: GraphModule, sharing: SharingResult, targets: dict[int, str]) -> None:
    group_on: dict[Node, int] = {}  # producer → group of its output
    edges: list[tuple[Node, Node, int]] = []
    for group in sharing.groups:
        if group.index not in targets:
            continue
        for point in group.points:
            if isinstance(point, Node):
                group_on[point] = group.index
            else:
                edges.append((point[0], point[1], group.index))

    observed: dict[Node, Node] = {}  # producer → observer node of its output
    for producer, group_index in group_on.items():
        observer = _call_observer(gm, targets[group_index], producer)
        observed[producer] = observer
        producer.replace_all_uses_with(observer, delete_user_cb=_reads(producer, observer))

    on_edge: dict[tuple[Node, int], Node] = {}
    for producer, consumer, group_index in edges:
        if group_on.get(producer) == group_index or producer in written_inputs(consumer):
            continue
        source = observed.get(producer, producer)
        key = (producer, group_index)
        if key not in on_edge:
            on_edge[key] = _call_observer(gm, targets[group_index], source)
        consumer.replace_input_with(source, on_edge[key])


def _reads(producer: Node, observer: Node) -> Callable[[Node], bool]:
    """Which users of ``producer`` read through its observer: all but those that write into its memory."""
    return lambda user: user is not observer and producer not in written_inputs(user)


def _call_observer(gm: GraphModule, target: str, source: Node) -> Node:
    with gm.graph.inserting_after(source):
        node = gm.graph.call_module(target, (source,))
    node.meta = {key: source.meta[key] for key in _KEPT_META if key in source.meta}
    return node
