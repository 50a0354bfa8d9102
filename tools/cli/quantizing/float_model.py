"""The float model that is quantized: found by its name or file, built, and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ....errors import GraphInputError, OptionError
from ....ir.schema import OpOverload, argument, operator_name, signature
from ....ir.wording import with_article
from .calibration_data import FirstBatch
from .export_failure import export_failure
from .first_arguments import Arguments, arguments_of, run_on_data
from .named_object import call_user, code_of, find_object, is_object_name
from .program_file import check_is_program, load_program
from .torch_messages import torch_kept_quiet

__all__ = ["Built", "export", "find_model"]

_TRAINING: Final = ("train", "training")
"""What ATen calls the argument that says whether an operator computes as in training."""


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


def export(built: Built, first: FirstBatch | None = None) -> tuple[GraphModule, tuple[str, ...]]:
    """The graph of a model in evaluation mode, and notes on what was changed or not used for that.

    Args:
        built: the model.
        first: a batch of calibration data, from which the arguments come if none came with the model.

    Raises:
        OptionError: there are no arguments to export it with.
        CalibrationDataError: the batch has none for the model.
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
        # A mistake in the model is the user's to see as it is, not as torch.export tells of it.
        with torch.no_grad(), code_of(f"the model of {built.name} at its example inputs"):
            model(*args, **kwargs)
    elif first is not None:
        (args, kwargs), note = arguments_of(model, first, built.name)
        notes += [note] if note else []
        run_on_data(model, args, kwargs, first, built.name)
    else:
        raise OptionError(
            f"{built.name} came without example inputs, and there is no calibration data to take them from",
            hint="let the function return (module, inputs), or give --calibration",
        )
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
        f"{name} gives {with_article(type(made).__name__)}",
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
        f"the example inputs of {name} are {with_article(type(inputs).__name__)}",
        hint="return (module, inputs) with a tensor, a tuple of arguments or a dict of keyword arguments",
    )
