"""What is wrong with a batch that a prepared model does not run on, or whose values its observers refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from .errors import CalibrationDataError
from .ir.attributes import nested_graph_modules
from .ir.location import locate
from .ir.observers.extremes import bad_values
from .ir.verifiers import is_observer

__all__ = ["observers_of", "run_observed"]


def run_observed(model: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run a prepared model on one batch.

    Raises:
        CalibrationDataError: the model does not run on it, or an observer refuses what it meets.
    """
    try:
        model(*args, **kwargs)
    except CalibrationDataError as error:
        raise _traced(error, model, args, kwargs) from None
    # What the input checks of torch.export and the operators raise at tensors that do not fit.
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise _not_run(error, model, _given(model, args, kwargs)) from error


def _traced(
    error: CalibrationDataError, model: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> CalibrationDataError:
    """What an observer refused: a value of the batch, or one that an operator made."""
    node = _refusing_node(model, args, kwargs)
    floats = {each: x for each, x in _given(model, args, kwargs).items() if _has_floats(x)}
    bad = {each: found for each, x in floats.items() if (found := bad_values(x))[0]}
    said = {each: f"the input {str(each.target)!r} has {words}" for each, (words, _) in bad.items()}
    if node not in bad:
        # Infinity in a mask, say, is meant so: what an operator made need not come of it.
        error.where = (*error.where, *(locate(node) if node is not None else ()), *said.values())
        return error
    told = CalibrationDataError(
        said[node], hint="leave the sample out of the calibration data, or mend what makes it"
    )
    told.input, told.index = str(node.target), bad[node][1]
    return told


def _not_run(error: Exception, model: GraphModule, given: Mapping[Node, Any]) -> CalibrationDataError:
    """What to say of a batch that the model does not run on."""
    tensors = {node: value for node, value in given.items() if isinstance(value, torch.Tensor)}
    if isinstance(error, IndexError):
        for ids, rows in _tables(model):
            outside = (
                ((tensors[ids] < 0) | (tensors[ids] >= rows)).nonzero().tolist() if ids in tensors else []
            )
            if outside:
                return _out_of_range(str(ids.target), tensors[ids], tuple(outside[0]), rows)
    return CalibrationDataError(
        f"the model does not run on the batch: {type(error).__name__}: {error}",
        hint=_how_to_fit(error, tensors),
    )


def _out_of_range(name: str, ids: torch.Tensor, index: tuple[int, ...], rows: int) -> CalibrationDataError:
    told = CalibrationDataError(
        f"the input {name!r} has {ids[index].item()}{f' at {list(index)}' if index else ''}, and the "
        "embedding that looks it up "
        f"has {rows} rows, 0 to {rows - 1}",
        hint="make the ids with the tokenizer (or the vocabulary) of this model",
    )
    told.input, told.index = name, index
    return told


def _how_to_fit(error: Exception, tensors: Mapping[Node, torch.Tensor]) -> str:
    """What to do about a batch that the model does not run on: what is usual first."""
    for node, value in tensors.items():
        name, wanted = str(node.target), node.meta.get("val")
        if isinstance(wanted, torch.Tensor) and value.ndim == wanted.ndim - 1:
            return (
                f"{name} has {value.ndim} axes and the model takes {wanted.ndim}: if it is one sample, give "
                f"it an axis of samples, {name}.unsqueeze(0)"
            )
    integers = {node: t for node, t in tensors.items() if t.dtype in (torch.int32, torch.int64) and t.numel()}
    if isinstance(error, IndexError) and integers:
        have = ", ".join(f"{n.target} has {t.min().item()} to {t.max().item()}" for n, t in integers.items())
        return f"look for values that are out of range: {have}"
    return "yield what the model was exported with: the same arguments, of shapes and dtypes it allows"


def _given(model: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Node, Any]:
    """What each placeholder was given; nothing where that is not plain, of nested arguments."""
    placeholders = model.graph.find_nodes(op="placeholder")
    leaves, structure = pytree.tree_flatten((args, kwargs))
    if structure == getattr(model, "_in_spec", None):
        return dict(zip(placeholders, leaves, strict=True))
    if len(leaves) > len(args) + len(kwargs):
        return {}
    by_name = {str(node.target): node for node in placeholders}
    named = {by_name[name]: value for name, value in kwargs.items() if name in by_name}
    return {**dict(zip(placeholders, args, strict=False)), **named}


def _tables(model: GraphModule) -> list[tuple[Node, int]]:
    """The inputs that are looked up in embeddings as they are, and how many rows those have."""
    found: Any = model.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default)
    tables = [(call.args[1], call.args[0].meta.get("val")) for call in found]
    return [(ids, table.shape[0]) for ids, table in tables if isinstance(table, torch.Tensor)]


def _has_floats(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and not value.is_meta


def _refusing_node(model: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node | None:
    """The operator whose result an observer of ``model`` refuses. Runs the batch once more."""
    called: list[torch.nn.Module] = []

    def note(observer: torch.nn.Module, _: Any) -> None:
        called.append(observer)

    hooks = [observer.register_forward_pre_hook(note) for observer in observers_of(model)]
    try:
        model(*args, **kwargs)
    except CalibrationDataError:
        refusing = called[-1]
        for owner in (model, *nested_graph_modules(model)):
            calls = owner.graph.find_nodes(op="call_module")
            at = [node for node in calls if owner.get_submodule(node.target) is refusing]
            if at:
                # An observer that several points share is called at each, in graph order; in a loop, again.
                return at[(called.count(refusing) - 1) % len(at)].all_input_nodes[0]
    finally:
        for hook in hooks:
            hook.remove()
    return None


def observers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The observers and fake quantizers; the observer inside a fake quantizer is part of that."""
    observers = [module for module in model.modules() if is_observer(module)]
    inner = {id(module) for observer in observers for module in observer.modules() if module is not observer}
    return [observer for observer in observers if id(observer) not in inner]
