"""Properties of the declaration of a pattern, before anything is made of it; and its row in the table."""

from __future__ import annotations

from ...matchers.match import Match
from ...matchers.operator_pattern import OperatorPattern, Role, Sharing
from .expect import expect, expect_equal
from .flow import Flows

__all__ = ["PROPERTIES"]


def names_the_role_of_each_parameter(flows: Flows, pattern: OperatorPattern) -> None:
    """Roles, parameters and example inputs are as many, and weights come as one."""
    expect_equal(len(pattern.example_inputs()), len(pattern.parameters), "example inputs, and parameters")
    expect(pattern.roles.count(Role.WEIGHT) <= 1, "there are two weights")
    if pattern.sharing is Sharing.SAME_AS_INPUT:
        expect_equal(set(pattern.roles), {Role.ACTIVATION}, "roles of what moves values")


def makes_new_example_inputs(flows: Flows, pattern: OperatorPattern) -> None:
    """Example inputs are made anew, with the shapes and dtypes of last time."""
    first, second = pattern.example_inputs(), pattern.example_inputs()
    for a, b in zip(first, second, strict=True):
        expect(a is not b, "two calls return one tensor")
        expect_equal((a.shape, a.dtype), (b.shape, b.dtype), "an example input")


def finds_itself(flows: Flows, pattern: OperatorPattern) -> None:
    """The pattern matches what it was captured from, all of it."""
    graph = pattern.captured.graph
    anchors = graph.find_nodes(op="call_function", target=pattern.anchor)
    match = pattern.matcher.match_at(anchors[-1], claimed=set())
    expect(isinstance(match, Match), f"the pattern does not match its own function: {match}")
    if isinstance(match, Match):
        expect_equal(len(match.nodes), pattern.size, "operators matched")


def lets_its_own_example_through(flows: Flows, pattern: OperatorPattern) -> None:
    """No guard refuses what the pattern was captured from, but that its weight is an input there."""
    graph = pattern.captured.graph
    (anchor,) = graph.find_nodes(op="call_function", target=pattern.anchor)[-1:]
    match = pattern.matcher.match_at(anchor, claimed=set())
    if isinstance(match, Match):
        refusal = pattern.match_refusal(match)
        expect(refusal in (None, "weight-not-constant"), f"its own example is refused: {refusal}")


def is_made_of_operators(flows: Flows, pattern: OperatorPattern) -> None:
    """What it was captured as has inputs, ATen operators and one result; its kernel, if any, has a name."""
    nodes = list(pattern.captured.graph.nodes)
    expect_equal({n.op for n in nodes}, {"placeholder", "call_function", "output"}, "kinds of nodes")
    expect_equal(len(nodes[-1].all_input_nodes), 1, "results")
    expect(pattern.kernel is None or bool(pattern.kernel.name), "the kernel has no name")
    expect(bool(pattern.modes), "it is for no mode")


def has_a_row_in_the_documentation(flows: Flows, pattern: OperatorPattern) -> None:
    """The generated table has a row for it, with its dtypes under each preset."""
    rows = flows.backend.capabilities().markdown().splitlines()
    start = f"| {flows.backend.name} | {pattern.name} |"
    row = next((row for row in rows if row.startswith(start)), None)
    expect(row is not None, f"no row starts with {start}")
    for preset in flows.backend.presets:
        dtypes = flows.cells[pattern.name, preset.name].dtypes
        expect(row is not None and f" {dtypes} " in row, f"the row does not say {dtypes}")


PROPERTIES = (
    names_the_role_of_each_parameter,
    makes_new_example_inputs,
    finds_itself,
    lets_its_own_example_through,
    is_made_of_operators,
    has_a_row_in_the_documentation,
)
