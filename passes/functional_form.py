"""In-place operators made functional where nobody can tell the difference (a step of ``normalize``).

``y = conv(x); y.relu_()`` becomes ``y = conv(x); z = relu(y)``, and what read ``y`` afterwards reads ``z``.
Nobody can tell when the memory written into belongs to the graph alone — no input, no attribute — and no
other value that may share it, a view say, is read after the write. Where somebody can, the call stays as it
is and the ledger says so.
"""

from __future__ import annotations

import functools

import attrs
import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..ir.aliasing import Aliases, find_aliases, is_write, written_inputs
from ..ir.schema import OpOverload, operator_name, schema_of
from .base import PassContext

__all__ = ["make_functional"]

# Operators that see where in memory a value lies, which a functional form changes.
_SEES_MEMORY = frozenset({"as_strided", "as_strided_", "_reshape_alias", "resize_", "set_", "stride"})

# Fills with random numbers ignore their input; a functional form would draw the same numbers by other means.
_RANDOM_FORMS = frozenset(
    {"dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_", "rrelu_"}
)

_Signature = tuple[object, ...]


def make_functional(graph: Graph, context: PassContext) -> bool:
    """Make in-place calls of ``graph`` functional, in one sweep; say whether anything changed.

    The nodes keep their names and metadata; only what they call changes. A call that must stay in place is
    entered in the ledger with one of the reasons ``writes-external`` (an input, parameter or buffer is
    written), ``in-place-alias``, ``in-place-dtype`` (the functional form has another dtype) and
    ``in-place-only`` (there is no functional form).
    """
    if not any(is_write(node) for node in graph.nodes):
        return False
    return _Sweep(graph, context).run()


@functools.cache
def _functional_form(op: OpOverload) -> OpOverload | None:
    """``aten.relu`` for ``aten.relu_``: the operator of the same arguments that returns a new tensor."""
    namespace, name, overload = operator_name(op)
    random = torch.Tag.nondeterministic_seeded in op.tags
    # Other namespaces need not mean the same by a trailing underscore.
    if namespace != "aten" or not name.endswith("_") or (random and name not in _RANDOM_FORMS):
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    found = getattr(packet, overload, None)
    if not isinstance(found, OpOverload):
        return None
    schema = schema_of(found)
    if schema.is_mutable or len(schema.returns) != 1:
        return None

    def shape(form: OpOverload) -> list[tuple[str, str, bool]]:
        first, *others = schema_of(form).arguments
        # dropout calls it "input", dropout_ "self".
        return [
            ("", str(first.real_type), False),
            *((a.name, str(a.real_type), a.kwarg_only) for a in others),
        ]

    return found if shape(found) == shape(op) else None


def _written_self(node: Node) -> Node | None:
    """The tensor that an in-place call changes and returns, if it is a call of that plain form."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.inplace not in target.tags or not node.args:
        return None
    first = node.args[0]
    return first if isinstance(first, Node) and written_inputs(node) == (first,) else None


@attrs.define
class _Rivals:
    """The two tensors of one alias group that are read longest: position of the last read, and the tensor."""

    best: tuple[int, Node | None] = (-1, None)
    second: tuple[int, Node | None] = (-1, None)

    def add(self, last_read: int, tensor: Node) -> None:
        if last_read > self.best[0]:
            self.best, self.second = (last_read, tensor), self.best
        elif last_read > self.second[0]:
            self.second = (last_read, tensor)

    def last_read_besides(self, tensor: Node) -> int:
        return self.second[0] if self.best[1] is tensor else self.best[0]


class _Sweep:
    """One sweep over a graph.

    A *tensor* here is the node that made it; the in-place calls on it return the same tensor.
    """

    def __init__(self, graph: Graph, context: PassContext) -> None:
        self.graph = graph
        self.context = context
        self.aliases: Aliases = find_aliases(graph)
        self.tensor_of: dict[Node, Node] = {}
        self.last_read: dict[Node, int] = {}
        self.pinned: set[Node] = set()
        self.rivals: dict[Node, _Rivals] = {}
        self.current: dict[Node, Node] = {}
        self.result_dtypes: dict[_Signature, torch.dtype | None] = {}

    def run(self) -> bool:
        for position, node in enumerate(self.graph.nodes):
            self._look_at(position, node)
        changed = False
        for position, node in enumerate(self.graph.nodes):
            changed |= self._visit(position, node)
        return changed

    def _look_at(self, position: int, node: Node) -> None:
        changed_tensor = _written_self(node)
        self.tensor_of[node] = node if changed_tensor is None else self.tensor_of[changed_tensor]
        sees_memory = isinstance(node.target, OpOverload) and operator_name(node.target)[1] in _SEES_MEMORY
        for source in node.all_input_nodes:
            self.last_read[self.tensor_of[source]] = position
            if sees_memory:
                self.pinned.add(self.aliases.group(source))

    def _visit(self, position: int, node: Node) -> bool:
        self._reroute(node)
        changed = False
        tensor = self.tensor_of[node]
        if is_write(node):
            reason, detail = self._objection(position, node)
            if reason:
                self.context.ledger.missed(reason, node, detail)
            elif self.context.allows("functional-form", node):
                assert isinstance(node.target, OpOverload)
                form = _functional_form(node.target)
                assert form is not None
                node.target = form
                self.current[tensor] = node
                changed = True
        if tensor is node:
            group = self.aliases.group(node)
            self.rivals.setdefault(group, _Rivals()).add(self.last_read.get(node, -1), node)
        elif tensor in self.current:
            self.current[tensor] = node
        return changed

    def _reroute(self, node: Node) -> None:
        """Let ``node`` read what its inputs have become."""
        if not self.current:
            return
        for source in node.all_input_nodes:
            now = self.current.get(self.tensor_of[source], source)
            if now is not source:
                node.replace_input_with(source, now)

    def _objection(self, position: int, node: Node) -> tuple[str, str]:
        """Why the in-place call ``node`` must stay: reason code and detail; empty when it need not."""
        if any(self.aliases.is_external(n) for n in written_inputs(node)):
            return "writes-external", "it writes into an input, a parameter or a buffer of the model"
        source = _written_self(node)
        form = _functional_form(node.target) if isinstance(node.target, OpOverload) else None
        if source is None or form is None:
            return "in-place-only", "the operator has no functional form"
        group = self.aliases.group(source)
        if group in self.pinned:
            return "in-place-alias", "an operator reads the memory layout of what it writes"
        if self.rivals[group].last_read_besides(self.tensor_of[source]) > position:
            return "in-place-alias", "another value that may share its memory is read after the write"
        before = _dtype(source)
        if before is None or self._result_dtype(form, node) != before:
            return "in-place-dtype", "the functional form may give another dtype than the tensor written to"
        return "", ""

    def _result_dtype(self, form: OpOverload, node: Node) -> torch.dtype | None:
        signature: list[object] = [form]
        map_arg((node.args, node.kwargs), lambda n: signature.append(_kind(n)))
        signature.extend(type(a) for a in (*node.args, *node.kwargs.values()))
        key = tuple(signature)
        if key not in self.result_dtypes:
            self.result_dtypes[key] = _infer_dtype(form, node)
        return self.result_dtypes[key]


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _kind(node: Node) -> object:
    value = node.meta.get("val")
    return (value.dtype, value.ndim) if isinstance(value, torch.Tensor) else type(value)


def _infer_dtype(form: OpOverload, node: Node) -> torch.dtype | None:
    """The dtype of ``form`` called like ``node``, found on meta tensors of size 1 in each dimension."""

    def stand_in(n: Node) -> object:
        value = n.meta.get("val")
        if isinstance(value, torch.Tensor):
            return torch.empty((1,) * value.ndim, dtype=value.dtype, device="meta")
        return 1 if isinstance(value, torch.SymInt) else value

    args, kwargs = map_arg((node.args, node.kwargs), stand_in)  # pyright: ignore[reportArgumentType]
    try:
        result = form(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    return result.dtype if isinstance(result, torch.Tensor) else None
