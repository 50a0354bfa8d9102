"""What is written of a quantized model."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

from ....aot_package import exported_inputs, package_pt2e
from ....ir.text import save_graph
from ....ir.text.files import check_graph_path
from .files import written_whole

__all__ = ["save_graphs", "save_package", "save_program", "weight_bytes"]


def save_program(converted: GraphModule, path: Path) -> None:
    """Write a converted model by ``torch.export.save``, with the dynamic sizes that it has."""
    args, kwargs, dynamic = exported_inputs(converted)
    with torch.no_grad(), written_whole(path) as draft, _without_torchs_own_warnings():
        torch.export.save(torch.export.export(converted, args, kwargs, dynamic_shapes=dynamic), draft)


def save_package(lowered: GraphModule, path: Path) -> None:
    """Write a lowered model whose weights are not packed, compiled by AOTInductor."""
    with written_whole(path) as draft, _without_torchs_own_warnings():
        package_pt2e(lowered, draft)


def save_graphs(graphs: dict[str, GraphModule], folder: Path) -> tuple[Path, ...]:
    """Write each graph as text with its tensors beside it, ``name.lowbit``."""
    paths = tuple(folder / f"{name}.lowbit" for name in graphs)
    for path in paths:
        check_graph_path(path)
    for path, graph in zip(paths, graphs.values(), strict=True):
        with written_whole(path) as draft:
            save_graph(graph, draft)
    return paths


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the tensors that a model keeps; shared ones once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()
    }
    return sum(storages.values())


@contextmanager
def _without_torchs_own_warnings() -> Generator[None]:
    """torch saves programs by means that it deprecates, which nobody who saves one can change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
