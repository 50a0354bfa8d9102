"""Pipelines as values and as text, and the names of passes."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import ClassVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.backends.pipelines import CONVERT, PREPARE
from lowbit.errors import PipelineError, UnknownNameError
from lowbit.ir.stages import Stage
from lowbit.passes import (
    Annotate,
    FoldQuantize,
    InsertObservers,
    Normalize,
    ObserversToQdq,
    Pass,
    Pipeline,
    ResolveSharing,
    pass_class,
    pass_names,
    register_pass,
)
from lowbit.passes import registry as registry_module
from lowbit.passes.pipeline import format_pass

ALL = frozenset(Stage)


class Runs:
    """Part of a pass that is not tested here."""

    def run(self, gm, context):
        return False


@attrs.frozen
class Tune(Runs):
    name: ClassVar[str] = "test-tune"
    requires: ClassVar[frozenset[Stage]] = ALL
    ensures: ClassVar[Stage | None] = None

    level: int = 2
    label: str = ""
    ratio: float | None = None
    sizes: tuple[object, ...] = ()
    _private: bool = False
    computed: int = attrs.field(init=False, default=7)


@attrs.frozen
class Limit(Runs):
    name: ClassVar[str] = "test-limit"
    requires: ClassVar[frozenset[Stage]] = ALL
    ensures: ClassVar[Stage | None] = None

    count: int = attrs.field(validator=attrs.validators.gt(0))


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """The passes of this file are registered while its tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "_classes", dict(registry_module._classes))
        register_pass(Tune)
        register_pass(Limit)
        yield


@attrs.frozen
class At(Runs):
    """A pass of any stages."""

    name: str
    requires: frozenset[Stage]
    ensures: Stage | None = None


def at(name: str, *requires: Stage, ensures: Stage | None = None) -> At:
    return At(name, frozenset(requires), ensures)


# -- as text


@pytest.mark.parametrize("pipeline", [PREPARE, CONVERT, Pipeline(), PREPARE + CONVERT])
def test_the_text_of_a_pipeline_reads_back(pipeline: Pipeline) -> None:
    assert Pipeline.parse(str(pipeline)) == pipeline


def test_options_that_are_the_default_are_not_written() -> None:
    assert str(Pipeline((Tune(), Tune(level=3, label="a")))) == "test-tune, test-tune{level=3, label='a'}"
    assert format_pass(Tune(private=True)) == "test-tune{private=True}"
    assert format_pass(Limit(count=1)) == "test-limit{count=1}"


LITERALS = st.one_of(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(), st.text()
)


@settings(max_examples=300)
@given(
    st.lists(
        st.builds(
            Tune,
            level=st.integers(),
            label=st.text(string.printable + "é→{}"),
            ratio=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
            sizes=st.recursive(LITERALS, lambda inner: st.lists(inner, max_size=3).map(tuple)).map(
                lambda v: (v,)
            ),
            private=st.booleans(),
        ),
        max_size=3,
    )
)
def test_any_options_read_back(passes: list[Tune]) -> None:
    pipeline = Pipeline(tuple(passes))
    again = Pipeline.parse(str(pipeline))
    assert again == pipeline
    assert str(again) == str(pipeline)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("  \n", ()),
        ("normalize", ("normalize",)),
        ("normalize,annotate", ("normalize", "annotate")),
        ("\n  normalize ,\n  test-tune { level = 1, } \n", ("normalize", "test-tune")),
        ("test-tune{}", ("test-tune",)),
        ("test-tune{label='}, {', sizes=(1, (2,))}, normalize", ("test-tune", "normalize")),
    ],
)
def test_spaces_and_lines_do_not_matter(text: str, names: tuple[str, ...]) -> None:
    assert Pipeline.parse(text).names == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("normalize,", "ends with a comma"),
        ("normalize, \n", "ends with a comma"),
        (",normalize", "does not parse at ',normalize'"),
        ("normalize,,annotate", "does not parse at ',annotate'"),
        ("normalize annotate", "does not parse at 'normalize annotate'"),
        ("normalize; annotate", "does not parse"),
        ("Normalize", "does not parse"),
        ("-normalize", "does not parse"),
        ("normalize-", "does not parse"),
        ("test-tune{level=1", "does not parse"),
        ("test-tune{level=1}}", "does not parse"),
        ("test-tune{label='}", "does not parse"),
        ("test-tune{level=}", "options of pass 'test-tune' do not parse"),
        ("test-tune{level}", "options of pass 'test-tune' do not parse"),
        ("test-tune{1}", "options of pass 'test-tune' do not parse"),
        ("test-tune{**1}", "options of pass 'test-tune' do not parse"),
        ("test-tune{level=1, level=2}", "options of pass 'test-tune' do not parse"),
        ("test-tune{level=print(1)}", "options of pass 'test-tune' do not parse"),
        ("test-tune{level=x}", "options of pass 'test-tune' do not parse"),
        ("test-tune{level=1)(label=2}", "options of pass 'test-tune' do not parse"),
        ("test-tune{level=1) + f(label=2}", "options of pass 'test-tune' do not parse"),
        ("test-tune{level=1), (label=2}", "options of pass 'test-tune' do not parse"),
        ("test-tune{level=1)#}", "options of pass 'test-tune' do not parse"),
        ("test-limit", "refuses its options"),
        ("test-limit{count=0}", "refuses its options"),
        ("test-limit{count='a'}", "refuses its options"),
    ],
)
def test_malformed_text_is_refused(text: str, said: str) -> None:
    with pytest.raises(PipelineError, match=said) as caught:
        Pipeline.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("anotate", "no pass named 'anotate'", "did you mean 'annotate'"),
        ("normalize, fold-quantise", "no pass named 'fold-quantise'", "did you mean 'fold-quantize'"),
        ("zzz", "no pass named 'zzz'", "known: "),
        ("test-tune{levl=1}", "no option of pass 'test-tune' named 'levl'", "did you mean 'level'"),
        ("test-tune{computed=1}", "named 'computed'", "known: level, label, ratio, sizes, private"),
        ("test-tune{_private=True}", "named '_private'", "did you mean 'private'"),
        (
            "duplicate-dequantize{level=1}",
            "no option of pass 'duplicate-dequantize' named 'level'",
            "there is none at all",
        ),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(text: str, said: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        Pipeline.parse(text)
    assert said in str(caught.value)
    assert hint in caught.value.hint


# -- as a value


def test_pipelines_are_edited_as_values() -> None:
    p = Pipeline((Normalize(), Annotate(), InsertObservers()))
    tune, limit = Tune(), Limit(count=1)
    assert p.before("annotate", tune, limit).names == (
        *("normalize", "test-tune", "test-limit", "annotate", "insert-observers"),
    )
    assert p.after("annotate", ResolveSharing()).names == (
        *("normalize", "annotate", "resolve-sharing", "insert-observers"),
    )
    assert p.before("normalize", tune).names[0] == "test-tune"
    assert p.after("insert-observers", tune).names[-1] == "test-tune"
    assert p.replace("normalize", tune, limit).names == (
        *("test-tune", "test-limit", "annotate", "insert-observers"),
    )
    assert p.without("normalize").names == ("annotate", "insert-observers")
    assert p.until("annotate").names == ("normalize", "annotate")
    assert (p.until("annotate") + Pipeline((InsertObservers(),))) == p
    assert list(p) == [Normalize(), Annotate(), InsertObservers()]
    assert len(p) == 3
    # None of this changed p.
    assert p == Pipeline((Normalize(), Annotate(), InsertObservers()))
    assert hash(p) == hash(Pipeline([Normalize(), Annotate(), InsertObservers()]))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        p.passes = ()


def test_of_two_passes_with_one_name_the_first_is_meant() -> None:
    p = Pipeline((Tune(1), Tune(2)))
    assert p.without("test-tune") == Pipeline((Tune(2),))
    assert p.until("test-tune") == Pipeline((Tune(1),))


@pytest.mark.parametrize("edit", ["before", "after", "replace", "without", "until"])
def test_editing_by_an_unknown_name_is_refused_with_the_nearest(edit: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        getattr(PREPARE, edit)("anotate")
    assert "no pass in this pipeline named 'anotate'" in str(caught.value)
    assert "did you mean 'annotate'" in caught.value.hint
    with pytest.raises(UnknownNameError) as caught:
        getattr(Pipeline(), edit)("annotate")
    assert caught.value.hint == "there is none at all"


class NotAPass:
    name = "not-a-pass"
    requires = ALL
    ensures = None


@pytest.mark.parametrize("thing", [None, "normalize", Normalize, NotAPass(), lambda gm, context: True])
def test_what_is_no_pass_is_refused(thing: object) -> None:
    with pytest.raises(PipelineError, match="is not a pass"):
        Pipeline((Tune(), thing))


def test_a_plain_class_can_be_a_pass() -> None:
    class Own(NotAPass):
        def run(self, gm, context):
            return False

    assert isinstance(Own(), Pass)
    assert Pipeline((Own(),)).names == ("not-a-pass",)
    assert format_pass(Own()) == "not-a-pass"


# -- stages


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (
            (InsertObservers(), Annotate()),
            "pass 'annotate' runs at stage FLOAT, but 'insert-observers' leaves the graph at OBSERVED",
        ),
        (
            (Annotate(), FoldQuantize()),
            "pass 'fold-quantize' runs at stage QDQ, but 'annotate' leaves the graph at ANNOTATED",
        ),
        (
            # What a pass requires is known of the graph behind it, too.
            (Normalize(), ObserversToQdq()),
            "pass 'observers-to-qdq' runs at stage OBSERVED, but 'normalize' leaves the graph at FLOAT",
        ),
        (
            (
                at("any", *ALL),
                at("two", Stage.FLOAT, Stage.QDQ),
                at("wide", *ALL),
                at("last", Stage.OBSERVED, Stage.LOWERED),
            ),
            "pass 'last' runs at stage OBSERVED or LOWERED, but 'two' leaves the graph at FLOAT or QDQ",
        ),
        (
            (at("two", Stage.FLOAT, Stage.QDQ), at("one", Stage.QDQ), at("last", Stage.FLOAT)),
            "pass 'last' runs at stage FLOAT, but 'one' leaves the graph at QDQ",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused_naming_both_passes(passes, said: str) -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline(passes)
    assert caught.value.found == said
    assert caught.value.hint


def test_edits_are_checked_as_well() -> None:
    with pytest.raises(PipelineError, match="'resolve-sharing' runs at stage ANNOTATED, but"):
        PREPARE.without("annotate")
    with pytest.raises(PipelineError, match="'normalize' runs at stage FLOAT"):
        CONVERT + PREPARE


def test_a_pass_that_runs_nowhere_is_refused() -> None:
    with pytest.raises(PipelineError, match="'nowhere' requires no stage"):
        Pipeline((at("nowhere"),))


# -- the registry


def test_the_names_of_passes_are_sorted_and_lead_to_their_classes() -> None:
    assert list(pass_names()) == sorted(pass_names())
    assert {"normalize", "annotate", "test-tune"} <= set(pass_names())
    assert pass_class("annotate") is Annotate
    assert all(pass_class(name).name == name for name in pass_names())
    with pytest.raises(UnknownNameError, match="no pass named 'anotate'"):
        pass_class("anotate")


def test_a_name_that_is_taken_is_refused() -> None:
    class Other(Runs):
        name = "normalize"
        requires = ALL
        ensures = None

    with pytest.raises(PipelineError, match=r"'normalize' is taken by lowbit\.passes\.normalize\.Normalize"):
        register_pass(Other)
    assert pass_class("normalize") is Normalize


def test_a_class_defined_again_replaces_itself() -> None:
    def define() -> type[Pass]:
        class Again(Runs):
            name = "test-again"
            requires = ALL
            ensures = None

        return register_pass(Again)

    first, second = define(), define()
    assert first is not second
    assert pass_class("test-again") is second


@pytest.mark.parametrize(
    "name", ["", "Fold", "fold_it", "fold it", "-fold", "fold-", "fold--it", "fold,it", "é"]
)
def test_a_name_that_would_not_read_back_is_refused(name: str) -> None:
    cls = type("Odd", (Runs,), {"name": name, "requires": ALL, "ensures": None})
    with pytest.raises(PipelineError, match="would not be read back") as caught:
        register_pass(cls)
    assert "kebab-case" in caught.value.hint
    assert name not in pass_names()
