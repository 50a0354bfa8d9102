"""What became of the operators that were to run in low precision: the kernel of each, or why it has none."""

from __future__ import annotations

import attrs
from torch.fx import GraphModule

from ..errors import StageError
from ..ir.ledger import Decision
from ..ir.stages import Stage, get_stage
from ..quantize_pt2e import decisions

__all__ = ["LoweringReport", "lowering_report"]


@attrs.frozen
class LoweringReport:
    """A report; ``str()`` of it is a table as text, a line an operator.

    Args:
        lowered: operators that run in low precision, each with its ``kernel``: that of the backend, or
            ``"the compiler"``, which makes a loop from integers to integers. Those with a ``note`` say what
            more a kernel could have done.
        missed: operators that were annotated to and do not, each with its ``reason``.
    """

    lowered: tuple[Decision, ...]
    missed: tuple[Decision, ...]

    @property
    def coverage(self) -> float:
        """The share of intended operators that run in low precision; 1.0 where none was intended."""
        intended = len(self.lowered) + len(self.missed)
        return len(self.lowered) / intended if intended else 1.0

    def __str__(self) -> str:
        rows = [("operator", "in module", "runs as", "pattern, or why not")]
        for made in (*self.lowered, *self.missed):
            says_more = made in self.missed or made.note
            why = f"{made.reason}: {made.detail}" if says_more else made.reason
            rows.append((made.node, made.module, made.kernel or "float", why))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ("  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows)
        intended = len(self.lowered) + len(self.missed)
        summary = f"{len(self.lowered)} of {intended} intended operators run in low precision"
        return "\n".join([*lines, f"{summary} ({self.coverage:.1%})"])


def lowering_report(model: GraphModule) -> LoweringReport:
    """The kernel of each operator of ``model`` that was to run in low precision, or why it has none.

    ::

        lowered = lower_pt2e(converted)
        print(lowering_report(lowered))
        assert lowering_report(lowered).coverage == 1

    An operator is intended to run in low precision when it reads a tensor in low precision: a convolution
    counts, and the ReLU that its kernel applies to the result does not. Operators that were never annotated
    are not in it; :func:`~lowbit.decisions` has them all.

    Args:
        model: what ``lower_pt2e`` returned. Of one that was converted in another process, operators that no
            pattern asked about are not known to have been intended.

    Raises:
        StageError: ``model`` is not lowered.
    """
    if not isinstance(model, GraphModule) or get_stage(model) is not Stage.LOWERED:
        raise StageError(
            "a lowering report was asked of a model that is not lowered",
            hint="pass what lower_pt2e(converted) returns",
        )
    intended = [decision for decision in decisions(model) if decision.intended]
    return LoweringReport(
        tuple(d for d in intended if d.status == "quantized"),
        tuple(d for d in intended if d.status != "quantized"),
    )
