"""Statistics and parameters keep their dtypes, whatever the model is converted to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

__all__ = ["dtypes_kept"]


@contextmanager
def dtypes_kept(module: nn.Module) -> Generator[None]:
    """Undo what the ``_apply`` in the block does to dtypes of the tensors that ``module`` itself holds.

    ``model.half()`` and ``model.double()`` convert the model, not what was found about it: a rounded scale is
    another. Moves between devices stay.
    """
    buffers = dict(module._buffers)
    parameters = {name: p.data for name, p in module._parameters.items() if p is not None}
    yield
    for name, old in buffers.items():
        new = module._buffers[name]
        if old is not None and new is not None and new.dtype != old.dtype:
            module._buffers[name] = old.to(new.device)
    for name, old in parameters.items():
        new = module._parameters[name]
        if new is not None and new.dtype != old.dtype:
            new.data = old.to(new.device)
