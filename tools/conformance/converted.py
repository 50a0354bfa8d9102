"""Properties of the converted form of a pattern, under every preset: what is stored, and the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.fx import Node

from ...ir import quantized_decomposed as qd
from ...ir.observers import create_observer
from ...ir.specs import QuantizationSpec, storage_dtype
from ...matchers.operator_pattern import Mode, OperatorPattern, Role, Sharing
from .expect import expect, expect_equal
from .flow import Flows
from .reading import largest, quantizes, role_of, stored_dtype, supported_runs
from .zoo import Branch

__all__ = ["PROPERTIES"]

_LEAST_SQNR = 15.0
"""Decibels; 8 bits have some 40, and what a function does to small differences is its own affair."""


def keeps_no_float_weight(flows: Flows, pattern: OperatorPattern) -> None:
    """A weight that is stored in low precision is not stored in float beside it."""
    for run, branch in supported_runs(flows, pattern):
        if run.config.weight is None or Role.WEIGHT not in pattern.roles:
            continue
        name = pattern.parameters[pattern.roles.index(Role.WEIGHT)]
        stored = run.converted.state_dict().get(f"{branch.path}.{name}")
        kept = stored is not None and stored.dtype is torch.float32
        expect(not kept, f"{run.preset.name}: the float weight is kept")


def shares_one_scale_throughout(flows: Flows, pattern: OperatorPattern) -> None:
    """What moves values has one scale and zero point on all sides; what computes shares none by force."""
    for run, branch in supported_runs(flows, pattern):
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
    for run, branch in supported_runs(flows, pattern):
        cell = flows.cells[pattern.name, run.preset.name]
        own = run.operators(branch)
        if not own:
            continue
        read: dict[Role, set[torch.dtype]] = {}
        for node in own:
            for source in node.all_input_nodes:
                if qd.is_dequantize(source) or source.target is qd.CONVERT_ELEMENT_TYPE:
                    read.setdefault(role_of(branch, source, own), set()).add(stored_dtype(source))
        expect_equal(
            read.get(Role.ACTIVATION, set()), _set(cell.activation), f"{run.preset.name}: activations"
        )
        expect_equal(read.get(Role.WEIGHT, set()), _set(cell.weight), f"{run.preset.name}: weight")
        written = {stored_dtype(n) for node in own for n in node.users if quantizes(n, node)}
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
    for run, branch in supported_runs(flows, pattern):
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
        quantize = [n for node in own for n in node.users if quantizes(n, node)]
        if quantize:
            result = _through(result, quantize[0].args[1:])
        position = next(i for i, b in flows.branches(pattern) if b is branch)
        result = -result if branch.is_read else result
        found = run.converted_results[position][0]
        expect(torch.equal(found, result), f"{run.preset.name}: off by {largest(found - result)}")


PROPERTIES = (
    keeps_no_float_weight,
    shares_one_scale_throughout,
    stores_what_the_table_says,
    keeps_values_close,
    computes_what_its_graph_says,
)


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
        if qd.is_dequantize(source) and role_of(branch, source, own) is Role.ACTIVATION
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
