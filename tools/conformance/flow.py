"""The zoo of a backend through its pipelines, once for each preset."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Generator
from typing import Any, Protocol, cast, runtime_checkable

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ...backends.base import Backend
from ...backends.capabilities import Capability, Preset, mode_of
from ...backends.composable import ComposableQuantizer
from ...calibration import calibrate
from ...errors import IneffectiveSettingWarning, NothingQuantizedWarning, SaturationWarning
from ...export_utils import move_exported_model_to_eval
from ...ir.annotation import QuantizationAnnotation, get_annotation
from ...ir.ledger import Decision
from ...ir.location import module_path
from ...ir.quantizer import Quantizer
from ...ir.specs import QuantizationConfig
from ...matchers.operator_pattern import Mode, OperatorPattern
from ...passes import Pass, PassContext, PassManager
from ...passes.instruments import Change
from ...quantize_pt2e import convert_pt2e, decisions, lower_pt2e, prepare_pt2e, prepare_qat_pt2e
from .zoo import Branch, ReaderQuantizer, Zoo, zoo_of

__all__ = ["Flows", "Run", "Setting", "quietly"]


@runtime_checkable
class Configurable(Protocol):
    """What the kit asks of a backend's quantizer; other setters are tried where it has them."""

    def set_global(self, quantization_config: QuantizationConfig | None) -> Any:
        """Configure all operators."""
        ...


@attrs.frozen(eq=False)
class Setting:
    """A call of a setter.

    Args:
        setter: its name.
        what: what it selects by.
        config: the configuration of what is selected.
    """

    setter: str
    what: object
    config: QuantizationConfig | None


@attrs.frozen(eq=False)
class Run:
    """The zoo under one preset.

    Args:
        preset: the preset.
        config: its configuration.
        annotations: of the graph behind the ``annotate`` pass, by module path.
        converted: the Q/DQ graph.
        lowered: the lowered graph, None where another program takes it.
        results: what converted and lowered models return; None where there is nothing to run here.
    """

    preset: Preset
    config: QuantizationConfig
    annotations: dict[str, list[tuple[Node, QuantizationAnnotation]]]
    converted: GraphModule
    lowered: GraphModule | None
    converted_results: tuple[tuple[Tensor, ...], ...]
    lowered_results: tuple[tuple[Tensor, ...], ...] | None

    @property
    def mode(self) -> Mode:
        """What of an operator it has in low precision."""
        return mode_of(self.config)

    @functools.cached_property
    def _of_branches(self) -> dict[tuple[str, str], list[Decision]]:
        found: dict[tuple[str, str], list[Decision]] = {}
        for stage in ("converted", "lowered"):
            model = getattr(self, stage)
            for decision in decisions(model) if model is not None else ():
                found.setdefault((stage, decision.module), []).append(decision)
        return found

    def decisions(self, branch: Branch, stage: str = "converted") -> list[Decision]:
        """What became of the operators of ``branch``."""
        return self._of_branches.get((stage, branch.path), [])

    @functools.cached_property
    def _nodes(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.converted.graph.nodes:
            if node.op == "call_function":
                found.setdefault(module_path(node.meta), []).append(node)
        return found

    def operators(self, branch: Branch) -> list[Node]:
        """The operators of ``branch`` in the converted graph, without those of its reader."""
        return self._nodes.get(branch.path, [])

    def has(self, branch: Branch) -> bool:
        """Whether there is something of ``branch``: dropout is no operator in inference."""
        return bool(self.operators(branch)) or branch.path in self.annotations


@attrs.define
class KeepAnnotations:
    """An instrument that keeps what the ``annotate`` pass wrote, by module path."""

    found: dict[str, list[tuple[Node, QuantizationAnnotation]]] = attrs.Factory(dict)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Nothing is there yet."""

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Copy the annotations; passes that follow change the graph, and not the nodes they name."""
        if pass_.name != "annotate":
            return
        for node in gm.graph.nodes:
            annotation = get_annotation(node)
            if annotation is not None:
                kept = attrs.evolve(annotation, input_qspec_map=dict(annotation.input_qspec_map))
                self.found.setdefault(module_path(node.meta), []).append((node, kept))


@attrs.frozen(eq=False)
class Flows:
    """All runs of a backend; each is made when it is first asked for."""

    backend: Backend

    @functools.cached_property
    def zoo(self) -> Zoo:
        """The zoo of all its patterns."""
        return zoo_of(self.backend.patterns)

    @functools.cached_property
    def trained(self) -> GraphModule:
        """The zoo as the patterns declare it, which may be in training mode, as that of dropout has to be."""
        return self.zoo.export()

    @functools.cached_property
    def exported(self) -> GraphModule:
        """The zoo as it infers."""
        return move_exported_model_to_eval(copy.deepcopy(self.trained))

    @functools.cached_property
    def float_results(self) -> tuple[tuple[Tensor, ...], ...]:
        """What the float zoo returns."""
        with torch.no_grad():
            return self.exported(*self.zoo.inputs)

    def branches(self, pattern: OperatorPattern) -> list[tuple[int, Branch]]:
        """The branches of ``pattern``, with their positions among the results."""
        return [(i, branch) for i, branch in enumerate(self.zoo.branches) if branch.pattern is pattern]

    @property
    def runs(self) -> tuple[Run, ...]:
        """A run for each preset.

        Raises:
            Exception: what one failed with; again, and at once, whenever they are asked for.
        """
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    @functools.cached_property
    def _outcome(self) -> tuple[Run, ...] | Exception:
        try:
            return tuple(map(self._run, self.backend.presets))
        except Exception as error:  # noqa: BLE001  (every property that needs the runs reports it)
            return error

    @functools.cached_property
    def cells(self) -> dict[tuple[str, str], Capability]:
        """The table of capabilities by pattern and preset."""
        return {(cell.pattern, cell.preset): cell for cell in self.backend.capabilities()}

    def quantizer(self, config: QuantizationConfig | None, *settings: Setting) -> Quantizer:
        """The backend's quantizer with ``config`` and ``settings``, behind the readers of the zoo.

        Readers want low precision where any of these does.
        """
        own = self.backend.quantizer()
        cast(Configurable, own).set_global(config)
        for setting in settings:
            getattr(own, setting.setter)(setting.what, setting.config)
        configs = (config, *(setting.config for setting in settings))
        asked = next((each for each in configs if each is not None), None)
        is_static = asked is not None and mode_of(asked) is Mode.STATIC
        read = asked.input_activation if asked is not None and is_static else None
        return ComposableQuantizer([ReaderQuantizer(read), own])

    def annotate(
        self, quantizer: Quantizer, model: GraphModule | None = None
    ) -> tuple[GraphModule, tuple[Decision, ...]]:
        """The graph of ``model`` (of the zoo) behind the ``annotate`` pass, and the decisions."""
        context = PassContext(quantizer=quantizer)
        passes = self.backend.prepare.until("annotate")
        with quietly():
            annotated = PassManager().run(model or self.exported, passes, context)
        return annotated, context.ledger.decisions

    def _run(self, preset: Preset) -> Run:
        config, backend, inputs = preset.config(), self.backend, self.zoo.inputs
        kept = KeepAnnotations()
        with quietly(), torch.no_grad():
            if config.is_qat:
                prepared = prepare_qat_pt2e(self.trained, self.quantizer(config), instruments=(kept,))
                prepared(*inputs)
                move_exported_model_to_eval(prepared)
            else:
                prepared = prepare_pt2e(self.exported, self.quantizer(config), instruments=(kept,))
                calibrate(prepared, [inputs], progress=False)
            converted = convert_pt2e(prepared)
            converted_results = converted(*inputs)
            lowered = lowered_results = None
            if backend.lower is not None:
                here = backend.is_available()
                lowered = lower_pt2e(converted, backend, pack_weights=here)
                lowered_results = lowered(*inputs) if here else None
        return Run(preset, config, kept.found, converted, lowered, converted_results, lowered_results)


@contextlib.contextmanager
def quietly() -> Generator[None]:
    """Without the warnings of what the checks look at themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IneffectiveSettingWarning)
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        warnings.simplefilter("ignore", SaturationWarning)
        yield
