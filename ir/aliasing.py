"""Which values of a graph may share memory, and which calls write into it.

Operator schemas say both, in their alias annotations (``Tensor(a!) self -> Tensor(a!)``), with gaps that this
module closes. An operator made of others (CompositeImplicitAutograd) may return its very input without
saying so — ``type_as``, ``einsum``, ``dropout`` in evaluation — so that of those only the ones known to
compute something new are trusted. And ``batch_norm`` in training writes into the running statistics.

Everything errs on one side: values said not to share memory never do.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import cast

import attrs
import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from .schema import (
    HigherOrderOperator,
    OpOverload,
    argument,
    is_composite,
    operator_name,
    schema_of,
    signature,
)

__all__ = [
    "Aliases",
    "aliased_inputs",
    "find_aliases",
    "is_write",
    "written_inputs",
    "written_memory",
    "written_values",
]

# Composite operators, of those that networks use, that always return new memory.
# fmt: off
_ALWAYS_NEW = frozenset({
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "avg_pool1d", "batch_norm", "bilinear", "concat", "concatenate", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "cosine_similarity", "divide", "dstack",
    "group_norm", "hstack", "inner", "instance_norm", "isfinite", "kron", "layer_norm", "linear",
    "log_sigmoid", "log_softmax", "matmul", "max_pool1d", "max_pool1d_with_indices", "max_pool2d",
    "max_pool3d", "multiply", "negative", "outer", "prelu", "relu6", "repeat_interleave", "rms_norm",
    "scaled_dot_product_attention", "selu", "softmax", "square", "std", "subtract", "tile",
    "true_divide", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d", "var",
    "vstack", "where",
})
# fmt: on

# Operators whose annotation is left out on purpose: their input is meant to be read by nothing else.
_UNSAID = frozenset({"_unsafe_view", "lift", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"})

# Operators that return their input when there is nothing to convert.
_CONVERSIONS = frozenset({"to", "type_as"})

_RUNNING_STATISTICS = ("running_mean", "running_var")


@attrs.frozen(slots=True)
class _Effects:
    """What a schema says: names of the arguments written into, and of those the result may share."""

    written: tuple[str, ...]
    aliased: tuple[str, ...]


@functools.cache
def _effects(op: OpOverload) -> _Effects:
    schema = schema_of(op)
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    if any("Tensor" in str(r.type) for r in schema.returns) and _may_alias_unsaid(op):
        return _Effects(written, tuple(a.name for a in schema.arguments if "Tensor" in str(a.type)))
    if all(r.alias_info is None for r in schema.returns):
        return _Effects(written, ())
    # Annotations of lists, Tensor(a)[], do not show their names: every annotated argument may be meant.
    aliased = tuple(a.name for a in schema.arguments if a.alias_info is not None)
    return _Effects(written, aliased)


def _may_alias_unsaid(op: OpOverload) -> bool:
    schema = schema_of(op)
    if schema.is_mutable or any(r.alias_info is not None for r in schema.returns):
        return False
    namespace, name, _ = operator_name(op)
    if namespace == "aten" and name in _UNSAID:
        return True
    return is_composite(op) and not (namespace == "aten" and name in _ALWAYS_NEW)


def _nodes_in(*values: object) -> tuple[Node, ...]:
    found: dict[Node, None] = {}
    map_arg(values, found.setdefault)  # pyright: ignore[reportArgumentType]  (any pytree will do)
    return tuple(found)


def written_inputs(node: Node) -> tuple[Node, ...]:
    """The values whose memory the call ``node`` writes into."""
    target = node.target
    if isinstance(target, HigherOrderOperator):
        return tuple(node.all_input_nodes) if _a_subgraph_writes(node) else ()
    if not isinstance(target, OpOverload):
        return ()
    names = _effects(target).written
    if "running_mean" in signature(target).positional and _updates_statistics(node, target):
        names += _RUNNING_STATISTICS
    return _nodes_in(*(argument(node, name) for name in names)) if names else ()


def is_write(node: Node) -> bool:
    """Whether the call ``node`` writes into memory that exists before it."""
    return bool(written_inputs(node))


def written_values(graph: Graph) -> frozenset[Node]:
    """The values of ``graph`` that calls write into, themselves or through views; linear in the graph."""
    todo = [value for node in graph.nodes for value in written_inputs(node)]
    written = set(todo)
    while todo:
        for source in aliased_inputs(todo.pop()):
            if source not in written:
                written.add(source)
                todo.append(source)
    return frozenset(written)


def written_memory(graph: Graph) -> Callable[[Node], bool]:
    """A function that says whether a value of ``graph`` may share memory with one that calls write into."""
    written = [value for node in graph.nodes for value in written_inputs(node)]
    if not written:
        return lambda value: False
    aliases = find_aliases(graph)
    groups = {aliases.group(value) for value in written}
    return lambda value: aliases.group(value) in groups


def _updates_statistics(node: Node, target: OpOverload) -> bool:
    positional = signature(target).positional
    return any(
        name in positional and argument(node, name) is True for name in ("training", "use_input_stats")
    )


def _a_subgraph_writes(node: Node) -> bool:
    owner = node.graph.owning_module
    if owner is None:
        return True
    for input_node in node.all_input_nodes:
        if input_node.op != "get_attr" or not isinstance(input_node.target, str):
            continue
        body: object = owner
        for name in input_node.target.split("."):
            body = getattr(body, name)
        if not isinstance(body, GraphModule):
            continue
        aliases = find_aliases(body.graph)
        for inner in body.graph.nodes:
            if any(aliases.is_external(n) for n in written_inputs(inner)):
                return True
    return False


def aliased_inputs(node: Node) -> tuple[Node, ...]:
    """The values whose memory the result of ``node`` may share."""
    if node.op in ("placeholder", "get_attr", "output") or not _may_hold_tensor(node):
        return ()
    target = node.target
    if target is operator.getitem:
        return _nodes_in(node.args[0])
    if not isinstance(target, OpOverload):
        return tuple(node.all_input_nodes)
    names = _effects(target).aliased
    if not names or (operator_name(target)[1] in _CONVERSIONS and _converts(node)):
        return ()
    return _nodes_in(*(argument(node, name) for name in names))


def _converts(node: Node) -> bool:
    """Whether a conversion is known to change the dtype, and so to make a new tensor."""
    source = node.args[0]
    before = source.meta.get("val") if isinstance(source, Node) else None
    after = node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    return before.dtype != after.dtype


def _may_hold_tensor(node: Node) -> bool:
    if "val" not in node.meta:
        return True
    value = node.meta["val"]
    values = cast("tuple[object, ...]", value if isinstance(value, (list, tuple)) else (value,))
    return any(isinstance(v, (torch.Tensor, list, tuple)) for v in values)


@attrs.frozen
class Aliases:
    """A partition of a graph's values: two that may share memory are in one group."""

    _group: Callable[[Node], Node]
    _external: frozenset[Node]

    def group(self, node: Node) -> Node:
        """The value that stands for all that may share memory with ``node``."""
        return self._group(node)

    def is_external(self, node: Node) -> bool:
        """Whether ``node`` may share memory with an input or an attribute of the module."""
        return self.group(node) in self._external


def find_aliases(graph: Graph) -> Aliases:
    """Which values of ``graph`` may share memory; near-linear in its nodes and edges."""
    parent: dict[Node, Node] = {}

    def find(node: Node) -> Node:
        root = node
        while (above := parent.get(root, root)) is not root:
            root = above
        while node is not root:
            parent[node], node = root, parent.get(node, root)
        return root

    outside: list[Node] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            outside.append(node)
        for source in aliased_inputs(node):
            parent[find(node)] = find(source)
    return Aliases(find, frozenset(find(node) for node in outside))
