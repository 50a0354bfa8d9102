"""The float model that is quantized: found by its name or file, built, and exported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ....errors import CalibrationDataError, GraphInputError, OptionError
from ....ir.schema import OpOverload, argument, operator_name, signature
from .export_failure import export_failure
from .named_object import call_user, code_of, find_object, is_object_name
from .program_file import check_is_program, load_program
from .torch_messages import torch_kept_quiet

__all__ = ["Built", "export", "find_model"]

_TRAINING: Final = ("train", "training")
"""What ATen calls the argument that says whether an operator computes as in training."""

Arguments: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"
"""Positional and keyword arguments of a model."""


@attrs.frozen(eq=False)
class Built:
    """A model as it was built or loaded.

    Args:
        name: what it is called in messages.
        model: the module, or the program it was exported as.
        example: arguments that it takes, if they came with it.
    """

    name: str
    model: nn.Module | ExportedProgram
    example: Arguments | None


def find_model(name: str) -> Callable[[], Built]:
    """What builds or loads the model; modules are imported and files looked for at once.

    Raises:
        OptionError: ``name`` is neither a file nor ``package.module:name``, or there is no such thing.
        GraphInputError: the file is no program.
        UnknownNameError: the module has no such name.
        Exception: what importing the module raised.
    """
    if name.endswith(".pt2") or Path(name).exists():
        check_is_program(Path(name))
        return lambda: _load(Path(name))
    if not is_object_name(name):
        raise OptionError(
            f"the model {name!r} is neither package.module:name nor a .pt2 file",
            hint="name a function: my_model:build for build() in my_model.py of the current folder",
        )
    found = find_object(name)
    if not callable(found) or isinstance(found, nn.Module):
        return lambda: _built(found, name)
    return lambda: _built(call_user(found, name), name)


def export(built: Built, first_batch: Any = None) -> tuple[GraphModule, tuple[str, ...]]:
    """The graph of a model in evaluation mode, and notes on what was changed or not used for that.

    Args:
        built: the model.
        first_batch: a batch of calibration data, from which the arguments come if none came with the model.

    Raises:
        OptionError: there are no arguments to export it with.
        GraphInputError: torch.export cannot export it.
        Exception: what the model raised at its arguments.
    """
    if isinstance(built.model, ExportedProgram):
        gm = built.model.module()
        return gm, _of_training(gm, built.name)
    notes: list[str] = []
    if any(module.training for module in built.model.modules()):
        notes.append(
            f"{built.name} came in training mode, and was put into evaluation mode, as by model.eval(): "
            "Dropout does nothing, BatchNorm takes its running statistics"
        )
    model = built.model.eval()
    if built.example is not None:
        args, kwargs = built.example
    else:
        args, kwargs, note = _arguments(model, first_batch, built.name)
        notes += [note] if note else []
    # A mistake in the model is the user's to see as it is, not as torch.export tells of it.
    with torch.no_grad(), code_of(f"the model of {built.name} at its example inputs"):
        model(*args, **kwargs)
    with torch_kept_quiet() as kept:
        try:
            with torch.no_grad():
                exported = torch.export.export(model, args, kwargs).module()
        # torch.export has no error type of its own.
        except Exception as error:
            # The graph up to there, say; a note is shown with the traceback.
            error.add_note(kept.text)
            raise export_failure(error, built.name) from error
    kept.tell()
    return exported, tuple(notes)


def _of_training(gm: GraphModule, name: str) -> tuple[str, ...]:
    """A note on what computes as in training, of a program that was exported so.

    BatchNorm and Dropout are not in it: with them the model is refused.
    """
    found = dict.fromkeys(
        operator_name(node.target)[1]
        for node in gm.graph.nodes
        if isinstance(node.target, OpOverload)
        and node.target not in (torch.ops.aten.batch_norm.default, torch.ops.aten.dropout.default)
        and any(
            argument(node, each) is True for each in signature(node.target).positional if each in _TRAINING
        )
    )
    if not found:
        return ()
    return (
        f"{name} was exported in training mode, and is quantized so: {', '.join(found)}. To quantize what "
        "inference computes, export model.eval()",
    )


def _load(path: Path) -> Built:
    program = load_program(path)
    return Built(str(path), program, program.example_inputs)


def _built(made: Any, name: str) -> Built:
    if isinstance(made, ExportedProgram):
        return Built(name, made, made.example_inputs)
    if isinstance(made, nn.Module):
        return Built(name, made, None)
    if isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(made[0], nn.Module):
        return Built(name, made[0], _as_arguments(made[1], name))
    raise GraphInputError(
        f"{name} gives a {type(made).__name__}",
        hint="return a torch.nn.Module, (module, example inputs) or an ExportedProgram",
    )


def _as_arguments(inputs: Any, name: str) -> Arguments:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return tuple(inputs), {}
    raise GraphInputError(
        f"the example inputs of {name} are a {type(inputs).__name__}",
        hint="return (module, inputs) with a tensor, a tuple of arguments or a dict of keyword arguments",
    )


def _arguments(model: nn.Module, batch: Any, name: str) -> tuple[tuple[Any, ...], dict[str, Any], str]:
    """Arguments out of a batch of calibration data, and a note on those that were left out, or ""."""
    if batch is None:
        raise OptionError(
            f"{name} came without example inputs, and there is no calibration data to take them from",
            hint="let the function return (module, inputs), or give --calibration",
        )
    args, kwargs = _as_arguments(batch, "the calibration data")
    forward = inspect.signature(model.forward)
    if not kwargs:
        positional = [
            p for p in forward.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        needed = max(sum(p.default is p.empty for p in positional), 1)
        # What follows the inputs in a batch is labels.
        left_out = [p.name for p in positional[needed : len(args)]]
        return args[:needed], {}, _note(left_out, len(args) - needed, name) if left_out else ""
    needed = [name for name, parameter in forward.parameters.items() if parameter.default is parameter.empty]
    if len(kwargs) == 1 >= len(needed) and kwargs.keys().isdisjoint(forward.parameters):
        return tuple(kwargs.values()), {}, ""  # one array for the one input needs no name
    try:
        bound = forward.bind(**{key: kwargs[key] for key in kwargs if key in forward.parameters})
    except TypeError as error:
        raise CalibrationDataError(
            f"the calibration data have {', '.join(kwargs)}, which do not fit the forward of {name}: {error}",
            hint=f"name the arrays as its arguments: forward{forward}",
        ) from error
    return bound.args, bound.kwargs, ""


def _note(left_out: Sequence[str], entries: int, name: str) -> str:
    what = "the last entry" if entries == 1 else f"the last {entries} entries"
    return (
        f"{what} of a batch was taken for labels, so {name} was exported without {', '.join(left_out)}, for "
        "which forward has a default. To pass them: name them in a dict of arrays, or return (module, inputs)"
    )
