"""The zoo of a backend through its pipelines, once for each preset."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any, Protocol, cast

import attrs
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ...backends.base import Backend
from ...backends.capabilities import Capability, Preset, mode_of
from ...backends.composable import ComposableQuantizer
from ...calibration import calibrate
from ...errors import NothingQuantizedWarning, SaturationWarning
from ...export_utils import move_exported_model_to_eval
from ...ir.ledger import Decision, Ledger
from ...ir.location import module_path
from ...ir.quantizer import Quantizer
from ...ir.specs import QuantizationConfig
from ...matchers.operator_pattern import Mode, OperatorPattern
from ...passes import PassContext, PassManager
from ...quantize_pt2e import convert_pt2e, decisions, lower_pt2e, prepare_pt2e, prepare_qat_pt2e
from .zoo import Branch, ReaderQuantizer, Zoo, zoo_of

__all__ = ["Flows", "Run"]


class Configurable(Protocol):
    """What the kit asks of a backend's quantizer."""

    def set_global(self, quantization_config: QuantizationConfig | None) -> Any: ...  # noqa: D102


@attrs.frozen(eq=False)
class Run:
    """The zoo under one preset.

    Args:
        preset: the preset.
        config: its configuration.
        annotated: the graph behind the ``annotate`` pass.
        converted: the Q/DQ graph.
        lowered: the lowered graph, None where another program takes it.
        results: what converted and lowered models return; None where there is nothing to run here.
    """

    preset: Preset
    config: QuantizationConfig
    annotated: GraphModule
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
    def _nodes(self) -> dict[tuple[str, str], list[Node]]:
        found: dict[tuple[str, str], list[Node]] = {}
        for stage in ("annotated", "converted"):
            for node in getattr(self, stage).graph.nodes:
                if node.op == "call_function":
                    found.setdefault((stage, module_path(node.meta)), []).append(node)
        return found

    def nodes(self, branch: Branch, stage: str) -> list[Node]:
        """The operators of ``branch`` in a graph, without those of its reader."""
        return self._nodes.get((stage, branch.path), [])


@attrs.frozen(eq=False)
class Flows:
    """All runs of a backend; each is made when it is first asked for."""

    backend: Backend

    @functools.cached_property
    def zoo(self) -> Zoo:
        """The zoo of all its patterns."""
        return zoo_of(self.backend.patterns)

    @functools.cached_property
    def exported(self) -> GraphModule:
        """The zoo as it infers. Patterns may be declared in training mode, as dropout has to be."""
        return move_exported_model_to_eval(self.zoo.export())

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

    def quantizer(self, config: QuantizationConfig | None) -> Quantizer:
        """The backend's quantizer with ``config``, behind the readers of the zoo."""
        own = self.backend.quantizer()
        cast(Configurable, own).set_global(config)
        is_static = config is not None and mode_of(config) is Mode.STATIC
        return ComposableQuantizer([ReaderQuantizer(config.input_activation if is_static else None), own])

    def annotate(self, config: QuantizationConfig | None, model: GraphModule | None = None) -> GraphModule:
        """The graph of ``model`` (of the zoo) behind the ``annotate`` pass."""
        return self.annotate_noting(config, model)[0]

    def annotate_noting(
        self, config: QuantizationConfig | None, model: GraphModule | None = None
    ) -> tuple[GraphModule, Ledger]:
        """As :meth:`annotate`, with the decisions."""
        context = PassContext(quantizer=self.quantizer(config))
        passes = self.backend.prepare.until("annotate")
        with _quietly():
            return PassManager().run(model or self.exported, passes, context), context.ledger

    def _run(self, preset: Preset) -> Run:
        config, backend, inputs = preset.config(), self.backend, self.zoo.inputs
        with _quietly(), torch.no_grad():
            if config.is_qat:
                prepared = prepare_qat_pt2e(self.zoo.export(), self.quantizer(config))
                prepared(*inputs)
                move_exported_model_to_eval(prepared)
            else:
                prepared = prepare_pt2e(self.exported, self.quantizer(config))
                calibrate(prepared, [inputs], progress=False)
            converted = convert_pt2e(prepared)
            converted_results = converted(*inputs)
            lowered = lowered_results = None
            if backend.lower is not None:
                here = backend.is_available()
                lowered = lower_pt2e(converted, backend, pack_weights=here)
                lowered_results = lowered(*inputs) if here else None
        annotated = self.annotate(config)
        return Run(preset, config, annotated, converted, lowered, converted_results, lowered_results)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of what the checks look at themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        warnings.simplefilter("ignore", SaturationWarning)
        yield
