"""Properties of how a pattern is annotated, under every preset."""

from __future__ import annotations

import attrs

from ...ir.specs import SharedQuantizationSpec
from ...matchers.operator_pattern import OperatorPattern, Role, Sharing
from .expect import expect, expect_equal
from .flow import Flows, Run
from .reading import role_of, runs_of, specs_by_role, supported_runs

__all__ = ["PROPERTIES"]


def is_annotated_where_the_table_says(flows: Flows, pattern: OperatorPattern) -> None:
    """Its operators are quantized, as this pattern, under the presets that the table says, and no others."""
    for run, branch in runs_of(flows, pattern):
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
    for run, branch in supported_runs(flows, pattern):
        annotations = run.annotations.get(branch.path, [])
        own = [node for node, _ in annotations]
        found: dict[Role, list[object]] = {}
        for _, annotation in annotations:
            for source, spec in annotation.input_qspec_map.items():
                found.setdefault(role_of(branch, source, own), []).append(spec)
        specs = specs_by_role(run)
        for role, of_role in found.items():
            for spec in of_role:
                _expect_spec(run, pattern, role, spec)
        wanted = {role for role, spec in specs.items() if role in pattern.roles and spec is not None}
        expect_equal(set(found), wanted, f"{run.preset.name}: roles of tensors with a spec")


def quantizes_its_output_if_it_must(flows: Flows, pattern: OperatorPattern) -> None:
    """The output has a spec where the kernel writes low precision only, or has that of the input."""
    for run, branch in supported_runs(flows, pattern):
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


PROPERTIES = (
    is_annotated_where_the_table_says,
    gives_each_tensor_the_spec_of_its_role,
    quantizes_its_output_if_it_must,
)


def _expect_spec(run: Run, pattern: OperatorPattern, role: Role, spec: object) -> None:
    wanted = specs_by_role(run).get(role)
    if role is Role.ACTIVATION and pattern.sharing is Sharing.SAME_AS_INPUT and spec != wanted:
        expect(isinstance(spec, SharedQuantizationSpec), f"{run.preset.name}: what moves values has {spec}")
        return
    if role is Role.WEIGHT and wanted is not None and wanted.ch_axis is not None:
        wanted = attrs.evolve(wanted, ch_axis=pattern.weight_axis)
    expect_equal(spec, wanted, f"{run.preset.name}: spec of the {role.value}")
