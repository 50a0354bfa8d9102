"""The numeric oracle: what a graph means, computed in float64.

All floats are computed in float64, integers are what they are. Sums of products of integers
are then exact up to 2^53, and real arithmetic is exact but for the last of 53 bits, so two graphs that mean
the same agree to many more digits than float32 has: what they differ by is a difference of meaning, or of
the rounding of constants that passes computed.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import torch
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate, map_arg
from torch.utils import _pytree as pytree

from ..errors import UnsupportedError
from . import quantized_decomposed as qd
from .aliasing import aliased_inputs, is_write
from .attributes import constants, get_attribute
from .location import locate
from .meanings import MEANINGS, REMEMBERED, exact, rounded
from .schema import HigherOrderOperator, OpOverload, operator_name
from .specs import CAST_DTYPES, PER_CHANNEL_QSCHEMES, dtype_range, storage_dtype
from .verifiers import is_observer

__all__ = ["Enter", "Memory", "Observers", "Recall", "Watch", "run_exactly", "version_of", "written_targets"]


class Observers(enum.Enum):
    """What the observers in a prepared graph mean."""

    IDENTITY = "identity"
    """They only look on: the float model, which is prepared. So do fake quantizers."""
    QUANTIZE = "quantize"
    """Each quantizes and dequantizes by the parameters it has found: the model that conversion writes."""


Watch: TypeAlias = Callable[[Node, Any], Any]
"""Sees each node's value as it is found; what it returns is what the nodes behind read."""
Recall: TypeAlias = Callable[[Node], Any]
"""The value of a node if it need not be computed; ``NotImplemented`` if it must."""
Enter: TypeAlias = Callable[[Node, str, GraphModule, tuple[Any, ...]], Any]
"""Runs a body for ``cond`` and the like: their call, the body's name, its graph, and what it is run on;
returns its results."""


@attrs.frozen(eq=False)
class Memory:
    """What quantizing and dequantizing made of tensors: of one tensor, by equal parameters, it is the same.

    Shared by runs of a graph in which observers mean quantization and of the graph that conversion writes of
    it, this leaves one quantization of each weight.
    """

    _found: dict[tuple[object, int, int], tuple[torch.Tensor, tuple[Any, ...], torch.Tensor, int]] = (
        attrs.field(factory=dict, init=False)
    )

    def compute(self, target: Any, x: torch.Tensor, *parameters: Any) -> torch.Tensor:
        """The meaning of ``target``, called with ``x`` and ``parameters``."""
        # How often either was written to in place tells whether it still is what it was.
        key = (target, id(x), version_of(x))
        known = self._found.get(key)
        if known is not None:
            _, old, result, version = known
            if (
                version_of(result) == version
                and len(old) == len(parameters)
                and all(map(_same, old, parameters))
            ):
                return result
        result = MEANINGS[target](x, *parameters)
        # Kept with x: while it lives, no other tensor has its id.
        self._found[key] = (x, parameters, result, version_of(result))
        return result


def written_targets(graph: Graph) -> frozenset[str]:
    """The attributes that ``graph`` writes into, through whichever of the nodes that read them."""
    constant = constants(graph)
    return frozenset(str(n.target) for n in graph.find_nodes(op="get_attr") if n not in constant)


def version_of(tensor: torch.Tensor) -> int:
    """How often ``tensor`` was written to in place; those made in inference mode never are."""
    return 0 if tensor.is_inference() else tensor._version


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one is other or (one.dtype is other.dtype and torch.equal(one, other))
    return type(one) is type(other) and one == other


def run_exactly(
    gm: GraphModule,
    *inputs: Any,
    observers: Observers = Observers.IDENTITY,
    watch: Watch | None = None,
    recall: Recall | None = None,
    enter: Enter | None = None,
    memory: Memory | None = None,
    copies_inputs: bool = True,
) -> Any:
    """What ``gm`` returns for ``inputs``, computed in float64. Nothing of ``gm`` or ``inputs`` is changed.

    - Quantize is the operator itself, on the value rounded to float32, so that ties fall as they do when the
      graph runs. Dequantize is exact.
    - Casts among float dtypes change nothing, save ``convert_element_type``: it is how a graph rounds to
      float16 or bfloat16 on purpose.
    - Dropout that trains drops elements by their place, the same in every run.
    - Parameters of dynamic quantization are found by the operator that finds them in float32.
    - Operators other than ATen's, such as the kernels of lowered graphs, run as they are, in the dtypes they
      were made for.

    Args:
        gm: an exported graph as it is at any stage.
        inputs: as its ``forward`` takes them; float tensors of any dtype.
        observers: what observers mean.
        watch: sees the values of all nodes of ``gm`` itself, in order.
        recall: knows values of nodes of ``gm`` itself from a run before.
        enter: runs the bodies of ``gm``, each time that one is called, by this function or as it likes; None
            is this function.
        memory: of runs before, if they met the same tensors.
        copies_inputs: False for a body, which is run on what its caller has: what it writes into that is the
            caller's to see.

    Returns:
        What ``forward`` returns; its float tensors are float64.

    Raises:
        UnsupportedError: the graph calls a module that is no observer.
    """
    with torch.no_grad():
        oracle = _Oracle(gm, observers, memory or Memory(), watch=watch, recall=recall, enter=enter)
        return oracle.run(*(pytree.tree_map(_exact_copy, inputs) if copies_inputs else inputs))


def _exact_copy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(torch.float64 if value.is_floating_point() else value.dtype, copy=True)


def _exact_argument(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return exact(value) if isinstance(value, torch.Tensor) else value


class _Oracle(Interpreter):
    """Runs a graph in float64."""

    def __init__(
        self,
        gm: GraphModule,
        observers: Observers,
        memory: Memory,
        *,
        watch: Watch | None,
        recall: Recall | None,
        enter: Enter | None,
    ) -> None:
        super().__init__(gm)
        self._gm = gm
        self._observers = observers
        self._watch = watch
        self._recall = recall
        self._enter = enter
        self._memory = memory
        self._qparams: dict[int, Any] = {}
        self._written = written_targets(gm.graph)
        self._writes = any(map(is_write, gm.graph.nodes))
        self._copies: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = NotImplemented if self._recall is None else self._recall(n)
        value = self._value(n) if value is NotImplemented else value
        return value if self._watch is None else self._watch(n, value)

    def _value(self, node: Node) -> Any:
        match node.op:
            case "get_attr":
                return self._attribute(node)
            case "call_module":
                return self._module(node)
            case "call_function":
                return self._call(node)
            case "output":
                return exact(super().run_node(node))
            case _:
                return super().run_node(node)

    def _call(self, node: Node) -> Any:
        target: Any = node.target
        meaning = MEANINGS.get(target)
        if meaning is None and isinstance(target, OpOverload) and operator_name(target)[0] != "aten":
            return exact(self._as_it_is(node))
        if isinstance(target, HigherOrderOperator):
            return exact(self._call_with_bodies(node))
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if target in REMEMBERED:
            return self._memory.compute(target, *args)
        if meaning is not None:
            return meaning(*args)
        args, kwargs = map_aggregate((args, kwargs), _exact_argument)
        value = exact(target(*args, **kwargs))
        return self._apart(node, value) if self._writes else value

    def _apart(self, node: Node, value: Any) -> Any:
        """``value``, in memory of its own if the graph has it so.

        A cast between two float dtypes makes a new tensor; here it would hand on the one that it reads, and
        what is written into one of them would be in both.
        """
        if not isinstance(value, torch.Tensor) or aliased_inputs(node):
            return value
        sources = (self.env[source] for source in node.all_input_nodes)
        storages = {x.untyped_storage().data_ptr() for x in sources if isinstance(x, torch.Tensor)}
        return value.clone() if value.untyped_storage().data_ptr() in storages else value

    def _as_it_is(self, node: Node) -> Any:
        """The result of an operator in the dtypes that the graph has."""

        def read(source: Node) -> Any:
            value = self.env[source]
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                return value
            made = source.meta.get("val")
            return value.to(made.dtype if isinstance(made, torch.Tensor) else torch.float32)

        target: Any = node.target
        return target(*map_arg(node.args, read), **map_arg(node.kwargs, read))

    def _attribute(self, node: Node) -> Any:
        value = get_attribute(self._gm, str(node.target))
        if str(node.target) in self._written:
            # One of all that read it, so that they see what one of them writes.
            return self._copies.setdefault(str(node.target), _exact_copy(value))
        if isinstance(value, torch.Tensor):
            # In float64 where something is computed of it: a weight that is only quantized never is.
            return value.detach()
        return value

    def _call_with_bodies(self, node: Node) -> Any:
        """The result of an operator that runs bodies."""

        def read(source: Node) -> Any:
            value = self.env[source]
            if isinstance(value, GraphModule):
                return functools.partial(self._run_body, node, str(source.target), value)
            return exact(value)

        target: Any = node.target
        return target(*map_arg(node.args, read), **map_arg(node.kwargs, read))

    def _run_body(self, caller: Node, name: str, body: GraphModule, *operands: Any) -> Any:
        if self._enter is not None:
            return self._enter(caller, name, body, operands)
        return run_exactly(body, *operands, observers=self._observers, copies_inputs=False)

    def _module(self, node: Node) -> Any:
        module: Any = get_attribute(self._gm, str(node.target))
        if not node.users:
            return None  # a check of the inputs' dtypes and sizes
        if not is_observer(module):
            raise UnsupportedError(
                f"the oracle met a call of {type(module).__name__}, whose meaning it does not know",
                where=locate(node),
                hint="export the model: torch.export.export(model.eval(), example_inputs).module()",
            )
        (x,), _ = self.fetch_args_kwargs_from_env(node)
        return self._observed(module, x) if self._observers is Observers.QUANTIZE else x

    def _observed(self, observer: Any, x: torch.Tensor) -> torch.Tensor:
        """``x`` quantized and dequantized as conversion will do it."""
        if observer.dtype in CAST_DTYPES:
            return rounded(x, observer.dtype)
        dtype = storage_dtype(observer.dtype)
        held = dtype_range(observer.dtype)
        low, high = observer.quant_min, observer.quant_max
        if held is not None:
            low, high = (held[0] if low is None else low), (held[1] if high is None else high)
        limits = (low, high, dtype)
        if getattr(observer, "is_dynamic", False):
            symmetric = observer.qscheme == torch.per_tensor_symmetric
            eps = float(getattr(observer, "eps", torch.finfo(torch.float32).eps))
            choose = qd.CHOOSE_QPARAMS_SYMMETRIC if symmetric else qd.CHOOSE_QPARAMS
            parameters = (*choose(x.float(), low, high, eps, dtype), *limits)
            pair = (qd.QUANTIZE_PER_TENSOR_DYNAMIC, qd.DEQUANTIZE_PER_TENSOR_DYNAMIC)
        else:
            if id(observer) not in self._qparams:
                # The search for a histogram's range takes a while.
                self._qparams[id(observer)] = observer.calculate_qparams()
            scale, zero_point = self._qparams[id(observer)]
            if observer.qscheme in PER_CHANNEL_QSCHEMES:
                parameters = (scale, zero_point, observer.ch_axis, *limits)
                pair = (qd.QUANTIZE_PER_CHANNEL, qd.DEQUANTIZE_PER_CHANNEL)
            else:
                parameters = (float(scale), int(zero_point), *limits)
                pair = (qd.QUANTIZE_PER_TENSOR, qd.DEQUANTIZE_PER_TENSOR)
        quantize, dequantize = pair
        return self._memory.compute(dequantize, self._memory.compute(quantize, x, *parameters), *parameters)
