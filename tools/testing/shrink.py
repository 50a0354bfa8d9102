"""The smallest subject on which something still fails: steps taken away, numbers made smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import attrs

from ..bisect import delta
from .generate import SHAPES
from .programs import Program, Step
from .quantizing import Choices
from .subjects import Subject

__all__ = ["smallest"]

_PARTS: Final = {
    "block": ("convolution", "linear", "batch_norm", "relu"),
    "to_integers": ("scalar",),
    "gated": ("linear", "binary", "unary", "relu"),
    "region": ("convolution", "linear", "relu"),
}
"""What is made of several operators, and those that do for it."""

T = TypeVar("T", Step, Choices, Program)


def smallest(subject: Subject, fails: Callable[[Subject], bool]) -> Subject:
    """A subject on which ``fails`` still, as every simpler one that is tried does not.

    Args:
        subject: one that fails.
        fails: whether another does.
    """
    return delta.smallest(subject, _simpler, fails)


def _simpler(subject: Subject) -> Iterator[Subject]:
    """Subjects that are a little simpler, the most simple first."""
    program, choices = subject.program, subject.choices
    for steps in _without_some(program.steps):
        yield attrs.evolve(subject, program=attrs.evolve(program, steps=steps))
    for fewer in _without_some(choices):
        yield attrs.evolve(subject, choices=fewer)
    for simpler in _simpler_program(program):
        yield attrs.evolve(subject, program=simpler)
    for index, choice in enumerate(choices):
        for new in _smaller(choice, ("activation", "weight", "output", "anchor", "fuses")):
            yield attrs.evolve(subject, choices=(*choices[:index], new, *choices[index + 1 :]))


def _without_some(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    for length in range(len(items), 0, -1):
        for start in range(len(items) - length + 1):
            yield (*items[:start], *items[start + length :])


def _simpler_program(program: Program) -> Iterator[Program]:
    for index, step in enumerate(program.steps):
        # An operator that is made of several may give way to one of them, in one variant or another.
        parts = _PARTS.get(step.operator, ())
        options = dict.fromkeys((step.option, *range(6)))
        simpler = [attrs.evolve(step, operator=part, option=o) for part in parts for o in options]
        for new in (*simpler, *_smaller(step, ("first", "second", "option"))):
            yield attrs.evolve(program, steps=(*program.steps[:index], new, *program.steps[index + 1 :]))
    shapes = list(SHAPES)
    known = shapes.index(program.shape) if program.shape in shapes else len(shapes)
    for shape in shapes[:known]:
        yield attrs.evolve(program, shape=shape)
    yield from _smaller(program, ("results", "seed"))


def _smaller(value: T, fields: tuple[str, ...]) -> Iterator[T]:
    """``value`` with one of its numbers nearer to zero."""
    for field in fields:
        number = getattr(value, field)
        for new in dict.fromkeys((0, 1, 2, number // 2, number - 1)):
            if 0 <= new < number or (number < 0 and new == 0):
                yield attrs.evolve(value, **{field: new})
