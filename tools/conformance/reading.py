"""What the kit reads off a zoo's runs: what a tensor is to a pattern, and what it is stored in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from ...ir import quantized_decomposed as qd
from ...ir.specs import QuantizationSpec
from ...matchers.operator_pattern import OperatorPattern, Role
from .expect import expect
from .flow import Flows, Run
from .zoo import Branch

__all__ = [
    "largest",
    "quantizes",
    "role_of",
    "runs_of",
    "specs_by_role",
    "stored_dtype",
    "supported_runs",
]


def runs_of(flows: Flows, pattern: OperatorPattern) -> Iterator[tuple[Run, Branch]]:
    """The branches of ``pattern`` under each preset."""
    for run in flows.runs:
        for _, branch in flows.branches(pattern):
            if run.has(branch):
                yield run, branch


def supported_runs(flows: Flows, pattern: OperatorPattern) -> Iterator[tuple[Run, Branch]]:
    """The branches of ``pattern`` under each preset that it is quantized under."""
    for run, branch in runs_of(flows, pattern):
        if flows.cells[pattern.name, run.preset.name].supported:
            yield run, branch


def quantizes(user: Node, node: Node) -> bool:
    """Whether ``user`` quantizes the result of ``node``."""
    # A range that is found at run time is an operator too, which a quantize reads the scale of.
    return qd.is_quantize(user) and user.args[0] is node


def role_of(branch: Branch, source: Node, own: list[Node]) -> Role:
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


def specs_by_role(run: Run) -> dict[Role, QuantizationSpec | None]:
    """The specs that the preset of ``run`` has for tensors of each role."""
    config = run.config
    return {Role.ACTIVATION: config.input_activation, Role.WEIGHT: config.weight, Role.BIAS: config.bias}


def stored_dtype(source: Node) -> torch.dtype:
    """The dtype that a quantize, a dequantize or a cast stores values in."""
    if qd.is_dequantize(source) or qd.is_quantize(source):
        dtype = source.args[-1]
        assert isinstance(dtype, torch.dtype)
        return dtype
    return torch.float16


def largest(x: Tensor) -> float:
    """The largest magnitude in ``x``; 0 if it is empty."""
    return float(x.double().abs().max()) if x.numel() else 0.0
