"""Which configuration applies to which operator: by module name, by type, or globally."""

from __future__ import annotations

import difflib
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import attrs
import torch
from torch._ops import OpOverloadPacket  # the class of every ATen operator has no public name
from torch.fx import GraphModule, Node

from ..errors import IneffectiveSettingWarning, SpecError, UnknownNameError
from ..ir.attributes import nested_graph_modules
from ..ir.canonical_operators import ALIASES, canonical_name, written_name
from ..ir.gone import Gone, gone_by_name
from ..ir.ledger import Ledger
from ..ir.location import ModuleCall, module_stack, target_text
from ..ir.schema import OpOverload, operator_name
from ..ir.specs import QuantizationConfig

__all__ = ["ConfigSelection", "operator_of_function"]

_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div"}
_Kind = Literal["function type", "module type", "module name"]


def operator_of_function(function: Callable[..., Any]) -> str:
    """The ATen operator that a torch function exports as: ``conv2d`` for ``F.conv2d``.

    Raises:
        UnknownNameError: ``function`` is not of ``torch``, ``torch.nn.functional``, ``torch.Tensor`` or
            ``operator``.
    """
    for namespace in (torch.nn.functional, torch, torch.Tensor, operator):
        for name in (getattr(function, "__name__", ""), *dir(namespace)):
            # By identity: functions that dispatch on a flag, like F.max_pool2d, share a name of no meaning.
            if getattr(namespace, name, None) is function:
                return _IN_PLACE.get(name, name.rstrip("_"))
    raise UnknownNameError(
        f"{function!r} is not a torch function",
        hint="pass a function such as torch.nn.functional.conv2d, or select modules by their type",
    )


def _one_of_its_names(name: str) -> str:
    return ALIASES.get(name, name)


@attrs.define
class _Selector:
    """One setting: what it selects, and the configuration, None for float."""

    kind: _Kind
    name: str
    config: QuantizationConfig | None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"

    def selects(self, node: Node, stack: list[ModuleCall]) -> bool:
        if self.kind == "function type":
            return self._is_function_of(node)
        if self.kind == "module type":
            return any(call.kind == self.name for call in stack)
        return any(call.path == self.name or call.path.startswith(f"{self.name}.") for call in stack)

    def _is_function_of(self, node: Node) -> bool:
        if not isinstance(node.target, OpOverload):
            return False
        written = written_name(node)
        # relu6 and hardtanh are one operator; which of them the model calls, only export has recorded.
        return canonical_name(self.name) == operator_name(node.target)[1] and written in (None, self.name)


@attrs.define
class ConfigSelection:
    """The settings of a quantizer. A module name wins over a type, a type over the global configuration.

    Among types, a module type wins over a function type; among module types, that of the innermost module;
    among module names, the longest.
    """

    _default: QuantizationConfig | None = None
    _selectors: dict[tuple[_Kind, str], _Selector] = attrs.Factory(dict)
    _decided: dict[tuple[_Kind, str], None] = attrs.Factory(dict)
    """The settings that an operator of the model of the ledger was given its configuration by."""
    _ledger: Ledger = attrs.field(factory=Ledger, eq=False)

    def set_global(self, config: QuantizationConfig | None) -> None:
        """Set what applies where nothing else does."""
        self._check_mode(config, self._selectors.values())
        self._default = config

    def set_function_type(self, function: Callable[..., Any], config: QuantizationConfig | None) -> None:
        """Set what applies to the operator that ``function`` exports as, also inside modules."""
        self._set("function type", _one_of_its_names(operator_of_function(function)), config)

    def set_operator(
        self, operator: OpOverload | OpOverloadPacket, config: QuantizationConfig | None
    ) -> None:
        """Set what applies to an ATen operator: ``set_function_type`` by another name.

        Operators are canonical when they are selected, so an in-place one means its functional form, and
        one of several names of an operator means them all.
        """
        self._set("function type", _one_of_its_names(str(operator).split(".")[1].rstrip("_")), config)

    def set_module_type(self, module_type: type, config: QuantizationConfig | None) -> None:
        """Set what applies to everything in modules of this class."""
        if not isinstance(module_type, type):
            raise SpecError(
                f"{module_type!r} is no module class", hint="pass the class, such as torch.nn.Linear"
            )
        self._set("module type", f"{module_type.__module__}.{module_type.__qualname__}", config)

    def set_module_name(self, name: str, config: QuantizationConfig | None) -> None:
        """Set what applies to everything in the module of this dotted name."""
        if not isinstance(name, str):
            raise SpecError(f"{name!r} is no module name", hint="pass its dotted name, such as layer1.0")
        self._set("module name", name, config)

    def _set(self, kind: _Kind, name: str, config: QuantizationConfig | None) -> None:
        others = [selector for key, selector in self._selectors.items() if key != (kind, name)]
        self._check_mode(config, others, self._default)
        self._selectors[kind, name] = _Selector(kind, name, config)

    def _check_mode(
        self,
        config: QuantizationConfig | None,
        others: Iterable[_Selector],
        default: QuantizationConfig | None = None,
    ) -> None:
        """One model is quantized in one mode: training or not, static or dynamic."""
        if config is not None and not isinstance(config, QuantizationConfig):
            raise SpecError(
                f"{config!r} is no QuantizationConfig",
                hint="pass what a get_…_quantization_config() returns, or None for float",
            )
        for other in (default, *(selector.config for selector in others)):
            if config is None or other is None or _mode(other) == _mode(config):
                continue
            raise SpecError(
                f"a {_mode(config)} configuration is mixed with a {_mode(other)} one",
                hint="use one mode for the whole model; None leaves parts of it float",
            )

    @property
    def is_qat(self) -> bool | None:
        """Whether the configurations are for training; None where none has activations in low precision."""
        configs = (self._default, *(selector.config for selector in self._selectors.values()))
        active = [config for config in configs if config is not None and config.input_activation is not None]
        return active[0].is_qat if active else None

    def of(self, nodes: tuple[Node, ...]) -> QuantizationConfig | None:
        """The configuration for operators that are quantized as one; None leaves them float.

        The first decides. The others follow it, unless a setting other than the global one says otherwise
        about them: then they do not belong together, and the answer is None.
        """
        leader, *others = map(self._explicit, nodes)
        config = self._default if leader is None else leader.config
        for selector in (leader, *others):
            if selector is not None:
                self._decided[selector.kind, selector.name] = None
        agree = all(selector is None or selector.config == config for selector in others)
        return config if agree else None

    def why_none(self, nodes: tuple[Node, ...]) -> str:
        """Why :meth:`of` gives None for ``nodes``, in one sentence."""
        leader = self._explicit(nodes[0])
        if leader is None and self._default is None:
            return "no configuration applies to it"
        if leader is None or leader.config is not None:
            return "what it would be quantized with is configured in another way"
        if leader.kind == "module name":
            return f"the module {leader.name!r} was set to stay float (--left-float, set_module_name)"
        return f"the {leader} was set to stay float"

    def _explicit(self, node: Node) -> _Selector | None:
        stack = module_stack(node.meta) if self._selectors else []
        applying = [s for s in self._selectors.values() if s.selects(node, stack)]
        return max(applying, key=lambda s: _strength(s, stack), default=None)

    def begin(self, ledger: Ledger) -> None:
        """Say that operators of the model that ``ledger`` is about, or of a body in it, are asked about next.

        What was decided about another model, which may have failed in between, is forgotten.
        """
        if not ledger.is_of_the_model_of(self._ledger):
            self._decided.clear()
            self._ledger = ledger

    def check_selectors(self, model: GraphModule) -> None:
        """See that every setting selects something of ``model``, or of a body in it.

        Raises:
            UnknownNameError: one does not; the hint has the nearest names of the model.
        """
        nodes = _with_stacks(model) if self._selectors else []
        for selector in self._selectors.values():
            if not any(selector.selects(node, stack) for node, stack in nodes):
                named = gone_by_name(self._ledger.gone, selector.name)
                gone = [g for g in named if selector.kind == "module name" and g.is_in(selector.name)]
                raise _selects_nothing(selector, nodes, gone)

    def warn_of_idle_selectors(self, model: GraphModule) -> None:
        """Warn with IneffectiveSettingWarning of settings that decided about no operator asked about.

        To be called once all of ``model`` has been asked about, its bodies before it. What stays float by
        itself may be said to stay float.
        """
        idle = [selector for key, selector in self._selectors.items() if key not in self._decided]
        self._decided.clear()
        nodes = _with_stacks(model) if idle else []
        for selector in idle:
            selected = [node for node, stack in nodes if selector.selects(node, stack)]
            stronger = [s for n in selected if (s := self._explicit(n)) is not None and s is not selector]
            if stronger and len(stronger) == len(selected):
                why = f"settings that count more are about the same operators: {_listed(map(str, stronger))}"
            elif selector.config is not None:
                operators = _listed(map(_called, selected))
                why = f"nothing here has a pattern of the backend, or it is annotated already: {operators}"
            else:
                continue
            text = f"the setting for {selector} changes nothing: {why}"
            warnings.warn(IneffectiveSettingWarning(text), stacklevel=2)


def _with_stacks(model: GraphModule) -> list[tuple[Node, list[ModuleCall]]]:
    graphs = (model.graph, *(module.graph for module in nested_graph_modules(model)))
    nodes = (node for graph in graphs for node in graph.nodes if node.op == "call_function")
    return [(node, module_stack(node.meta)) for node in nodes]


def _called(node: Node) -> str:
    return operator_name(node.target)[1] if isinstance(node.target, OpOverload) else target_text(node.target)


def _listed(names: Iterable[str]) -> str:
    """The first few of ``names``, each once."""
    first, more = (unique := list(dict.fromkeys(names)))[:4], len(unique) > 4
    return ", ".join(first) + ", …" * more


def _strength(selector: _Selector, stack: list[ModuleCall]) -> tuple[int, int]:
    """How strong a setting is that selects an operator in these module calls, the outermost first."""
    if selector.kind == "function type":
        return 0, 0
    if selector.kind == "module type":
        return 1, max(depth for depth, call in enumerate(stack) if call.kind == selector.name)
    return 2, len(selector.name)


def _mode(config: QuantizationConfig) -> str:
    activation = config.input_activation
    dynamic = activation is not None and activation.is_dynamic
    return f"{'dynamic' if dynamic else 'static'} {'QAT' if config.is_qat else 'PTQ'}"


def _selects_nothing(
    selector: _Selector, nodes: list[tuple[Node, list[ModuleCall]]], gone: Sequence[Gone]
) -> UnknownNameError:
    if gone:
        return UnknownNameError(
            f"the setting for {selector} selects no operator that is left in the model: {gone[0]}",
            hint="leave the setting out, or make it one of the module of what stands there now",
        )
    known = sorted(set(_names(selector.kind, nodes)))
    near = difflib.get_close_matches(selector.name, known, n=3, cutoff=0.4)
    return UnknownNameError(
        f"the setting for {selector} selects no operator of the model",
        hint=f"the nearest: {', '.join(near)}" if near else f"the model has: {', '.join(known) or 'none'}",
    )


def _names(kind: _Kind, nodes: list[tuple[Node, list[ModuleCall]]]) -> Iterable[str]:
    for node, stack in nodes:
        if kind == "function type":
            if isinstance(node.target, OpOverload):
                yield operator_name(node.target)[1]
        else:
            for call in stack:
                yield call.kind if kind == "module type" else call.path
