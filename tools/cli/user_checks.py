"""Functions and programs of the user's that say how good a model is."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from numbers import Real
from typing import Any

from torch.fx import GraphModule

from ...errors import GraphInputError, OptionError
from ...ir.wording import with_article
from ..bisect import Check, Metric, script_check
from .quantizing.named_object import code_of, find_object, is_object_name

__all__ = ["find_check", "find_metric"]


def find_check(text: str) -> Check:
    """The check that ``--check`` names: ``package.module:name``, or a command.

    Raises:
        OptionError: there is none of that name, or it is no function; the check itself, when it says neither
            yes nor no.
    """
    if not is_object_name(text):
        try:
            return script_check(shlex.split(text))
        except ValueError as error:
            raise OptionError(f"--check is {text!r}: {error}", hint="close what is quoted") from error
        except GraphInputError as error:
            raise OptionError(error.found, hint=error.hint) from error
    call = _function(text, "check")

    def says(model: GraphModule) -> bool:
        said = call(model)
        # One of torch or NumPy, too.
        said = said.item() if hasattr(said, "item") else said
        # A forgotten return would read as "broken", and any accuracy but 0 as "good".
        if not isinstance(said, bool):
            raise OptionError(
                f"the check {text} returned {said if isinstance(said, Real) else type(said).__name__}",
                hint="return True where all is well, else False: accuracy > 0.9, say",
            )
        return said

    return says


def find_metric(text: str) -> Metric:
    """The metric that ``--metric`` names, ``package.module:name``.

    Raises:
        OptionError: there is none of that name, or it is no function; the metric itself, when it gives no
            number.
    """
    if not is_object_name(text):
        raise OptionError(
            f"--metric is {text!r}",
            hint="name a function: package.module:name, which is handed a GraphModule",
        )
    call = _function(text, "metric")

    def measure(model: GraphModule) -> float:
        found = call(model)
        # One of torch or NumPy, too.
        found = found.item() if hasattr(found, "item") else found
        if not isinstance(found, Real) or isinstance(found, bool):
            raise OptionError(
                f"the metric {text} returned a {type(found).__name__}", hint="return a number: more is better"
            )
        return float(found)

    return measure


def _function(text: str, kind: str) -> Callable[[GraphModule], Any]:
    found = find_object(text)
    if not callable(found):
        what = with_article(type(found).__name__)
        raise OptionError(f"the {kind} {text} is {what}", hint="name a function")

    def call(model: GraphModule) -> Any:
        with code_of(f"the {kind} {text}"):
            return found(model)

    return call
