"""Subjects drawn at random, one a number: every structure that rewrites look for comes up in a few dozen.

Hypothesis would do as well, but half of its examples are small changes of the one before, which pays where an
example is cheap, and a graph that is quantized is not.
"""

from __future__ import annotations

from random import Random
from typing import Final

from .operators import OPERATORS
from .programs import Program, Step
from .quantizing import ACTIVATIONS, WEIGHTS, Choices
from .subjects import Subject

__all__ = ["SHAPES", "draw_subject"]

SHAPES: Final[dict[tuple[int, ...], int]] = {
    (1,): 1,
    (2, 3): 4,
    (2, 2, 4, 4): 5,
    (2, 3, 5): 3,
    (1, 4, 5, 5): 3,
    (0, 3): 1,
    (0, 2, 4, 4): 1,
    (): 3,
}
"""Shapes of inputs and how often they come up, the simplest first; some have no elements or no dimensions."""

_OFTEN: Final = {
    "block": 4,
    "convolution": 3,
    "linear": 3,
    "again": 3,
    "relu": 2,
    "batch_norm": 2,
    "pool": 2,
    "in_place": 2,
    "binary": 3,
    "reduce": 2,
    "identity": 2,
    "gated": 2,
}
_WEIGHTS: Final = [_OFTEN.get(name, 1) for name in OPERATORS]


def draw_subject(random: Random, *, max_steps: int, is_training: bool) -> Subject:
    """A program of one to ``max_steps`` operators, and how these are annotated."""
    (shape,) = random.choices(list(SHAPES), list(SHAPES.values()))
    # Few kinds of operators a program: two that meet only rarely among all of them often do.
    # (Groce et al., "Swarm Testing", 2012.)
    kinds = random.choices(list(OPERATORS), _WEIGHTS, k=random.randint(2, 4))
    program = Program(
        shape=shape,
        steps=tuple(_step(random, kinds) for _ in range(random.randint(1, max_steps))),
        results=random.choice((0, 1, 1, 2)),
        seed=random.randrange(100),
        is_training=is_training,
    )
    return Subject(program, tuple(_choices(random) for _ in range(random.randint(1, 3))))


def _step(random: Random, kinds: list[str]) -> Step:
    first, second = (random.choice((0, 0, 0, 1, 1, 2, 3)) for _ in range(2))
    return Step(random.choice(kinds), first, second, random.randrange(420))


def _choices(random: Random) -> Choices:
    # Twice as often one of two that differ in their observer alone.
    activation = random.choice((*range(len(ACTIVATIONS)), 1, 2))
    # As a quantizer has it that quantizes a whole model; or something else.
    output = activation if random.random() < 0.5 else random.randrange(-1, len(ACTIVATIONS))
    return Choices(
        activation=activation,
        weight=random.randrange(len(WEIGHTS)),
        output=output,
        shares=random.random() < 0.7,
        anchor=random.choice((1, 2, 3)) if random.random() < 0.15 else 0,
        fuses=random.random() < 0.5,
    )
