"""Properties of what a backend annotates without a pattern, under every preset."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from ...backends.by_hand import ByHand
from ...backends.capabilities import Preset
from ...export_utils import move_exported_model_to_eval
from ...ir import quantized_decomposed as qd
from ...ir.ledger import Decision
from ...ir.specs import storage_dtype
from ...quantize_pt2e import convert_pt2e, decisions, prepare_pt2e, prepare_qat_pt2e
from .expect import expect, expect_equal
from .flow import Configurable, Flows, quietly

__all__ = ["PROPERTIES"]


def is_quantized_where_the_table_says(flows: Flows, each: ByHand) -> None:
    """Its example is quantized under the presets that the table says, with the dtype there, and no others."""
    for preset in flows.backend.presets:
        cell = flows.cells[each.name, preset.name]
        found, converted, _ = _run(flows, each, preset)
        reasons = [(d.status, d.reason) for d in found]
        said = ("quantized", each.name) in reasons
        expect_equal(said, cell.supported, f"{preset.name}: quantized, of {reasons}")
        expect(all(reason for _, reason in reasons), f"{preset.name}: left float without a reason")
        dtypes = {node.args[-1] for node in converted.graph.nodes if qd.is_quantize(node)}
        wanted = set() if cell.activation is None else {storage_dtype(cell.activation)}
        expect_equal(dtypes, wanted, f"{preset.name}: dtypes that it reads")


def stays_close_to_the_float_model(flows: Flows, each: ByHand) -> None:
    """What its converted example returns is close to what its float example does."""
    for preset in flows.backend.presets:
        _, _, (found, wanted) = _run(flows, each, preset)
        for ours, theirs in zip(found, wanted, strict=True):
            off = float((ours - theirs).abs().max())
            allowed = 0.1 * float(theirs.abs().max())
            expect(off <= allowed, f"{preset.name}: off by {off}, more than {allowed}")


PROPERTIES = (is_quantized_where_the_table_says, stays_close_to_the_float_model)

_Results = tuple[torch.Tensor, ...]


def _run(
    flows: Flows, each: ByHand, preset: Preset
) -> tuple[tuple[Decision, ...], GraphModule, tuple[_Results, _Results]]:
    """The decisions, the converted example, and what it and the float one return."""
    torch.manual_seed(0)
    model, inputs = each.example()
    config, own = preset.config(), flows.backend.quantizer()
    assert isinstance(own, Configurable)
    own.set_global(config)
    exported = torch.export.export(model.train(config.is_qat), inputs).module()
    assert isinstance(exported, GraphModule)
    prepare = prepare_qat_pt2e if config.is_qat else prepare_pt2e
    with quietly(), torch.no_grad():
        prepared = prepare(exported, own)
        prepared(*inputs)
        converted = convert_pt2e(move_exported_model_to_eval(prepared) if config.is_qat else prepared)
        results = tuple(converted(*inputs)), tuple(model.eval()(*inputs))
    return decisions(converted), converted, results
