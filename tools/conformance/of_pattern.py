"""Properties of each pattern of a backend, under every preset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.fx import Node

from ...ir import quantized_decomposed as qd
from ...ir.observers import create_observer
from ...ir.specs import QuantizationSpec, SharedQuantizationSpec, storage_dtype
from ...matchers.match import Match
from ...matchers.operator_pattern import Mode, OperatorPattern, Role, Sharing
from .expect import expect, expect_equal
from .flow import Flows, Run
from .zoo import Branch

__all__ = ["PROPERTIES"]

_LEAST_SQNR = 15.0
"""Decibels; 8 bits have some 40, and what a function does to small differences is its own affair."""


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


def keeps_no_float_weight(flows: Flows, pattern: OperatorPattern) -> None:
    """A weight that is stored in low precision is not stored in float beside it."""
    for run, branch in _supported(flows, pattern):
        if run.config.weight is None or Role.WEIGHT not in pattern.roles:
            continue
        name = pattern.parameters[pattern.roles.index(Role.WEIGHT)]
        stored = run.converted.state_dict().get(f"{branch.path}.{name}")
        kept = stored is not None and stored.dtype is torch.float32
        expect(not kept, f"{run.preset.name}: the float weight is kept")


def is_annotated_where_the_table_says(flows: Flows, pattern: OperatorPattern) -> None:
    """Its operators are quantized, as this pattern, under the presets that the table says, and no others."""
    for run, branch in _runs(flows, pattern):
        reasons = [(d.node, d.status, d.reason) for d in run.decisions(branch)]
        expect(bool(reasons), f"{run.preset.name}: its operators have no decisions")
        wrong = [
            reason
            for reason in reasons
            if (reason[1:] == ("quantized", pattern.name))
            != flows.cells[pattern.name, run.preset.name].supported
        ]
        expect_equal(wrong, [], f"{run.preset.name}: decisions that are not as the table says")
        expect(all(reason[2] for reason in reasons), f"{run.preset.name}: left float without a reason")


def gives_each_tensor_the_spec_of_its_role(flows: Flows, pattern: OperatorPattern) -> None:
    """Activations, weights and biases have the preset's specs, and nothing else has any."""
    for run, branch in _supported(flows, pattern):
        annotations = run.annotations.get(branch.path, [])
        own = [node for node, _ in annotations]
        found: dict[Role, list[object]] = {}
        for _, annotation in annotations:
            for source, spec in annotation.input_qspec_map.items():
                found.setdefault(_role(branch, source, own), []).append(spec)
        specs = _specs(run)
        for role, of_role in found.items():
            for spec in of_role:
                _expect_spec(run, pattern, role, spec)
        wanted = {role for role, spec in specs.items() if role in pattern.roles and spec is not None}
        expect_equal(set(found), wanted, f"{run.preset.name}: roles of tensors with a spec")


def quantizes_its_output_if_it_must(flows: Flows, pattern: OperatorPattern) -> None:
    """The output has a spec where the kernel writes low precision only, or has that of the input."""
    for run, branch in _supported(flows, pattern):
        outputs = [
            a.output_qspec for _, a in run.annotations.get(branch.path, []) if a.output_qspec is not None
        ]
        if pattern.sharing is Sharing.SAME_AS_INPUT:
            expect(bool(outputs), "what moves values does not share its output")
            shared = all(isinstance(output, SharedQuantizationSpec) for output in outputs)
            expect(shared, f"{run.preset.name}: an output that is not shared: {outputs}")
        else:
            spec = run.config.output_activation if pattern.quantizes_output else None
            expect_equal(outputs, [spec] if spec is not None else [], f"{run.preset.name}: output specs")


def shares_one_scale_throughout(flows: Flows, pattern: OperatorPattern) -> None:
    """What moves values has one scale and zero point on all sides; what computes shares none by force."""
    for run, branch in _supported(flows, pattern):
        if pattern.sharing is not Sharing.SAME_AS_INPUT:
            continue
        own = set(run.operators(branch))
        if not own:
            continue
        around = [n for node in own for n in (*node.all_input_nodes, *node.users)]
        parameters = {n.args[1:] for n in around if qd.is_quantize(n) or qd.is_dequantize(n)}
        expect_equal(len(parameters), 1, f"{run.preset.name}: different parameters around what moves values")


def stores_what_the_table_says(flows: Flows, pattern: OperatorPattern) -> None:
    """In the converted graph activations, weight and output have the dtypes of the table."""
    for run, branch in _supported(flows, pattern):
        cell = flows.cells[pattern.name, run.preset.name]
        own = run.operators(branch)
        if not own:
            continue
        read: dict[Role, set[torch.dtype]] = {}
        for node in own:
            for source in node.all_input_nodes:
                if qd.is_dequantize(source) or source.target is qd.CONVERT_ELEMENT_TYPE:
                    read.setdefault(_role(branch, source, own), set()).add(_stored_dtype(source))
        expect_equal(
            read.get(Role.ACTIVATION, set()), _set(cell.activation), f"{run.preset.name}: activations"
        )
        expect_equal(read.get(Role.WEIGHT, set()), _set(cell.weight), f"{run.preset.name}: weight")
        written = {_stored_dtype(n) for node in own for n in node.users if _quantizes(n, node)}
        # Without a reader the result may stay float.
        expected = _set(cell.output) if branch.is_read or pattern.quantizes_output else set()
        expect_equal(written, expected, f"{run.preset.name}: dtypes that the result is quantized to")


def keeps_values_close(flows: Flows, pattern: OperatorPattern) -> None:
    """Converted results have the shapes and dtypes of the float ones, and are close to them."""
    for run in flows.runs:
        for i, _branch in flows.branches(pattern):
            for found, wanted in zip(run.converted_results[i], flows.float_results[i], strict=True):
                # Averages of ranges that have seen one batch are short of it.
                least = _LEAST_SQNR / 3 if run.config.is_qat else _LEAST_SQNR
                _expect_close(found, wanted, least, run.preset.name)


def computes_what_its_graph_says(flows: Flows, pattern: OperatorPattern) -> None:
    """Converted results are the function of quantized inputs, to the bit, under static presets."""
    for run, branch in _supported(flows, pattern):
        if run.mode is not Mode.STATIC or run.config.is_qat or pattern.sharing is not Sharing.INDEPENDENT:
            continue
        own = run.operators(branch)
        spec = run.config.weight
        arguments: list[Tensor] = []
        inputs = iter(branch.inputs)
        activations = _activation_parameters(branch, own)
        for name, role in zip(pattern.parameters, pattern.roles, strict=True):
            if role is Role.WEIGHT and spec is not None:
                arguments.append(
                    _fake_quantized(branch.module.get_parameter(name), spec, pattern.weight_axis)
                )
            elif role in (Role.WEIGHT, Role.BIAS):
                arguments.append(branch.module.get_parameter(name).detach())
            elif role is Role.ACTIVATION:
                x = next(inputs)
                arguments.append(_through(x, next(activations)))
            else:
                arguments.append(next(inputs))
        with torch.no_grad():
            result = pattern.function(*arguments)
        quantize = [n for node in own for n in node.users if _quantizes(n, node)]
        if quantize:
            result = _through(result, quantize[0].args[1:])
        position = next(i for i, b in flows.branches(pattern) if b is branch)
        result = -result if branch.is_read else result
        found = run.converted_results[position][0]
        expect(torch.equal(found, result), f"{run.preset.name}: off by {_largest(found - result)}")


def is_lowered_or_says_why_not(flows: Flows, pattern: OperatorPattern) -> None:
    """Its operators run as the table says, or have the reason why not here.

    Where the result is read in float, what they run as may be the kernel of a part of the pattern.
    """
    kernels = {p.kernel.name for p in flows.backend.patterns if p.kernel is not None}
    for run, branch in _supported(flows, pattern):
        if run.lowered is None:
            continue
        for decision in run.decisions(branch, "lowered"):
            place = f"{run.preset.name}: %{decision.node}"
            if decision.status == "float":
                expect(bool(decision.reason), f"{place} is left float without a reason")
                matched = decision.reason != "no-kernel" or not branch.is_read
                expect(matched, f"{place} was tried by no kernel")
            elif pattern.kernel is None:
                expect(decision.detail.startswith("left to the compiler"), f"{place}: {decision.detail}")
            else:
                names = {pattern.kernel.name} if branch.is_read else kernels
                told = any(decision.detail.startswith(f"runs as {name}") for name in names)
                expect(told, f"{place} is said to be {decision.detail!r}, not of {sorted(names)}")


def runs_on_its_kernel_under_some_preset(flows: Flows, pattern: OperatorPattern) -> None:
    """Under one at least of the presets with activations in low precision, its kernel takes its example.

    Whether a kernel for weights alone is worth calling may be a matter of the machine.
    """
    if pattern.kernel is None:
        return
    tried = [
        decision.detail or decision.reason
        for run, branch in _supported(flows, pattern)
        if run.lowered is not None and run.config.input_activation is not None and branch.is_read
        for decision in run.decisions(branch, "lowered")
    ]
    runs = any(said.startswith(f"runs as {pattern.kernel.name}") for said in tried)
    expect(runs or not tried, f"its kernel takes its example under no preset: {'; '.join(tried)}")


def computes_the_same_lowered(flows: Flows, pattern: OperatorPattern) -> None:
    """Lowered results are the converted ones, up to one rounding the other way, where they run here."""
    for run in flows.runs:
        if run.lowered_results is None:
            continue
        for i, branch in flows.branches(pattern):
            step = max(_steps(run, branch), default=0.0)
            for found, wanted in zip(run.lowered_results[i], run.converted_results[i], strict=True):
                expect_equal((found.shape, found.dtype), (wanted.shape, wanted.dtype), "a lowered result")
                off = _largest(found - wanted)
                allowed = 1.001 * step + 1e-4 * _largest(wanted)
                expect(off <= allowed, f"{run.preset.name}: off by {off}, more than {allowed}")


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
    keeps_no_float_weight,
    is_annotated_where_the_table_says,
    gives_each_tensor_the_spec_of_its_role,
    quantizes_its_output_if_it_must,
    shares_one_scale_throughout,
    stores_what_the_table_says,
    keeps_values_close,
    computes_what_its_graph_says,
    is_lowered_or_says_why_not,
    runs_on_its_kernel_under_some_preset,
    computes_the_same_lowered,
    has_a_row_in_the_documentation,
)


def _runs(flows: Flows, pattern: OperatorPattern) -> Iterator[tuple[Run, Branch]]:
    for run in flows.runs:
        for _, branch in flows.branches(pattern):
            if run.has(branch):
                yield run, branch


def _supported(flows: Flows, pattern: OperatorPattern) -> Iterator[tuple[Run, Branch]]:
    for run, branch in _runs(flows, pattern):
        if flows.cells[pattern.name, run.preset.name].supported:
            yield run, branch


def _quantizes(user: Node, node: Node) -> bool:
    # A range that is found at run time is an operator too, which a quantize reads the scale of.
    return qd.is_quantize(user) and user.args[0] is node


def _role(branch: Branch, source: Node, own: list[Node]) -> Role:
    """What ``source`` is to ``branch``: a parameter of its module, by its name, or an activation."""
    while qd.is_dequantize(source) or qd.is_quantize(source) or source.target is qd.CONVERT_ELEMENT_TYPE:
        source = source.all_input_nodes[0]
    if source.op != "get_attr":
        expect(source not in own, f"the tensor %{source.name} inside the pattern is quantized")
        expect(Role.ACTIVATION in branch.pattern.roles, f"%{source.name} is quantized, and is no activation")
        return Role.ACTIVATION
    name = str(source.target).removeprefix(f"{branch.path}.")
    roles = dict(zip(branch.pattern.parameters, branch.pattern.roles, strict=True))
    return next(
        role for parameter, role in roles.items() if name.split("_")[0] == parameter or name == parameter
    )


def _specs(run: Run) -> dict[Role, QuantizationSpec | None]:
    config = run.config
    return {Role.ACTIVATION: config.input_activation, Role.WEIGHT: config.weight, Role.BIAS: config.bias}


def _expect_spec(run: Run, pattern: OperatorPattern, role: Role, spec: object) -> None:
    wanted = _specs(run).get(role)
    if role is Role.ACTIVATION and pattern.sharing is Sharing.SAME_AS_INPUT and spec != wanted:
        expect(isinstance(spec, SharedQuantizationSpec), f"{run.preset.name}: what moves values has {spec}")
        return
    if role is Role.WEIGHT and wanted is not None and wanted.ch_axis is not None:
        wanted = attrs.evolve(wanted, ch_axis=pattern.weight_axis)
    expect_equal(spec, wanted, f"{run.preset.name}: spec of the {role.value}")


def _stored_dtype(source: Node) -> torch.dtype:
    if qd.is_dequantize(source) or qd.is_quantize(source):
        dtype = source.args[-1]
        assert isinstance(dtype, torch.dtype)
        return dtype
    return torch.float16


def _set(dtype: torch.dtype | None) -> set[torch.dtype]:
    return set() if dtype is None else {storage_dtype(dtype)}


def _expect_close(found: Tensor, wanted: Tensor, least: float, preset: str) -> None:
    expect_equal((found.shape, found.dtype), (wanted.shape, wanted.dtype), f"{preset}: a result")
    noise = (found - wanted).double().pow(2).mean()
    signal = wanted.double().pow(2).mean()
    if noise > 0:
        sqnr = float(10 * torch.log10(signal / noise))
        expect(sqnr >= least, f"{preset}: signal to noise of {sqnr:.1f} dB, less than {least}")


def _activation_parameters(branch: Branch, own: list[Node]) -> Iterator[tuple[object, ...]]:
    """The arguments of the quantize of each activation, in the order of the pattern's parameters."""
    dequantized = [
        source
        for node in own
        for source in node.all_input_nodes
        if qd.is_dequantize(source) and _role(branch, source, own) is Role.ACTIVATION
    ]
    return iter([node.args[1:] for node in dequantized])


def _through(x: Tensor, parameters: tuple[object, ...]) -> Tensor:
    return qd.DEQUANTIZE_PER_TENSOR(qd.QUANTIZE_PER_TENSOR(x, *parameters), *parameters)


def _fake_quantized(weight: Tensor, spec: QuantizationSpec, axis: int) -> Tensor:
    if spec.ch_axis is not None:
        spec = attrs.evolve(spec, ch_axis=axis)
    observer: Any = create_observer(spec)
    observer(weight.detach())
    scale, zero_point = observer.calculate_qparams()
    tail = (observer.quant_min, observer.quant_max, observer.dtype)
    if spec.ch_axis is None:
        return _through(weight.detach(), (float(scale), int(zero_point), *tail))
    parameters = (scale, zero_point, axis, *tail)
    return qd.DEQUANTIZE_PER_CHANNEL(qd.QUANTIZE_PER_CHANNEL(weight.detach(), *parameters), *parameters)


def _steps(run: Run, branch: Branch) -> Iterator[float]:
    """The scales of what the branch writes."""
    for node in run.operators(branch):
        for user in node.users:
            if _quantizes(user, node) and isinstance(user.args[1], float):
                yield user.args[1]


def _largest(x: Tensor) -> float:
    return float(x.double().abs().max()) if x.numel() else 0.0
