"""Pipelines: immutable sequences of passes that fit together.

A pipeline is edited as a value, and its text reads back to an equal pipeline::

    >>> p = Pipeline.parse("normalize, fold-batch-norm, annotate, resolve-sharing, insert-observers")
    >>> str(p.without("fold-batch-norm").until("annotate"))
    'normalize, annotate'
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import attrs

from ..errors import PipelineError
from ..ir.stages import Stage
from .base import Pass
from .registry import PASS_NAME, pass_class, unknown_name

__all__ = ["Pipeline", "format_pass"]

# Braces end the options, except in quoted text.
_OPTIONS = r"""(?:[^{}'"]|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")*"""
_PASS = re.compile(rf"\s*(?P<name>{PASS_NAME})\s*(?:\{{(?P<options>{_OPTIONS})\}})?\s*")


def format_pass(pass_: Pass) -> str:
    """``name``, or ``name{option=value, …}`` with the options that differ from their defaults.

    The text reads back where the options are numbers, booleans, None, text, or tuples and lists of them.
    """
    options = [
        f"{field.alias}={getattr(pass_, field.name)!r}"
        for field in _options(type(pass_))
        if getattr(pass_, field.name) != field.default
    ]
    return f"{pass_.name}{{{', '.join(options)}}}" if options else pass_.name


def _check_stages(passes: tuple[Pass, ...]) -> None:
    # The stages the graph can be at before the next pass; None: whatever the caller brings.
    possible: frozenset[Stage] | None = None
    setter = ""
    for pass_ in passes:
        if not pass_.requires:
            raise PipelineError(
                f"pass {pass_.name!r} requires no stage, so there is none to run it at",
                hint="set requires to the stages the pass may run at",
            )
        fitting = pass_.requires if possible is None else possible & pass_.requires
        if not fitting:
            assert possible is not None  # else fitting is what the pass requires
            raise PipelineError(
                f"pass {pass_.name!r} runs at stage {_names(pass_.requires)}, but {setter} leaves the "
                f"graph at {_names(possible)}",
                hint="put a pass between them that changes the stage, or reorder the pipeline",
            )
        if pass_.ensures is not None:
            possible, setter = frozenset({pass_.ensures}), repr(pass_.name)
        elif fitting != possible:
            possible, setter = fitting, repr(pass_.name)


def _names(stages: frozenset[Stage]) -> str:
    return " or ".join(stage.name for stage in Stage if stage in stages)


@attrs.frozen
class Pipeline:
    """An immutable sequence of passes.

    Args:
        passes: the passes, in order. Of two passes with one name, editing by name means the first.

    Raises:
        PipelineError: something that is not a pass, or stages that do not fit together.
    """

    passes: tuple[Pass, ...] = attrs.field(converter=tuple, default=())

    def __attrs_post_init__(self) -> None:
        for pass_ in self.passes:
            # isinstance on a runtime-checkable protocol looks for the members only, which is what is meant.
            if isinstance(pass_, type) or not isinstance(pass_, Pass):
                raise PipelineError(
                    f"{pass_!r} is not a pass",
                    hint="a pass is an instance with name, requires, ensures and run; see lowbit.passes.Pass",
                )
        _check_stages(self.passes)

    @staticmethod
    def parse(text: str) -> Pipeline:
        """Read a pipeline from its text.

        Raises:
            PipelineError: text that is not ``name{option=value, …}, …``, or options that the pass refuses.
            UnknownNameError: a pass that is not registered, or an option that it does not have.
        """
        passes: list[Pass] = []
        position = 0
        text = text.strip()
        while position < len(text):
            match = _PASS.match(text, position)
            if match is None or (match.end() < len(text) and text[match.end()] != ","):
                raise PipelineError(
                    f"pipeline text does not parse at {text[position : position + 30]!r}",
                    hint="write passes as name or name{option=value}, separated by commas",
                )
            passes.append(_make_pass(match["name"], match["options"] or ""))
            position = match.end() + 1
            if position == len(text):
                raise PipelineError(
                    "pipeline text ends with a comma", hint="remove it, or name a pass after it"
                )
        return Pipeline(tuple(passes))

    def __str__(self) -> str:
        return ", ".join(format_pass(pass_) for pass_ in self.passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline(self.passes + other.passes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the passes, in order."""
        return tuple(pass_.name for pass_ in self.passes)

    def _index(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise unknown_name("pass in this pipeline", name, self.names) from None

    def before(self, name: str, *new: Pass) -> Pipeline:
        """With ``new`` inserted before the pass ``name``."""
        i = self._index(name)
        return Pipeline(self.passes[:i] + new + self.passes[i:])

    def after(self, name: str, *new: Pass) -> Pipeline:
        """With ``new`` inserted after the pass ``name``."""
        i = self._index(name) + 1
        return Pipeline(self.passes[:i] + new + self.passes[i:])

    def replace(self, name: str, *new: Pass) -> Pipeline:
        """With the pass ``name`` replaced by ``new``."""
        i = self._index(name)
        return Pipeline(self.passes[:i] + new + self.passes[i + 1 :])

    def without(self, name: str) -> Pipeline:
        """With the pass ``name`` left out."""
        return self.replace(name)

    def until(self, name: str) -> Pipeline:
        """The passes up to and including ``name``."""
        return Pipeline(self.passes[: self._index(name) + 1])


def _options(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    return tuple(field for field in attrs.fields(cls) if field.init) if attrs.has(cls) else ()


def _make_pass(name: str, options: str) -> Pass:
    cls = pass_class(name)
    try:
        # Options are written as keyword arguments with literal values: Python's own parser reads them.
        call = ast.parse(f"f(\n{options}\n)", mode="eval").body
        # An unpaired parenthesis can make another expression of it.
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("more than options")
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("positional value")
        values: dict[str, Any] = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if len(values) < len(call.keywords):
            raise ValueError("an option given twice")
    except (SyntaxError, ValueError) as error:
        raise PipelineError(
            f"the options of pass {name!r} do not parse: {{{options}}}",
            hint="write option=value, …, with numbers, True, False, None or quoted text as values",
        ) from error
    known = tuple(str(field.alias) for field in _options(cls))
    for option in values:
        if option not in known:
            raise unknown_name(f"option of pass {name!r}", option, known)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise PipelineError(
            f"pass {name!r} refuses its options {{{options}}}: {error}",
            hint=f"its options are: {', '.join(known)}",
        ) from error
