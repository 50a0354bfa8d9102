"""What errors say, and which built-in errors they also are."""

from __future__ import annotations

import copy
import pickle

import lowbit.errors
import pytest
from lowbit.errors import LowbitError, LowbitWarning, NothingQuantizedWarning, UnknownNameError

ERRORS = [
    cls
    for name in lowbit.errors.__all__
    if issubclass(cls := getattr(lowbit.errors, name), LowbitError) and cls is not LowbitError
]


def make(cls: type[LowbitError] = LowbitError) -> LowbitError:
    error = cls(
        "two things were found", where=("%conv (aten.conv2d)\nmodule layer1", "%relu"), hint="choose one"
    )
    error.pass_name = "annotate"
    return error


def test_an_error_says_what_in_which_pass_where_and_what_to_do() -> None:
    assert str(make()) == (
        "two things were found\n"
        "  in pass: annotate\n"
        "  at: %conv (aten.conv2d)\n"
        "      module layer1\n"
        "  at: %relu\n"
        "  do: choose one"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert str(LowbitError("found")) == "found"
    assert str(LowbitError("found", where="here")) == "found\n  at: here"
    assert str(LowbitError("found", hint="do it")) == "found\n  do: do it"
    assert LowbitError("found", where=["a", "b"]).where == ("a", "b")


def test_an_empty_place_is_shown_as_such() -> None:
    assert str(LowbitError("found", where=("",))) == "found\n  at: "


@pytest.mark.parametrize("cls", ERRORS)
def test_each_error_is_a_built_in_error_too(cls: type[LowbitError]) -> None:
    built_in = [base for base in cls.__mro__ if base.__module__ == "builtins"]
    assert built_in[0] not in (Exception, BaseException), "except ValueError and the like must catch it"
    with pytest.raises(built_in[0], match="two things were found"):
        raise make(cls)


@pytest.mark.parametrize("cls", ERRORS)
def test_each_error_is_documented_and_exported(cls: type[LowbitError]) -> None:
    assert cls.__doc__
    assert cls.__name__ in lowbit.errors.__all__


def test_a_key_error_is_not_shown_as_its_repr() -> None:
    assert str(UnknownNameError("there is no pass named 'a'")) == "there is no pass named 'a'"


@pytest.mark.parametrize("cls", [LowbitError, *ERRORS])
def test_errors_come_back_whole_from_other_processes(cls: type[LowbitError]) -> None:
    error = make(cls)
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is cls
        assert str(again) == str(error)
        assert (again.found, again.where, again.hint, again.pass_name) == (
            *("two things were found", error.where, "choose one", "annotate"),
        )


def test_warnings_are_user_warnings() -> None:
    assert issubclass(NothingQuantizedWarning, LowbitWarning)
    assert issubclass(LowbitWarning, UserWarning)
