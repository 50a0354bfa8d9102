"""What bisecting says, of passes, rule applications, calibration, checks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from lowbit import PassManager, Stage, X86InductorQuantizer, calibrate, convert_pt2e, get_stage, prepare_pt2e
from lowbit.backends.registry import get_backend
from lowbit.backends.x86_inductor import get_default_x86_inductor_quantization_config
from lowbit.errors import GraphInputError, UnknownNameError, UnsupportedError
from lowbit.passes import PassContext, Pipeline
from lowbit.tools.bisect import Passes, bisect, script_check, verb_steps
from lowbit.tools.bisect.delta import first_bad, smallest_part
from lowbit.tools.bisect.steps import states
from torch.fx import GraphModule

aten = torch.ops.aten


@attrs.frozen
class DoubleAdditions:
    """A user's pass: makes ``a + b`` of every sum ``a + 2 · b``; asks only if told to."""

    name: ClassVar[str] = "double-additions"
    requires: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    ensures: ClassVar[Stage | None] = None
    asks: bool = True
    says: bool = True

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        for node in gm.graph.find_nodes(op="call_function", target=aten.add.Tensor):
            if not self.asks or context.allows("double", node):
                node.update_kwarg("alpha", 2)
        return self.says


@attrs.frozen
class RecordContext:
    """A user's pass: keeps the context that it is run in."""

    name: ClassVar[str] = "record-context"
    requires: ClassVar[frozenset[Stage]] = frozenset(Stage)
    ensures: ClassVar[Stage | None] = None
    seen: list[PassContext] = attrs.field(factory=list)

    def run(self, gm: GraphModule, context: PassContext) -> bool:
        self.seen.append(context)
        return False


@pytest.fixture(scope="module")
def sums() -> GraphModule:
    """Five additions, of which the third has another argument."""

    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + 0.0
            x = x + 0.0
            return x + 1.0 + 0.0 + 0.0

    return torch.export.export(Sums(), (torch.ones(2),)).module()


def is_two(model: GraphModule) -> bool:
    return bool((model(torch.ones(2)) == 2).all())


def test_names_the_application_of_a_users_pass(sums: GraphModule) -> None:
    found = bisect(sums, [Passes(Pipeline((DoubleAdditions(),)))], is_two)
    assert (found.verdict, found.pass_name, found.index) == ("found", "double-additions", 0)
    assert (found.number, found.applications) == (3, 5)
    assert found.application is not None
    assert (found.application.rule, found.application.node) == ("double", "add_2")
    assert found.confirmed
    # Before and after all passes, three of five applications at most, and both sides once more.
    assert found.checks <= 2 + 4 + 2
    assert "rule application 3 of 5 of the pass double-additions" in str(found)


def test_a_pass_that_does_not_ask_is_one_piece(sums: GraphModule) -> None:
    found = bisect(sums, [Passes(Pipeline((DoubleAdditions(asks=False),)))], is_two)
    assert (found.verdict, found.pass_name) == ("found", "double-additions{asks=False}")
    assert (found.application, found.applications) == (None, 0)
    assert found.confirmed


def test_a_pass_that_lies_is_found_at_what_it_conceals(sums: GraphModule) -> None:
    found = bisect(sums, [Passes(Pipeline((DoubleAdditions(says=False),)))], lambda model: True)
    assert found.pass_name == "double-additions{says=False}"
    assert found.number == 1
    assert "said that it changed nothing" in str(found.error)


def test_never_fails(exact: Any) -> None:
    found = bisect(exact.model, exact.steps(), exact.is_good)
    assert (found.verdict, found.checks) == ("never-fails", 2)
    assert str(found).startswith("the check never fails")


def test_fails_before_any_pass(exact: Any) -> None:
    found = bisect(exact.model, exact.steps(), lambda model: False)
    assert (found.verdict, found.checks) == ("fails-before", 1)


def test_what_a_check_raises_is_told(exact: Any) -> None:
    found = bisect(exact.model, exact.steps(), lambda model: 1 / 0 > 0)
    assert found.verdict == "fails-before"
    assert found.error == "ZeroDivisionError: division by zero"


def test_calibration_may_be_what_fails(exact: Any) -> None:
    batch = torch.full_like(exact.x, float("nan"))
    found = bisect(exact.model, exact.steps(data=[(batch,)]), lambda model: True)
    # The parameters of this network are fixed: NaN shows in observers that look at data.
    assert found.verdict == "never-fails"
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    steps = verb_steps(exact.model, quantizer=X86InductorQuantizer().set_global(config), data=[(batch,)])
    found = bisect(exact.model, steps, lambda model: True)
    assert (found.verdict, found.pass_name, found.application) == ("found", "calibrate", None)
    assert "NaN" in str(found.error) or "nan" in str(found.error)


def test_a_model_that_recovers_is_named_where_it_turns(sums: GraphModule) -> None:
    """Good, bad, good, bad over the applications: the answer is one of the turns, and confirmed."""

    def is_even(model: GraphModule) -> bool:
        doubled = sum(node.kwargs.get("alpha") == 2 for node in model.graph.nodes)
        return doubled in (0, 2)

    found = bisect(sums, [Passes(Pipeline((DoubleAdditions(),)))], is_even)
    assert found.number in (1, 3)
    assert found.confirmed


def test_a_check_that_wavers_is_not_confirmed(sums: GraphModule) -> None:
    answers = iter([True, False, False, False, True, True, True, True, True])
    found = bisect(sums, [Passes(Pipeline((DoubleAdditions(),)))], lambda model: next(answers))
    assert found.verdict == "found"
    assert not found.confirmed


@pytest.mark.usefixtures("linears_stay")
@pytest.mark.parametrize("stage", [Stage.OBSERVED, Stage.QDQ])
def test_starts_from_any_stage(stage: Stage, exact: Any) -> None:
    config = get_default_x86_inductor_quantization_config(reduce_range=True)
    model = prepare_pt2e(exact.model, X86InductorQuantizer().set_global(config))
    calibrate(model, [(exact.x,)], progress=False)
    if stage is Stage.QDQ:
        model = convert_pt2e(model)

    def has_no_kernel(model: GraphModule) -> bool:
        return not any("qlinear_pointwise" in str(node.target) for node in model.graph.nodes)

    found = bisect(model, verb_steps(model), has_no_kernel)
    assert found.pass_name == "emit-inductor"
    assert found.application is not None
    assert found.application.node == "linear_1"
    assert get_stage(model) is stage


def test_checks_do_not_touch_what_comes_after(exact: Any) -> None:
    """A check runs prepared models, and shows them other data than calibration did."""
    config = get_default_x86_inductor_quantization_config(reduce_range=True)

    def scales(check: Any) -> list[object]:
        seen: list[object] = []

        def note(model: GraphModule) -> bool:
            check(model)
            if get_stage(model) is Stage.QDQ:
                seen.extend(n.args[1] for n in model.graph.nodes if "quantize_per_tensor" in n.name)
            return get_stage(model) is not Stage.QDQ

        quantizer = X86InductorQuantizer().set_global(config)
        bisect(exact.model, verb_steps(exact.model, quantizer=quantizer, data=[(exact.x,)]), note)
        return seen

    assert scales(lambda model: model(100 * exact.x)) == scales(lambda model: None)


def test_float_models_need_a_quantizer_and_data(exact: Any) -> None:
    with pytest.raises(GraphInputError, match="without a quantizer and calibration data"):
        verb_steps(exact.model)


def test_lowered_models_have_no_steps(exact: Any) -> None:
    *_, last = exact.steps()
    qdq = exact.model
    for step in exact.steps()[:-1]:
        qdq = (
            PassManager().run(qdq, step.pipeline, PassContext(step.quantizer))
            if isinstance(step, Passes)
            else calibrate(qdq, step.data, progress=False)
        )
    lowered = PassManager().run(qdq, last.pipeline, PassContext(patterns=last.patterns))
    with pytest.raises(GraphInputError, match="at stage LOWERED"):
        verb_steps(lowered)


def test_a_script_may_check(sums: GraphModule, tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text("import sys; sys.exit('alpha=2' in open(sys.argv[-1]).read())\n", encoding="utf-8")
    check = script_check([sys.executable, str(script)])
    assert check(sums)
    doubled = PassManager().run(sums, Pipeline((DoubleAdditions(),)))
    assert not check(doubled)


def test_a_script_that_cannot_say_ends_the_search(sums: GraphModule) -> None:
    check = script_check([sys.executable, "-c", "raise SystemExit(125)"])
    with pytest.raises(UnsupportedError, match="exit code 125"):
        bisect(sums, [Passes(Pipeline((DoubleAdditions(),)))], check)


def test_a_script_must_be_there() -> None:
    with pytest.raises(GraphInputError, match="no program 'no-such-program'"):
        script_check(["no-such-program"])


@pytest.mark.parametrize("bad", range(1, 40))
def test_binary_search(bad: int) -> None:
    tried: list[int] = []

    def is_bad(index: int) -> bool:
        tried.append(index)
        return index >= bad

    assert first_bad(39, is_bad) == bad
    assert len(tried) <= 6


def test_smallest_part_leaves_out_all_that_is_not_needed() -> None:
    needed = {3, 17, 18}
    tried: list[tuple[int, ...]] = []

    def holds(items: tuple[int, ...]) -> bool:
        tried.append(items)
        return needed <= set(items)

    assert smallest_part(tuple(range(40)), holds) == (3, 17, 18)
    assert len(tried) == len(set(tried))


@pytest.mark.parametrize("every", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("n", [1, 2, 60, 120, 240])
def test_smallest_part_takes_few_trials(n: int, every: int) -> None:
    needed = tuple(range(0, n, every))
    trials = 0

    def holds(items: tuple[int, ...]) -> bool:
        nonlocal trials
        trials += 1
        return set(needed) <= set(items)

    assert smallest_part(tuple(range(n)), holds) == needed
    assert trials <= 3 * n


def test_smallest_part_goes_round_until_nothing_more_goes() -> None:
    """Each can only go after the one behind it."""

    def holds(items: tuple[int, ...]) -> bool:
        return items == tuple(range(len(items)))

    assert smallest_part(tuple(range(6)), lambda items: holds(items) and len(items) > 3) == (0, 1, 2, 3)


def test_smallest_part_of_items_that_go_together() -> None:
    """Pairs of neighbours go only as a whole."""

    def holds(items: tuple[int, ...]) -> bool:
        return all((2 * i in items) == (2 * i + 1 in items) for i in range(4)) and 7 in items

    part = smallest_part(tuple(range(8)), holds)
    assert part == (6, 7)


def test_passes_of_a_backend_know_its_patterns() -> None:
    backend = get_backend("x86_inductor")
    step = Passes(Pipeline((RecordContext(),)), backend="x86_inductor")
    assert step.patterns is backend.patterns
    with pytest.raises(UnknownNameError, match="no_such_backend"):
        Passes(Pipeline((RecordContext(),)), backend="no_such_backend")


def test_passes_run_in_the_context_of_their_step(exact: Any) -> None:
    seen: list[PassContext] = []
    *_, lower = exact.steps()
    assert lower.backend == "x86_inductor"
    step = Passes(Pipeline((RecordContext(seen),)), None, lower.patterns, lower.backend)
    list(states(exact.model, [step]))
    (context,) = seen
    assert context.backend == "x86_inductor"
    assert context.patterns is lower.patterns
    assert context.gate is not None
