"""Quantizes a model in a process of its own, and prints digests of all that must be the same in every one.

Run by ``test_determinism.py``, and by itself: it needs nothing of pytest.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

import torch
from lowbit import convert_pt2e, decisions, lower_pt2e, prepare_pt2e, prepare_qat_pt2e
from lowbit.backends.x86_inductor import X86InductorQuantizer, get_default_x86_inductor_quantization_config
from lowbit.ir.annotation import QuantizationAnnotation, set_annotation
from lowbit.ir.clone import clone_graph_module
from lowbit.ir.observers import HistogramObserver
from lowbit.ir.snapshot import take_snapshot
from lowbit.ir.specs import DerivedQuantizationSpec, QuantizationSpec, SharedQuantizationSpec
from lowbit.ir.text import save_graph
from lowbit.passes.instruments import DiffToFolder, DiffToJson, PrintChanges
from rich.console import Console
from torch import Tensor, nn
from torch.fx import GraphModule


class Model(nn.Module):
    """Convolutions, a residual, tuple outputs, and operators that stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)) + x)
        left, right = torch.cat([x, x.max(dim=1, keepdim=True).values.expand_as(x)], 1).chunk(2, 1)
        return {"logits": self.head((left * right).mean((2, 3))), "largest": right}


def quantizer(*, is_qat: bool) -> X86InductorQuantizer:
    config = get_default_x86_inductor_quantization_config(is_qat=is_qat, reduce_range=True)
    return X86InductorQuantizer().set_global(config)


def derive(observers: list[HistogramObserver]) -> tuple[Tensor, Tensor]:
    """Parameters as those of the first."""
    return observers[0].calculate_qparams()


def annotated(exported: GraphModule) -> GraphModule:
    """A copy with specs of all kinds on its convolutions."""
    gm = clone_graph_module(exported)
    spec = QuantizationSpec(
        torch.uint8, HistogramObserver.with_args(eps=2**-12), 0, 255, torch.per_tensor_affine
    )
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default):
        x, weight, bias = node.args[:3]
        derived = DerivedQuantizationSpec([(x, node), (weight, node)], derive, torch.int32)
        specs = {x: spec, weight: SharedQuantizationSpec((x, node)), bias: derived}
        set_annotation(node, QuantizationAnnotation(specs, _annotated=True))
    gm.recompile()
    return gm


def main(folder: Path) -> dict[str, str]:
    """The digests, by what they are of."""
    torch.manual_seed(0)
    # Small integers: sums of them are exact, in whatever order the threads add them up.
    batch = torch.randint(-4, 5, (2, 4, 8, 8)).float()
    model = Model()
    for parameter in model.parameters():
        parameter.data = torch.randint_like(parameter, -2, 3) / 4
    printed = io.StringIO()
    console = Console(file=printed, width=120, force_terminal=True, color_system="standard")
    looking = [
        DiffToFolder(folder / "diffs"),
        DiffToJson(folder / "diffs.jsonl"),
        PrintChanges(console),
        PrintChanges(console, stat=True),
    ]
    stages: dict[str, GraphModule] = {}
    exported = torch.export.export(model.eval(), (batch,)).module()
    stages["annotated"] = annotated(exported)
    stages["prepared"] = prepare_pt2e(exported, quantizer(is_qat=False), instruments=looking)
    with torch.no_grad():
        stages["prepared"](batch)
    stages["converted"] = convert_pt2e(stages["prepared"], instruments=looking)
    stages["lowered"] = lower_pt2e(stages["converted"], pack_weights=False, instruments=looking)
    training = torch.export.export(model.train(), (batch,)).module()
    stages["qat"] = prepare_qat_pt2e(training, quantizer(is_qat=True), instruments=looking)
    made = {"printed": printed.getvalue().encode()}
    for name, gm in stages.items():
        save_graph(gm, folder / f"{name}.lowbit")
        made[f"decisions {name}"] = repr(decisions(gm)).encode()
        made[f"digest {name}"] = take_snapshot(gm).digest.encode()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    made |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    with tempfile.TemporaryDirectory() as made_in:
        sys.stdout.write(json.dumps(main(Path(made_in)), indent=1) + "\n")
