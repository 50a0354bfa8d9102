"""What tests of passes share: exporting, and a quantizer made of one function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lowbit import Quantizer
from torch import nn
from torch.fx import GraphModule, Node


class ByFunction(Quantizer):
    """Annotates with a function of a node."""

    def __init__(self, annotate_node: Callable[[Node], None]) -> None:
        self.annotate_node = annotate_node

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            self.annotate_node(node)
        return model


@pytest.fixture(scope="session")
def quantizer() -> type[ByFunction]:
    """``quantizer(annotate_node)`` is a quantizer that calls ``annotate_node`` with each node in turn."""
    return ByFunction


@pytest.fixture(scope="session")
def export() -> Callable[..., GraphModule]:
    """``export(model, *inputs)``: the module of the exported program."""

    def export(model: nn.Module, *inputs: torch.Tensor, **options: object) -> GraphModule:
        return torch.export.export(model.eval(), inputs, **options).module()

    return export
