"""The instrument behind the report: what the graph was before the first pass and after each."""

from __future__ import annotations

import attrs
from torch.fx import GraphModule, Node

from ...ir.alignment import align
from ...ir.meta import ID_KEY, QAT_KEY
from ...ir.snapshot import Snapshot, take_snapshot
from ...ir.stages import Stage, get_stage
from ...passes import Pass
from ...passes.instruments import Change
from ...passes.pipeline import format_pass
from .observers import Observation, observations
from .rows import Row, RowMaker

__all__ = ["Moment", "Report", "Run"]


@attrs.frozen(eq=False)
class Moment:
    """The graph at one moment.

    Args:
        after: the pass that ran last as text, "" at the beginning of a run.
        stage: the stage of the graph.
        seconds: wall time of the pass.
        rows: the nodes in the order of the graph, by number.
    """

    after: str
    stage: Stage
    seconds: float
    rows: dict[int, Row]


@attrs.define(eq=False)
class Run:
    """One pipeline on one graph, which is what a verb does.

    Args:
        gm: the graph module that the passes work on, and that the verb returns.
        keys: the numbers of the nodes by their ids.
        moments: the graph at the beginning and after each pass.
        observed: what the observers of ``gm`` had seen at the beginning.
    """

    gm: GraphModule
    keys: dict[int, int]
    moments: list[Moment]
    observed: tuple[Observation, ...]

    @property
    def verb(self) -> str:
        """What the run is called: the verb that takes a graph from where it began to where it ended."""
        begun, ended = self.moments[0].stage, self.moments[-1].stage
        if ended is Stage.OBSERVED and begun in {Stage.FLOAT, Stage.ANNOTATED}:
            return "prepare for training" if self.gm.meta.get(QAT_KEY) else "prepare"
        if begun is Stage.OBSERVED and ended in {Stage.QDQ, Stage.REFERENCE}:
            return "convert"
        return "lower" if (begun, ended) == (Stage.QDQ, Stage.LOWERED) else "passes"

    def key_of(self, node: Node) -> int | None:
        """The number that ``node``, of a graph as it is in this run, has in the report."""
        return self.keys.get(node.meta.get(ID_KEY, -1))


@attrs.define(eq=False)
class Report:
    """Collects what a report shows, over all verbs it is handed to; :func:`~.write_report` writes it.

    ::

        report = Report()
        prepared = prepare_pt2e(exported, quantizer, instruments=[report])
        calibrate(prepared, batches)
        converted = convert_pt2e(prepared, instruments=[report])
        lowered = lower_pt2e(converted, instruments=[report])
        write_report("report.html", report, inputs=(batches[0],))

    It is of one model on its way through the verbs. It keeps the modules that the verbs return, and so
    what they refer to, as long as it lives; of each pass it keeps text.
    """

    runs: list[Run] = attrs.field(factory=list, init=False)
    parameters: dict[str, tuple[str, ...]] = attrs.field(factory=dict, init=False)
    """The names of the arguments of each operator met, in schema order."""
    kinds: dict[str, str] = attrs.field(factory=dict, init=False)
    """The class of each module met, by its path."""
    _next_key: int = attrs.field(default=0, init=False)
    _last: Snapshot | None = attrs.field(default=None, init=False)
    _maker: RowMaker | None = attrs.field(default=None, init=False)

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        """Write down what a run begins with."""
        if self.runs and self.runs[-1].gm is gm:
            return
        snapshot = take_snapshot(gm)
        run = Run(gm, self._recognized(snapshot), [], ())
        self.runs.append(run)
        self._maker = RowMaker(self._key_of_id, self.parameters, self.kinds)
        self._note(snapshot, "", 0.0)
        run.observed = observations(gm, lambda node: self._key_of_id(node.meta[ID_KEY]))

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        """Write down the graph after the pass."""
        self._note(change.after, format_pass(pass_), change.seconds)

    def _note(self, snapshot: Snapshot, after: str, seconds: float) -> None:
        assert self._maker is not None
        run = self.runs[-1]
        rows = dict(self._maker.rows_of(run.gm, snapshot))
        run.moments.append(Moment(after, get_stage(run.gm), seconds, rows))
        self._last = snapshot

    def _key_of_id(self, identity: int) -> int:
        keys = self.runs[-1].keys
        if identity not in keys:
            keys[identity] = self._next_key
            self._next_key += 1
        return keys[identity]

    def _recognized(self, snapshot: Snapshot) -> dict[int, int]:
        """The numbers of the nodes that the last run left, by the ids they have now.

        A graph that was saved and loaded in between has lost its ids.
        """
        if self._last is None:
            return {}
        keys = self.runs[-1].keys
        return {new: keys[old] for old, new in _aligned(self._last, snapshot)}


def _aligned(before: Snapshot, after: Snapshot) -> list[tuple[int, int]]:
    """The ids of the same nodes in two snapshots, nested graphs included."""
    pairs = [(before.records[old].id, after.records[new].id) for old, new in align(before, after).items()]
    found: list[tuple[int, int]] = [(a, b) for a, b in pairs if a is not None and b is not None]
    for target, attribute in after.attributes.items():
        earlier = before.attributes.get(target)
        if attribute is not None and attribute.graph is not None and earlier is not None:
            found += _aligned(earlier.graph, attribute.graph) if earlier.graph is not None else []
    return found
