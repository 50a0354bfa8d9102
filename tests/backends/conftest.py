"""The whole way from a model to its lowered graph, in one call."""

from __future__ import annotations

from typing import Any, Protocol

import attrs
import pytest
import torch
from lowbit import (
    Decision,
    Quantizer,
    X86InductorQuantizer,
    calibrate,
    convert_pt2e,
    decisions,
    get_default_x86_inductor_quantization_config,
    lower_pt2e,
    prepare_pt2e,
)
from lowbit.backends.x86_inductor import has_vnni
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree


@attrs.frozen
class Flow:
    """A model at each of its stages."""

    inputs: tuple[Any, ...]
    prepared: GraphModule
    converted: GraphModule
    lowered: GraphModule

    def targets(self) -> list[str]:
        """What the lowered graph calls, as text, in order."""
        return [str(n.target) for n in self.lowered.graph.nodes if n.op == "call_function"]

    def decision(self, node: str) -> Decision:
        """What became of the float operator ``node``."""
        return {d.node: d for d in decisions(self.lowered)}[node]

    def difference(self, *inputs: Any) -> float:
        """The largest difference between what the lowered and the converted model return.

        Relative to the largest value; inputs must come out of it unchanged.
        """
        inputs = inputs or self.inputs
        before = pytree.tree_map_only(torch.Tensor, torch.clone, inputs)
        with torch.no_grad():
            expected = pytree.tree_leaves(self.converted(*inputs))
            actual = pytree.tree_leaves(self.lowered(*inputs))
        assert all(
            torch.equal(x, y)
            for x, y in zip(pytree.tree_leaves(inputs), pytree.tree_leaves(before), strict=True)
        )
        assert [t.shape for t in actual] == [t.shape for t in expected]
        assert [t.dtype for t in actual] == [t.dtype for t in expected]
        return max(
            float((a.double() - e.double()).abs().max() / e.abs().max().clamp(min=1e-6))
            for a, e in zip(actual, expected, strict=True)
        )


class RunFlow(Protocol):
    def __call__(
        self,
        model: nn.Module,
        *inputs: Any,
        quantizer: Quantizer | None = None,
        backend: str | None = None,
        pack_weights: bool = True,
        **export_options: Any,
    ) -> Flow: ...


@pytest.fixture(scope="session")
def run_flow() -> RunFlow:
    """Export, prepare with the X86 preset that this CPU has kernels for, calibrate, convert and lower."""

    def run(
        model: nn.Module,
        *inputs: Any,
        quantizer: Quantizer | None = None,
        backend: str | None = None,
        pack_weights: bool = True,
        **export_options: Any,
    ) -> Flow:
        exported = torch.export.export(model.eval(), inputs, **export_options).module()
        assert isinstance(exported, GraphModule)
        preset = get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
        prepared = prepare_pt2e(exported, quantizer or X86InductorQuantizer().set_global(preset))
        calibrate(prepared, [inputs], progress=False)
        converted = convert_pt2e(prepared)
        return Flow(inputs, prepared, converted, lower_pt2e(converted, backend, pack_weights=pack_weights))

    return run
