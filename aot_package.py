"""``package_pt2e``: a lowered model as one file that runs without Python's torch.compile.

This is the one module that calls AOTInductor; ``tests/test_aot_package.py`` says when it moves.
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import optimization_hint
from torch.utils import _pytree as pytree

from .errors import GraphInputError, StageError
from .ir.location import locate
from .ir.stages import Stage, get_stage
from .ir.wording import with_article

__all__ = ["exported_inputs", "package_pt2e"]


def package_pt2e(model: GraphModule, path: str | PathLike[str]) -> str:
    """Compile a lowered model ahead of time with AOTInductor, and write it to a file.

    ::

        lowered = lower_pt2e(converted, pack_weights=False)
        package_pt2e(lowered, "model.pt2")
        run = torch._inductor.aoti_load_package("model.pt2")  # or from C++; needs torch, not lowbit
        logits = run(images)

    Inputs have the shapes that the model was exported with, dynamic where it was exported so.

    The file holds the integer weights as they are, since oneDNN's own layout can be neither saved nor loaded:
    each call of the model packs them again. ``torch.compile`` of a model with packed weights
    does not.

    Args:
        model: what ``lower_pt2e(converted, pack_weights=False)`` returned.
        path: where to write to; ends in ``.pt2``.

    Returns:
        The path.

    Raises:
        StageError: ``model`` is not lowered.
        GraphInputError: its weights are packed; ``path`` has another ending; an input is no tensor or number.
    """
    if not isinstance(model, GraphModule) or get_stage(model) is not Stage.LOWERED:
        raise StageError(
            "a model that is not lowered was to be packaged",
            hint="pass what lower_pt2e(converted, pack_weights=False) returns",
        )
    if any(tensor.is_mkldnn for tensor in (*model.buffers(), *model.parameters())):
        raise GraphInputError(
            "the weights of the model are packed for this process, and cannot be written to a file",
            hint="lower it again: lower_pt2e(converted, pack_weights=False)",
        )
    file = fspath(path)
    if not file.endswith(".pt2"):
        raise GraphInputError(f"a package was to be written to {file!r}", hint="give it the ending .pt2")
    args, kwargs, dynamic = exported_inputs(model)
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)
        # Inductor takes a second to import, which only those who compile pay.
        from torch._inductor import aoti_compile_and_package

        return aoti_compile_and_package(program, package_path=file)


def exported_inputs(model: GraphModule) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments like those the model was exported with, and which of their sizes are dynamic.

    Args:
        model: a graph module with the inputs of an exported program, at any stage.

    Returns:
        Positional arguments, keyword arguments, and ``dynamic_shapes`` as ``torch.export.export`` takes them,
        None if no size is dynamic. Tensors are zeros.

    Raises:
        GraphInputError: an input is no tensor or number.
    """
    placeholders = model.graph.find_nodes(op="placeholder")
    spec: pytree.TreeSpec = model._in_spec  # pyright: ignore[reportAssignmentType]
    args, kwargs = pytree.tree_unflatten(list(map(_example, placeholders)), spec)
    dynamic_args, dynamic_kwargs = pytree.tree_unflatten(list(map(_dynamic, placeholders)), spec)
    dynamic = (*dynamic_args, *dynamic_kwargs.values()) if any(map(_dynamic, placeholders)) else None
    return args, kwargs, dynamic


def _example(placeholder: Node) -> Any:
    value = placeholder.meta.get("val")
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if isinstance(value, torch.Tensor):
        sizes, strides = (list(map(optimization_hint, of)) for of in (value.shape, value.stride()))
        return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device).zero_()
    raise GraphInputError(
        f"the input %{placeholder.name} is {with_article(type(value).__name__)}",
        where=locate(placeholder),
        hint="export the model with tensors and numbers as inputs",
    )


def _dynamic(placeholder: Node) -> Any:
    value = placeholder.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    dynamic = torch.export.Dim.DYNAMIC
    return {i: dynamic for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)} or None
