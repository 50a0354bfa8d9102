"""``bisect``: the first pass, and in it the first rule application, after which a model fails a check."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable
from typing import Literal

import attrs
from torch.fx import GraphModule

from ...errors import OptionError, UnsupportedError
from ...ir.stages import get_stage
from ...ir.verifiers import broken_rules, stage_error
from ...passes import Pass
from ...passes.instruments import Application, Applications, Change
from ...passes.pipeline import format_pass
from .check import Check
from .delta import first_bad
from .steps import Passes, State, Step, context_of, run_copy, run_pass, states

__all__ = ["Bisection", "bisect"]


@attrs.frozen
class Bisection:
    """What a bisection found.

    Args:
        verdict: ``"found"``; ``"fails-before"`` when the check fails before any pass ran; ``"never-fails"``.
        pass_name: the pass, as pipelines write it, or ``"calibrate"``.
        index: its position among the passes and calibrations, from 0.
        application: the rule application; None when the pass fails before any, or asks about none.
        number: which of the pass's applications it is, from 1.
        applications: how many the pass asked about.
        error: what was raised, where the model could not be made or run.
        checks: how often the check ran.
        confirmed: whether, tried once more, the model was good before and bad after.
    """

    verdict: Literal["found", "fails-before", "never-fails"]
    pass_name: str | None = None
    index: int | None = None
    application: Application | None = None
    number: int | None = None
    applications: int = 0
    error: str | None = None
    checks: int = 0
    confirmed: bool = False

    def __str__(self) -> str:
        if self.verdict == "fails-before":
            found = "the check fails before any pass"
        elif self.verdict == "never-fails":
            found = "the check never fails"
        elif self.application is None:
            found = f"the check fails behind the pass {self.pass_name}"
            if self.applications:
                found += f", also with none of its {self.applications} rule applications made"
        else:
            found = (
                f"the check fails behind rule application {self.number} of {self.applications} of the pass "
                f"{self.pass_name}:\n  {self.application}"
            )
        lines = [f"{found}\n  {self.checks} {'check' if self.checks == 1 else 'checks'}"]
        if self.verdict == "found":
            lines.append(
                "confirmed: good before, bad after" if self.confirmed else "NOT confirmed when tried again"
            )
        if self.error is not None:
            lines.append("raised: " + self.error.replace("\n", "\n    "))
        return "\n  ".join(lines)


def bisect(model: GraphModule, steps: Iterable[Step], check: Check) -> Bisection:
    """Find the first pass, then the first rule application, after which ``check`` fails.

    ::

        steps = verb_steps(exported, quantizer=quantizer, data=loader)
        print(bisect(exported, steps, lambda model: accuracy(model) > 0.9))

    All passes run once, and the model behind each is kept; which of them is the first to fail is a binary
    search. Within the pass it is one again, over how many of its rule applications are allowed. What it finds
    is good just before and bad just after, and is tried once more at the end. Where a model goes bad, good
    and bad again, it may be any of the turns.

    A pass that raises, breaks the rules of its stage or lies about what it changed fails like a check.

    Args:
        model: where to start: float, prepared, converted. It is not changed.
        steps: what to run; :func:`verb_steps` for what the verbs run.
        check: says whether a model is good, at every stage from that of ``model`` on.

    Raises:
        UnsupportedError, OptionError: the check could not be made (:func:`script_check`), or is none.
    """
    return _Search(list(states(model, steps)), check).run()


class _Search:
    def __init__(self, trail: list[State], check: Check) -> None:
        self.trail = trail
        self.check = check
        self.checks = 0
        self.errors: dict[object, Exception] = {}

    def run(self) -> Bisection:
        is_bad = functools.cache(self.fails_behind)
        if is_bad(0):
            return self.result("fails-before", error=self.errors.get(0))
        last = len(self.trail) - 1
        if not is_bad(last):
            return self.result("never-fails")
        index = first_bad(last, is_bad)
        state, before = self.trail[index], self.trail[index - 1]
        error = self.errors.get(index)
        if state.pass_ is None or not isinstance(state.step, Passes):
            confirmed = not self.fails_behind(index - 1) and self.fails_behind(index)
            return self.result(
                "found", pass_name="calibrate", index=index - 1, error=error, confirmed=confirmed
            )
        return self.within(
            index, functools.partial(self.fails_within, before, state.pass_, state.step), error
        )

    def within(self, index: int, fails: Callable[[int], bool], error: Exception | None) -> Bisection:
        """The rule application in the pass that leads to state ``index``.

        ``fails`` says whether the model is bad behind so many rule applications of the pass.
        """
        state = self.trail[index]
        assert state.pass_ is not None
        applied = state.seen.applied
        is_bad = functools.cache(fails)
        number = None
        if not applied or is_bad(0):
            confirmed = not self.fails_behind(index - 1) and self.fails_behind(index)
        else:
            number = first_bad(len(applied), is_bad)
            confirmed = not fails(number - 1) and fails(number)
        return self.result(
            "found",
            pass_name=format_pass(state.pass_),
            index=index - 1,
            application=None if number is None else applied[number - 1],
            number=number,
            applications=len(applied),
            error=error,
            confirmed=confirmed,
        )

    def fails_behind(self, index: int) -> bool:
        """Whether the model is bad at a state of the trail."""
        state = self.trail[index]
        if state.gm is None:
            assert state.error is not None
            self.errors[index] = state.error
            return True
        return self.judge(state.gm, index)

    def fails_within(self, before: State, pass_: Pass, step: Passes, limit: int) -> bool:
        """Whether the model is bad behind the first ``limit`` rule applications of a pass."""
        assert before.gm is not None
        seen = Applications(limit)
        context = context_of(step, before.ledger, seen)
        try:
            gm = run_pass(before.gm, pass_, context, (seen, _VerifyApplied(seen)))
        except Exception:  # noqa: BLE001  (a pass may raise anything, and then it is bad)
            return True
        return self.judge(gm, None)

    def judge(self, gm: GraphModule, key: object) -> bool:
        self.checks += 1
        try:
            return not self.check(run_copy(gm))
        except (UnsupportedError, OptionError):
            raise
        except Exception as error:  # noqa: BLE001  (a broken model may raise anything)
            self.errors[key] = error
            return True

    def result(
        self,
        verdict: Literal["found", "fails-before", "never-fails"],
        *,
        error: Exception | None = None,
        **found: object,
    ) -> Bisection:
        text = None if error is None else "".join(traceback.format_exception_only(error)).strip()
        return Bisection(verdict, error=text, checks=self.checks, **found)  # pyright: ignore[reportArgumentType]


@attrs.frozen
class _VerifyApplied:
    """The verifier, without the nodes that were to be rewritten and were not."""

    seen: Applications

    def before(self, pass_: Pass, gm: GraphModule) -> None:
        pass

    def after(self, pass_: Pass, gm: GraphModule, change: Change) -> None:
        denied = {application.node for application in self.seen.denied}
        problems = [p for p in broken_rules(gm, get_stage(gm)) if p[0].name not in denied]
        if problems:
            raise stage_error(problems, get_stage(gm))
