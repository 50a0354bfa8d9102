"""What holds of every pass, whatever it does: the laws.

A law looks at one run of a pass on a generated graph and raises :class:`LawBroken` if it does not hold.
"""

from __future__ import annotations

from typing import Final

from .data import refuses_to_convert_without_data, refuses_what_is_no_number
from .meaning import as_under_autocast, meaning_kept, meaning_kept_in_evaluation, runs
from .modes import copies_are_alike, modes_return, state_kept
from .observing import annotations_preserved, one_observer_a_group
from .run import Law, LawBroken, Run
from .structure import (
    blind_to_names,
    deterministic,
    idempotent,
    nothing_left_over,
    report_honest,
    rules_fire,
    stage_verified,
    text_reads_back,
)
from .telling import (
    annotations_accepted,
    batch_norms_told,
    everything_decided,
    lowering_told,
    patterns_apply,
    regions_told,
)

__all__ = ["COSTLY", "LAWS", "Law", "LawBroken", "Run"]

COSTLY: Final[tuple[Law, ...]] = (
    refuses_to_convert_without_data,
    blind_to_names,
    deterministic,
    text_reads_back,
    copies_are_alike,
)
"""The laws that cost more than a run of most passes: a few graphs will do."""

LAWS: Final[tuple[Law, ...]] = (
    stage_verified,
    meaning_kept,
    meaning_kept_in_evaluation,
    runs,
    report_honest,
    nothing_left_over,
    everything_decided,
    patterns_apply,
    annotations_accepted,
    batch_norms_told,
    regions_told,
    lowering_told,
    rules_fire,
    as_under_autocast,
    state_kept,
    modes_return,
    annotations_preserved,
    one_observer_a_group,
    refuses_what_is_no_number,
    idempotent,
    *COSTLY,
)
"""All laws. That the caller's graph and tensors stay as they are, and that no change is concealed, the pass
manager checks in every run."""
