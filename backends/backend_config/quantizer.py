"""The quantizer of a BackendConfig and a QConfigMapping."""

from __future__ import annotations

import attrs
import torch
from torch.fx import GraphModule, Node

from ...errors import SpecError
from ...ir.annotation import is_annotated
from ...ir.attributes import nested_graph_modules
from ...ir.bodies import is_body
from ...ir.ledger import Ledger
from ...ir.quantizer import Quantizer
from ...passes.base import PassContext
from ...passes.fold_batch_norm import fold_batch_norms
from ..capabilities import Capabilities
from .annotation import Written, annotate_place, is_float
from .capabilities import capabilities_of_rules
from .config import BackendConfig
from .dtypes import Observation, Refused, Specs, choose_specs, observe
from .pattern_config import ObservationType
from .qconfig import QConfig
from .qconfig_mapping import QConfigMapping
from .rules import Place, Rule, RuleBook, find_place, read_rules
from .selection import Setting, check_calls, strongest_settings, warn_of_idle_settings
from .units import Unit, describe_key, read_units, reread

__all__ = ["BackendConfigQuantizer"]


class BackendConfigQuantizer(Quantizer):
    """Annotates what a BackendConfig describes, as a QConfigMapping asks.

    Patterns of several parts come before the parts by themselves. What is left float has its reason in the
    ledger:

    - ``not-configured``: no QConfig applies, or None does;
    - ``mixed-qconfig``: the parts of a pattern have different QConfigs;
    - ``missing-fusion-pattern``: the backend has the operator only together with others than stand there;
    - ``no-pattern``: the backend does not have it at all;
    - ``fused-only``: the backend fuses the pattern, and says nothing of quantizing it;
    - ``dtypes-not-supported``, ``quantization-range``, ``scale-too-small``, ``parameters-not-fixed``: the
      QConfig is not within what the backend takes;
    - ``float-input``: it would have the parameters of its input, which is float;
    - ``not-observed``: the backend says that nothing around it is quantized;
    - ``activation-not-float32``: it reads tensors of another floating-point dtype;
    - ``weight-is-float64``: quantize operators do not take its weight;
    - ``batch-norm-not-folded``: its BatchNorm cannot be folded, for the reason that BatchNorm has.

    Args:
        backend_config: what can be quantized.
        qconfig_mapping: what is to be.
        is_qat: whether BatchNorm stays until conversion, as training needs it, or is folded at once.

    Raises:
        SpecError: QConfigs with fake quantizers, unless ``is_qat``.
        UnknownNameError: a pattern or setting names a function that is not torch's.
    """

    def __init__(
        self, backend_config: BackendConfig, qconfig_mapping: QConfigMapping, *, is_qat: bool = False
    ) -> None:
        self._name = backend_config.name
        self._book = read_rules(backend_config)
        self._mapping = qconfig_mapping
        self._is_qat = is_qat
        self._ledger = Ledger()

    @property
    def is_qat(self) -> bool:
        """Whether it is set up for training."""
        return self._is_qat

    def quantization_capabilities(self) -> Capabilities:
        """What the backend can quantize, whatever the mapping asks for."""
        return capabilities_of_rules(self._name, self._book, is_qat=self._is_qat)

    def bind_ledger(self, ledger: Ledger) -> None:
        """Write decisions to ``ledger``."""
        self._ledger = ledger

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the places where the rules of the backend apply; what is annotated already stays so.

        Raises:
            SpecError: QConfigs with fake quantizers, unless the model is to be trained.
            UnknownNameError: the mapping sets a QConfig for a call that the model does not have.

        Warns with IneffectiveSettingWarning of QConfigs that are set for nothing that could be quantized.
        """
        all_units = read_units(model.graph, self._book.classes)
        chosen = strongest_settings(all_units, self._mapping)
        if not is_body(model):
            self._check_settings(model)
        units = [unit for unit in all_units if not any(map(is_annotated, unit.nodes))]
        plan = _Plan(self._book, chosen, {n: unit for unit in units for n in unit.nodes}, self._is_qat)
        plan.make(units)
        if not self._is_qat:
            plan.fold(model, self._ledger)
        written: dict[Node, Written] = {}
        for place, specs in plan.places:
            refused = annotate_place(plan.as_it_is(place), specs, written)
            if refused is not None:
                plan.refused.update(dict.fromkeys(place.units, refused))
        for unit in units:
            plan.explain(unit, self._ledger)
        return model

    def _check_settings(self, model: GraphModule) -> None:
        """See what the settings are about in ``model`` and in its bodies."""
        graphs = (model.graph, *(module.graph for module in nested_graph_modules(model)))
        units = [unit for graph in graphs for unit in read_units(graph, self._book.classes)]
        check_calls(units, self._mapping)
        warn_of_idle_settings(strongest_settings(units, self._mapping), self._mapping, self._book.knows)


@attrs.define
class _Plan:
    """What is quantized, and how, before anything is annotated.

    Args:
        book: the rules of the backend.
        chosen: what is asked for, and by which setting.
        unit_of: the unit of each operator.
        is_qat: whether fake quantizers are wanted.
        places: where something is quantized, in graph order.
        part_of: the rule that each unit is quantized by.
        refused: why units stay float, those that a rule was tried for.
        observed: what each QConfig makes.
        folded: the BatchNorms that are no longer in the graph.
    """

    book: RuleBook
    chosen: dict[Unit, tuple[Setting | None, QConfig | None]]
    unit_of: dict[Node, Unit]
    is_qat: bool
    places: list[tuple[Place, Specs]] = attrs.Factory(list)
    part_of: dict[Unit, Rule] = attrs.Factory(dict)
    refused: dict[Unit, Refused] = attrs.Factory(dict)
    observed: dict[int, Observation] = attrs.Factory(dict)
    folded: frozenset[Node] = frozenset()

    def make(self, units: list[Unit]) -> None:
        """Find the places, the last units first, so that patterns are whole."""
        taken: set[Unit] = set()
        for last in reversed(units):
            for rule in self.book.of(last):
                place = find_place(rule, last, self.unit_of, taken)
                if place is None or (len(place.units) > 1 and self._can_be_folded(place.units[0], taken)):
                    continue
                outcome = self._specs(place)
                if isinstance(outcome, Specs):
                    taken.update(place.units)
                    self.places.append((place, outcome))
                    self.part_of.update(dict.fromkeys(place.units, rule))
                    break
                for unit in place.units:
                    self.refused.setdefault(unit, self._not_configured(unit) or outcome)
                if outcome.reason != "mixed-qconfig":
                    # As one operator it stays float: its parts alone are not asked for.
                    taken.update(place.units)
                    break
        self.places.reverse()

    def _can_be_folded(self, unit: Unit, taken: set[Unit]) -> bool:
        """Whether ``unit`` is a BatchNorm that a rule has behind something else: then it costs nothing."""
        if not _batch_norms(unit):
            return False
        places = (find_place(rule, unit, self.unit_of, taken) for rule in self.book.of(unit))
        return any(
            place is not None and len(place.units) > 1 and isinstance(self._specs(place), Specs)
            for place in places
        )

    def _specs(self, place: Place) -> Specs | Refused:
        """How ``place`` is quantized, or why it is not."""
        config = place.rule.config
        leader = next((unit for unit in place.units if unit.weights), place.units[0])
        qconfig = self.chosen[leader][1]
        if not all(_agree(qconfig, self.chosen[unit][1], unit) for unit in place.units):
            return Refused("mixed-qconfig", f"the parts of {place.rule.name} have different QConfigs")
        if qconfig is None:
            return Refused("not-configured", "no QConfig applies to it")
        if config is None:
            return Refused("fused-only", f"no config quantizes what {place.rule.name} is fused into")
        if config.observation_type is ObservationType.INPUT_OUTPUT_NOT_OBSERVED:
            return Refused("not-observed", f"as {place.rule.name}")
        # By identity: the same QConfig serves many operators, and need not be hashable.
        observation = self.observed.get(id(qconfig)) or observe(qconfig)
        self.observed[id(qconfig)] = observation
        if not self.is_qat and observation.trains:
            raise SpecError(
                f"{qconfig} has fake quantizers, which observe in training only",
                hint="use prepare_qat_fx, or a QConfig of observers",
            )
        return _refuses_dtypes(place) or choose_specs(
            observation, config.dtype_configs, any(unit.weights for unit in place.units)
        )

    def _not_configured(self, unit: Unit) -> Refused | None:
        setting, qconfig = self.chosen[unit]
        if qconfig is not None:
            return None
        detail = "no QConfig applies to it" if setting is None else f"None is set for {setting}"
        return Refused("not-configured", detail)

    def fold(self, model: GraphModule, ledger: Ledger) -> None:
        """Fold the BatchNorms that places have behind other operators; give up where that fails."""
        norms = {
            node: place for place, _ in self.places for unit in place.units[1:] for node in _batch_norms(unit)
        }
        folded = fold_batch_norms(model, sorted(norms), PassContext(ledger=ledger), by="annotate")
        failed = {norms[norm]: None for norm in norms if norm not in folded}
        for place in failed:
            refused = Refused("batch-norm-not-folded", f"as part of {place.rule.name}")
            self.refused.update(dict.fromkeys(place.units, refused))
        self.places = [(place, specs) for place, specs in self.places if place not in failed]
        self.folded = folded

    def as_it_is(self, place: Place) -> Place:
        """``place`` in the graph as it is now that BatchNorms are folded."""
        left = [unit for unit in place.units if self.folded.isdisjoint(unit.nodes)]
        return Place(place.rule, tuple(map(reread, left)))

    def explain(self, unit: Unit, ledger: Ledger) -> None:
        """Enter in ``ledger`` what becomes of ``unit``."""
        refused = self.refused.get(unit)
        rule = self.part_of.get(unit)
        for node in (node for node in unit.nodes if is_float(node)):
            if rule is not None and (refused is None or refused.reason == "mixed-qconfig"):
                ledger.quantized(node, rule.name)
            elif refused is None:
                ledger.missed(*_without_rule(self.book, unit, node))
            elif refused.reason != "batch-norm-not-folded" or node not in _batch_norms(unit):
                ledger.missed(refused.reason, node, refused.detail)


def _agree(qconfig: QConfig | None, other: QConfig | None, unit: Unit) -> bool:
    """Whether ``unit``, whose QConfig is ``other``, can be run as one with what has ``qconfig``.

    What a QConfig says of weights is nothing to an operator without one: BatchNorm is folded into the weight
    before it, and quantized as that.
    """
    if qconfig is None or other is None or unit.weights:
        return qconfig == other
    return qconfig.activation == other.activation


def _refuses_dtypes(place: Place) -> Refused | None:
    """What of ``place`` has a dtype that is not quantized, as far as the graph says."""
    for producer, _ in (edge for unit in place.units for edge in unit.activations):
        value = producer.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float32:
            return Refused("activation-not-float32", f"%{producer.name} is {value.dtype}")
    for weight, _ in (edge for unit in place.units for edge in unit.weights):
        value = weight.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype is torch.float64:
            return Refused("weight-is-float64", f"%{weight.name} is {value.dtype}")
    return None


def _batch_norms(unit: Unit) -> list[Node]:
    return [node for node in unit.nodes if node.target is torch.ops.aten.batch_norm.default]


def _without_rule(book: RuleBook, unit: Unit, node: Node) -> tuple[str, Node, str]:
    name = describe_key(unit.keys[0])
    joint = next((book.joint[key] for key in unit.keys if key in book.joint), None)
    if joint is None:
        return "no-pattern", node, f"the backend has no pattern for {name}"
    return "missing-fusion-pattern", node, f"the backend has {name} only as part of {', '.join(joint)}"
