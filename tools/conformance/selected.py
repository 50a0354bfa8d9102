"""Properties of the setters of a backend's quantizer: what each selects, and nothing else, is decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...backends.selection import operator_of_function
from ...errors import UnknownNameError
from ...ir.canonical_operators import canonical_name
from ...ir.ledger import Decision
from ...ir.schema import OpOverload, operator_name
from ...ir.specs import QuantizationConfig
from ...matchers.operator_pattern import Sharing
from .expect import expect, expect_equal
from .flow import Flows, Setting
from .zoo import Branch, BranchModule

__all__ = ["PROPERTIES"]


def leaves_excluded_parts_float(flows: Flows) -> None:
    """``set_module_name(part, None)`` leaves that part float, and no other."""
    excluded = flows.zoo.branches[:: max(1, len(flows.zoo.branches) // 2)]
    settings = [Setting("set_module_name", branch.path, None) for branch in excluded]
    quantized = _quantized(flows, _config(flows), *settings)
    paths = {branch.path for branch in excluded}
    expected = [d for d in _quantized(flows, _config(flows)) if d.module not in paths]
    expect_equal(_nodes(quantized), _nodes(expected), "quantized with parts excluded")


def quantizes_selected_parts(flows: Flows) -> None:
    """``set_module_name(part, config)`` quantizes that part, without any configuration for the rest."""
    chosen, _ = _example(flows)
    quantized = _quantized(flows, None, Setting("set_module_name", chosen.path, _config(flows)))
    expect_equal({d.module for d in quantized}, {chosen.path}, "the parts quantized")


def selects_by_module_class(flows: Flows) -> None:
    """``set_module_type`` and ``set_object_type`` of a class decide about all in its modules."""
    everything = _nodes(_quantized(flows, _config(flows)))
    for setter in _setters(flows, "set_module_type", "set_object_type"):
        excluded = _quantized(flows, _config(flows), Setting(setter, BranchModule, None))
        expect_equal(_nodes(excluded), [], f"quantized with {setter}(…, None) for all of it")
        selected = _quantized(flows, None, Setting(setter, BranchModule, _config(flows)))
        expect_equal(_nodes(selected), everything, f"quantized with {setter} for all of it")


def selects_by_function(flows: Flows) -> None:
    """``set_function_type`` and ``set_object_type`` of a function decide about its calls, and no other."""
    _, target = _example(flows)
    function = _function_of(target)
    for setter in _setters(flows, "set_function_type", "set_object_type") if function is not None else ():
        _decides_about(flows, setter, function, target)


def selects_by_operator(flows: Flows) -> None:
    """``set_operator_type`` and ``set_object_type`` of an operator decide about its calls, and no other."""
    _, target = _example(flows)
    # Only who takes operators by the one name takes them by the other.
    setters = _setters(flows, "set_operator_type", "set_object_type")
    for setter in setters if "set_operator_type" in setters else ():
        _decides_about(flows, setter, target, target)


def prefers_names_to_types_to_functions(flows: Flows) -> None:
    """A module name wins over a module class, that over a function, that over the global configuration."""
    config = _config(flows)
    chosen, target = _example(flows)
    function = _function_of(target)
    by_name = Setting("set_module_name", chosen.path, config)
    for setter in _setters(flows, "set_module_type"):
        by_class = Setting(setter, BranchModule, None)
        found = {d.module for d in _quantized(flows, config, by_name, by_class)}
        expect_equal(found, {chosen.path}, "quantized by name where the class is to be float")
        if function is not None and _setters(flows, "set_function_type"):
            by_class = Setting(setter, BranchModule, config)
            both = _quantized(flows, None, by_class, Setting("set_function_type", function, None))
            everything = _nodes(_quantized(flows, config))
            expect_equal(_nodes(both), everything, "quantized by class where the function is to be float")


def refuses_selections_of_nothing(flows: Flows) -> None:
    """A setting for what the model does not have is an error, whatever it is by."""
    missing = {
        "set_module_name": "nowhere",
        "set_module_type": nn.TripletMarginLoss,
        "set_function_type": torch.special.bessel_j0,
        "set_object_type": nn.TripletMarginLoss,
        "set_operator_type": torch.ops.aten.special_bessel_j0.default,
    }
    for setter in _setters(flows, *missing):
        try:
            _quantized(flows, _config(flows), Setting(setter, missing[setter], None))
        except UnknownNameError:
            continue
        expect(False, f"{setter} took what the model does not have")


PROPERTIES = (
    leaves_excluded_parts_float,
    quantizes_selected_parts,
    selects_by_module_class,
    selects_by_function,
    selects_by_operator,
    prefers_names_to_types_to_functions,
    refuses_selections_of_nothing,
)


def _config(flows: Flows) -> QuantizationConfig:
    return flows.backend.presets[0].config()


def _setters(flows: Flows, *names: str) -> list[str]:
    """Those of ``names`` that the backend's quantizer has."""
    own = flows.backend.quantizer()
    return [name for name in names if hasattr(own, name)]


def _decisions(flows: Flows, config: QuantizationConfig | None, *settings: Setting) -> tuple[Decision, ...]:
    return flows.annotate(flows.quantizer(config, *settings))[1]


def _quantized(flows: Flows, config: QuantizationConfig | None, *settings: Setting) -> list[Decision]:
    """What of the branches is quantized with ``config`` for all, but for what the settings select."""
    own = {branch.path for branch in flows.zoo.branches}
    found = _decisions(flows, config, *settings)
    return [d for d in found if d.status == "quantized" and d.module in own]


def _nodes(decisions: list[Decision]) -> list[str]:
    return [decision.node for decision in decisions]


def _example(flows: Flows) -> tuple[Branch, OpOverload]:
    """A branch that is quantized under the first preset, and its operator: one operator, if there is such."""
    paths = {d.module for d in _quantized(flows, _config(flows))}
    found = [
        (branch, branch.pattern.anchor)
        for branch in sorted(flows.zoo.branches, key=lambda branch: branch.pattern.size)
        if branch.path in paths and branch.pattern.sharing is Sharing.INDEPENDENT
    ]
    expect(bool(found), "no pattern that computes is quantized under the first preset")
    branch, target = found[0]
    assert isinstance(target, OpOverload)
    return branch, target


def _function_of(target: OpOverload) -> Callable[..., Any] | None:
    """The torch function that exports as ``target``; None where there is none of that name."""
    _, name, _ = operator_name(target)
    for namespace in (F, torch):
        function = getattr(namespace, name, None)
        if function is not None and canonical_name(operator_of_function(function)) == name:
            return function
    return None


def _decides_about(flows: Flows, setter: str, what: object, target: OpOverload) -> None:
    config, text = _config(flows), str(target)
    before = _decisions(flows, config)
    having = {d.module for d in before if d.target == text}
    excluded = _quantized(flows, config, Setting(setter, what, None))
    expect_equal([d.node for d in excluded if d.target == text], [], f"quantized with {setter}(…, None)")
    others = [d.node for d in _quantized(flows, config) if d.module not in having]
    kept = [d.node for d in excluded if d.module not in having]
    expect_equal(kept, others, f"quantized beside what {setter}(…, None) is about")
    selected = _quantized(flows, None, Setting(setter, what, config))
    expect(any(d.target == text for d in selected), f"{setter}(…, config) quantizes nothing")
    strays = [d.node for d in selected if d.module not in having]
    expect_equal(strays, [], f"quantized beside what {setter}(…, config) is about")
