"""``costly_operators``: which quantized operators cost the accuracy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import attrs
from torch.fx import Graph, GraphModule, Node

from ...backends.pipelines import CONVERT, PREPARE
from ...backends.registry import get_backend
from ...calibration import calibrate
from ...errors import GraphInputError, PipelineError
from ...ir.annotation import get_annotation
from ...ir.clone import clone_graph_module
from ...ir.location import module_path, source_line
from ...ir.meta import ANNOTATION_KEY
from ...ir.points import map_points, owner_of
from ...ir.quantizer import Quantizer
from ...ir.specs import EdgeOrNode, QuantizationSpecBase
from ...ir.text import format_target
from ...passes import PassContext, PassManager, Pipeline
from .delta import first_bad, smallest_part
from .steps import run_copy

__all__ = ["CostlyOperators", "Metric", "QuantizedOperator", "costly_operators"]

Metric: TypeAlias = Callable[[GraphModule], float]
"""Says how good a model is; more is better. It is handed a copy that it may run."""


@attrs.frozen
class QuantizedOperator:
    """An operator that a quantizer annotated, with what is fused behind it.

    Args:
        nodes: names of its nodes, in graph order.
        target: the operator, as text.
        module: dotted path of the module that made it.
        source: source line of the user's model.
        alone: the metric when it is the only one left float.
    """

    nodes: tuple[str, ...]
    target: str
    module: str
    source: str
    alone: float


@attrs.frozen
class CostlyOperators:
    """What a search for costly operators found.

    Args:
        operators: those to leave float, in graph order; none when the metric does not drop too far.
        float_metric: of the float model.
        quantized_metric: of the quantized model.
        recovered_metric: of the quantized model with ``operators`` left float.
        quantized: how many operators are quantized in all.
        trials: how many quantized models were made and measured.
    """

    operators: tuple[QuantizedOperator, ...]
    float_metric: float
    quantized_metric: float
    recovered_metric: float
    quantized: int
    trials: int

    def __str__(self) -> str:
        lines = [
            f"float {self.float_metric:.6g}, quantized {self.quantized_metric:.6g}; with "
            f"{len(self.operators)} of {self.quantized} operators left float {self.recovered_metric:.6g} "
            f"({self.trials} {'model' if self.trials == 1 else 'models'} measured)"
        ]
        # Those that cost most first.
        for operator in sorted(self.operators, key=lambda each: -each.alone):
            place = f", module {operator.module}" if operator.module else ""
            what = f"%{operator.nodes[0]} = {operator.target}{place}"
            lines.append(f"  {what}: {operator.alone:.6g} when it alone is float")
        return "\n".join(lines)


def costly_operators(
    model: GraphModule, quantizer: Quantizer, data: Iterable[Any], metric: Metric, *, tolerance: float
) -> CostlyOperators:
    """The smallest set found of operators that, left float, bring ``metric`` back to that of the float model.

    Leaving one float is taking its annotation away, and those of operators that share its scales. Each is
    left float alone; the best of them, as few as are needed, are then left float together; and of these,
    what is not needed after all is quantized again, so that each that remains is needed. That takes about one
    trial an operator, and a trial is a calibration and a run of ``metric``. Nothing is drawn at random.

    To leave what was found float for good, ``quantizer.set_module_name(operator.module, None)``.

    Args:
        model: a float model, exported. It is not changed.
        quantizer: who annotates it.
        data: what to calibrate with: a list or a data loader, as it is gone through in every trial.
        metric: says how good a model is, the higher the better; it is run on Q/DQ graphs.
        tolerance: how much lower than that of the float model it may be.

    Raises:
        GraphInputError: ``data`` can be gone through only once.
        PipelineError: the quantizer's backend prepares models without a pass ``annotate``.
    """
    data_again: object = iter(data)
    if data_again is data:
        raise GraphInputError(
            "the calibration data can be gone through only once, and every trial needs it",
            hint="pass a list or a data loader in place of a generator",
        )
    trials = _Trials(model, quantizer, data, metric)
    target = metric(run_copy(model)) - tolerance

    def is_enough(chosen: tuple[int, ...]) -> bool:
        # Without a quantized operator it is the float model.
        return len(trials.with_dependents(chosen)) == len(trials.units) or trials.measure(chosen) >= target

    chosen: tuple[int, ...] = ()
    if trials.units and not is_enough(()):
        ranked = sorted(range(len(trials.units)), key=lambda i: (-trials.measure((i,)), i))
        count = first_bad(len(ranked), lambda count: is_enough(tuple(ranked[:count])))
        # The best come last, since what comes first is tried first for being quantized again.
        chosen = smallest_part(tuple(reversed(ranked[:count])), is_enough)
    return CostlyOperators(
        tuple(trials.operator(i) for i in trials.with_dependents(chosen)) if chosen else (),
        target + tolerance,
        trials.measure(()),
        trials.measure(chosen),
        len(trials.units),
        trials.count,
    )


class _Trials:
    """Quantizes a model with some operators left float."""

    def __init__(self, model: GraphModule, quantizer: Quantizer, data: Iterable[Any], metric: Metric) -> None:
        name = getattr(quantizer, "backend_name", None)
        prepare = PREPARE if name is None else get_backend(name).prepare
        if "annotate" not in prepare.names:
            raise PipelineError(
                f"the pipeline that prepares models for {name} has no pass named 'annotate', behind which "
                "operators could be left float",
                where=str(prepare),
                hint="annotate in the pass annotate, or leave operators float by settings of the quantizer",
            )
        annotate = prepare.names.index("annotate") + 1
        self._rest = Pipeline(prepare.passes[annotate:])
        self._convert = CONVERT if name is None else get_backend(name).convert
        self._data, self._metric = data, metric
        first = Pipeline(prepare.passes[:annotate])
        self._annotated = PassManager().run(model, first, PassContext(quantizer))
        self.units = _units(self._annotated.graph)
        self._dependents = _dependents(self.units)
        self._measured: dict[tuple[int, ...], float] = {}

    @property
    def count(self) -> int:
        """How many models were made."""
        return len(self._measured)

    def with_dependents(self, chosen: Iterable[int]) -> tuple[int, ...]:
        """``chosen``, sorted, and those whose specs refer to them."""
        found: dict[int, None] = {}
        todo = list(chosen)
        while todo:
            unit = todo.pop()
            if unit not in found:
                found[unit] = None
                todo += self._dependents[unit]
        return tuple(sorted(found))

    def measure(self, chosen: Iterable[int]) -> float:
        """The metric with the units ``chosen`` left float."""
        floats = self.with_dependents(chosen)
        if floats not in self._measured:
            self._measured[floats] = self._metric(self._quantized(floats))
        return self._measured[floats]

    def _quantized(self, floats: tuple[int, ...]) -> GraphModule:
        gm = clone_graph_module(self._annotated)
        left = {node.name for unit in floats for node in self.units[unit]}
        for node in gm.graph.nodes:
            if node.name in left:
                del node.meta[ANNOTATION_KEY]
        prepared = PassManager().run(gm, self._rest)
        calibrate(prepared, self._data, progress=False)
        return PassManager().run(prepared, self._convert)

    def operator(self, unit: int) -> QuantizedOperator:
        """What to say of a unit."""
        nodes = self.units[unit]
        return QuantizedOperator(
            tuple(node.name for node in nodes),
            format_target(nodes[0].op, nodes[0].target),
            module_path(nodes[0].meta),
            source_line(nodes[0].meta),
            self.measure((unit,)),
        )


def _units(graph: Graph) -> list[tuple[Node, ...]]:
    """The annotated operators; what only has its output annotated belongs to the operator that it reads."""
    units: list[list[Node]] = []
    unit_of: dict[Node, int] = {}
    for node in graph.nodes:
        annotation = get_annotation(node)
        if annotation is None or not any(_specs(node)):
            continue
        reads = any(spec is not None for spec in annotation.input_qspec_map.values())
        before = next((unit_of[source] for source in node.all_input_nodes if source in unit_of), None)
        if reads or before is None:
            unit_of[node] = len(units)
            units.append([node])
        else:
            unit_of[node] = before
            units[before].append(node)
    return [tuple(unit) for unit in units]


def _specs(node: Node) -> Iterator[QuantizationSpecBase]:
    annotation = get_annotation(node)
    if annotation is not None:
        specs = (*annotation.input_qspec_map.values(), annotation.output_qspec)
        yield from (spec for spec in specs if spec is not None)


def _dependents(units: list[tuple[Node, ...]]) -> list[list[int]]:
    """For each unit those whose specs refer to points of it."""
    unit_of = {node: index for index, unit in enumerate(units) for node in unit}
    dependents: list[dict[int, None]] = [{} for _ in units]

    def note(point: EdgeOrNode, *, index: int) -> EdgeOrNode:
        owner = unit_of.get(owner_of(point))
        if owner is not None and owner != index:
            dependents[owner][index] = None
        return point

    for index, unit in enumerate(units):
        for node in unit:
            for spec in _specs(node):
                map_points(spec, functools.partial(note, index=index))
    return [list(found) for found in dependents]
