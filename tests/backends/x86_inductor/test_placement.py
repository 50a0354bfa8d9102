"""The choice of forms is the cheapest of all."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit.backends.x86_inductor.placement import Link, Times, cheapest_floats

# Whole numbers: sums are exact, and so is the comparison of two choices.
COSTS = st.integers(0, 20).map(float)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Times], list[Link]]:
    names = "abcdef"[: draw(st.integers(1, 6))]
    times = {name: Times(draw(COSTS), draw(COSTS)) for name in names}
    links = []
    for _ in range(draw(st.integers(0, 8)) if len(names) > 1 else 0):
        source = draw(st.integers(0, len(names) - 2))
        reader = draw(st.integers(source + 1, len(names) - 1))
        to_float, to_int8 = draw(COSTS), draw(COSTS)
        in_float = draw(st.integers(0, int(to_float + to_int8)).map(float))
        links.append(Link(names[source], names[reader], to_float, to_int8, in_float))
    return times, links


def total(times: dict[str, Times], links: list[Link], floats: frozenset[str]) -> float:
    alone = sum(each.float32 if name in floats else each.int8 for name, each in times.items())
    return alone + sum(link.between(link.source in floats, link.reader in floats) for link in links)


@given(problems())
@settings(max_examples=300)
def test_it_is_the_cheapest_and_of_those_the_one_with_fewest_floats(problem) -> None:
    times, links = problem
    choices = [
        frozenset(name for name, is_float in zip(times, forms, strict=True) if is_float)
        for forms in product((False, True), repeat=len(times))
    ]
    found = cheapest_floats(times, links)
    least = min(total(times, links, floats) for floats in choices)
    assert total(times, links, found) == least
    assert all(found <= floats for floats in choices if total(times, links, floats) == least)


def test_neighbours_count() -> None:
    slow, fast, link = Times(12, 10), Times(5, 10), Link("a", "b", to_float=4, to_int8=4, in_float=4)
    assert cheapest_floats({"a": slow}, []) == {"a"}
    assert cheapest_floats({"a": slow, "b": fast}, [link]) == frozenset()
    assert cheapest_floats({"a": slow, "b": Times(15, 10)}, [link]) == {"a", "b"}
