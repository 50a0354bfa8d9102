"""Explanations as data, and as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from ...ir.coverage import Coverage
from ...ir.gone import Gone
from ...ir.near_miss import NearMiss
from ...ir.reasons import REASONS
from .because import Because
from .tensors import TensorExplanation

__all__ = ["Explanation", "OperatorExplanation", "by_advice"]

_IN_FULL = 3
"""So many operators are explained in full; more are listed."""


@attrs.frozen
class OperatorExplanation:
    """What became of one float operator, and why.

    Args:
        node: its name, as in :class:`~lowbit.Decision`; so are target, status, module and source.
        target: its operator.
        status: "quantized" or "float".
        reason: the reason code of one that stays float, "" of one that does not.
        meaning: what the code means.
        advice: what to do about it.
        detail: what was found here.
        pattern: the operator pattern that it is quantized as.
        kernel: what it runs on, once it is lowered.
        runs_at: the node that calls the kernel.
        run_together: the operators that this call computes, itself among them; looked up where a part of the
            model was asked about.
        note: a reason code of what more that kernel could have done; mostly empty.
        module: dotted path of its module.
        source: its source line.
        made_by: the pass that made its node, "" for one that was exported.
        tensors: how what it reads and writes is quantized; where it runs on a kernel, the arguments and the
            result of that, which computes what was fused with it too.
        nearest: patterns that it is almost part of, or a larger one than it is quantized as.
        because: where its reason is that a neighbour is float: who keeps that float, the nearest three; of a
            whole model the nearest one. The advice is about them.
    """

    node: str
    target: str
    status: str
    reason: str = ""
    meaning: str = ""
    advice: str = ""
    detail: str = ""
    pattern: str = ""
    kernel: str = ""
    runs_at: str = ""
    run_together: tuple[str, ...] = ()
    note: str = ""
    module: str = ""
    source: str = ""
    made_by: str = ""
    tensors: tuple[TensorExplanation, ...] = ()
    nearest: tuple[NearMiss, ...] = ()
    because: tuple[Because, ...] = ()

    @property
    def headline(self) -> str:
        """What became of it, in one line."""
        if self.status == "float":
            return f"%{self.node} ({self.target}) stays float: {self.reason}"
        return f"%{self.node} ({self.target}) is quantized as {self.pattern}"

    @property
    def more(self) -> str:
        """What was found here that neither the meaning of the code says nor who keeps it float."""
        says_more = self.detail.startswith(f"{self.meaning}; ")
        if self.detail == self.meaning or (self.because and not says_more):
            return ""
        return self.detail.removeprefix(f"{self.meaning}; ")

    @property
    def other_nearest(self) -> tuple[NearMiss, ...]:
        """Those of the near misses that say more than the reason does."""
        return tuple(miss for miss in self.nearest if miss.reason != self.reason)

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"  {label + ':':9}{text}" for label, text in self._lines())])

    def _lines(self) -> Iterator[tuple[str, str]]:
        if self.meaning:
            yield "why", self.meaning
        # The kernel and the nearest miss say the same in more words.
        more = "" if self.runs_at else self.more
        if more and self.other_nearest == self.nearest:
            yield "found", more
        yield from (("because", str(cause)) for cause in self.because)
        yield from (("nearest", str(miss)) for miss in self.nearest)
        if self.advice:
            yield "do", self.advice
        if self.kernel:
            call = f", called by %{self.runs_at}" if self.runs_at else ""
            several = [f"%{name}" for name in self.run_together] if len(self.run_together) > 1 else []
            yield "kernel", f"{self.kernel}{call}{f' for {_and(several)} together' if several else ''}"
        if self.note:
            yield "note", f"{self.note}: {self.detail.partition('; ')[2]}"
        yield from (("tensor", str(tensor)) for tensor in self.tensors)
        if self.module:
            yield "module", self.module
        if self.source:
            yield "source", self.source
        if self.made_by:
            yield "made by", self.made_by


@attrs.frozen
class Explanation:
    """What became of a model, or of the part of it that was asked about.

    ``str()`` of it is text for people; ``attrs.asdict`` of it is plain data.

    Args:
        about: what was asked about, "" for the whole model.
        coverage: of the whole model.
        operators: the operators it is about, in graph order. Tensors, and larger patterns that an operator
            that is quantized is almost part of, are looked up where a part was asked about.
        gone: operators that were asked about and that a pass took out of the graph; where nothing else was
            asked about, the operators are those that stand for them.
    """

    about: str
    coverage: Coverage
    operators: tuple[OperatorExplanation, ...]
    gone: tuple[Gone, ...] = ()

    def __str__(self) -> str:
        gone = "\n".join(map(str, self.gone))
        return "\n\n".join(filter(None, [gone, self._of_operators()]))

    def _of_operators(self) -> str:
        if self.about and len(self.operators) <= _IN_FULL:
            return "\n\n".join(map(str, self.operators))
        lines = [str(self.coverage)] if not self.about else [f"{self.about}: {len(self.operators)} operators"]
        lines += [line for reason in self._reasons() for line in self._left_float(reason)]
        quantized = [each for each in self.operators if each.status != "float"]
        if self.about and quantized:
            lines += ["", "quantized:", *(f"  {_place(each)}: {each.pattern}" for each in quantized)]
        return "\n".join(lines)

    def _reasons(self) -> list[str]:
        return list(dict.fromkeys(each.reason for each in self.operators if each.status == "float"))

    def _left_float(self, reason: str) -> Iterator[str]:
        left = [each for each in self.operators if each.status == "float" and each.reason == reason]
        known = REASONS.get(reason)
        yield ""
        yield f"{reason}: {known.meaning}" if known is not None else f"{reason}:"
        for advice, about in by_advice(left).items():
            yield from ([f"  do: {advice}"] if advice else [])
            yield from (f"  {_place(each)}{_detail(each)}" for each in about)


def _and(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def by_advice(left: Iterable[OperatorExplanation]) -> dict[str, list[OperatorExplanation]]:
    """Operators by what is to be done about them: about the nearest that decides, where there is one."""
    found: dict[str, list[OperatorExplanation]] = {}
    for each in left:
        found.setdefault(each.because[0].advice if each.because else each.advice, []).append(each)
    return found


def _detail(each: OperatorExplanation) -> str:
    near = [f"nearest: {miss}" for miss in each.other_nearest]
    more = "; ".join(filter(None, [*map(str, each.because[:1]), each.more, *near]))
    return f": {more}" if more else ""


def _place(each: OperatorExplanation) -> str:
    module = f" in {each.module}" if each.module else ""
    return f"%{each.node} ({each.target}){module}"
