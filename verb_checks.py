"""What the verbs ask of what they are handed, and what they say of what came out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch.fx import GraphModule

from .backends.base import Backend
from .errors import (
    GraphInputError,
    LowbitWarning,
    NothingLoweredWarning,
    NothingRoundedWarning,
    RoundedCalibrationWarning,
    StrictModeError,
)
from .ir.attributes import find_attribute, nested_graph_modules
from .ir.ledger import Decision, Ledger
from .ir.location import locate
from .ir.observers import FakeQuantizeBase, ObserverBase
from .ir.quantizer import Quantizer
from .ir.schema import argument
from .ir.verifiers import is_observer
from .ir.wording import with_article
from .passes.instruments import Instrument, VerifyNumeric
from .passes.registry import unknown_name

__all__ = [
    "Verification",
    "check_all_lowered",
    "check_exported",
    "check_inference",
    "check_quantizer",
    "verification",
    "warn_if_calibration_rounds",
    "warn_if_none_lowered",
    "warn_if_nothing_rounds",
    "warnings_are_errors",
]

Verification: TypeAlias = Literal["stages", "numeric"]

_TRAINING_ARGUMENTS: Final = {
    torch.ops.aten.batch_norm.default: "training",
    torch.ops.aten.dropout.default: "train",
}


@contextlib.contextmanager
def warnings_are_errors() -> Generator[None]:
    """In the block, the warnings of lowbit are raised as StrictModeError."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowbitWarning)
        try:
            yield
        except LowbitWarning as warning:
            raise StrictModeError(
                str(warning), hint="do what it says, or go on with a warning: without strict=True or --strict"
            ) from warning


def check_exported(model: object) -> None:
    """See that ``model`` is what torch.export makes of a model."""
    if isinstance(model, GraphModule):
        for node in model.graph.nodes:
            module = find_attribute(model, str(node.target)) if node.op == "call_module" else None
            traced = isinstance(module, torch.nn.Module) and not is_observer(module) and node.users
            if node.op == "call_method" or traced:
                raise GraphInputError(
                    f"the model was traced, not exported: its graph has a {node.op} of {node.target!r}",
                    where=locate(node),
                    hint="export it: torch.export.export(model.eval(), example_inputs).module()",
                )
        return
    kind = type(model).__name__
    if isinstance(model, torch.export.ExportedProgram):
        raise GraphInputError(
            "the model is an ExportedProgram, not its module", hint="pass exported_program.module()"
        )
    raise GraphInputError(
        f"the model is {with_article(kind)}, not an exported graph module",
        hint="export it first: torch.export.export(model.eval(), example_inputs).module()",
    )


def verification(verify: str, example_inputs: Sequence[Any] | None) -> tuple[Instrument, ...]:
    """The instruments that verify as a verb was asked to."""
    if verify not in get_args(Verification):
        raise unknown_name("verification", verify, get_args(Verification))
    if verify == "stages":
        return ()
    if example_inputs is None:
        raise GraphInputError(
            "verify='numeric' was asked for without inputs to run the model on",
            hint="pass the arguments of the model: verify='numeric', example_inputs=(x,)",
        )
    return (VerifyNumeric(example_inputs),)


def check_quantizer(quantizer: object) -> None:
    """See that ``quantizer`` is one."""
    if not isinstance(quantizer, Quantizer):
        raise GraphInputError(
            f"the quantizer is {with_article(type(quantizer).__name__)}, not a Quantizer",
            hint="pass X86InductorQuantizer().set_global(…), or subclass lowbit.Quantizer",
        )


def check_inference(model: GraphModule) -> None:
    """Post-training quantization is of the model as it infers."""
    graphs = [module.graph for module in (model, *nested_graph_modules(model))]
    for target, name in _TRAINING_ARGUMENTS.items():
        for node in (n for graph in graphs for n in graph.find_nodes(op="call_function", target=target)):
            # BatchNorm without running statistics uses those of the batch in evaluation too.
            without_statistics = name == "training" and argument(node, "running_mean") is None
            if argument(node, name) is True and not without_statistics:
                raise GraphInputError(
                    f"the model was exported in training mode: {node.target} is called with {name}=True",
                    where=locate(node),
                    hint="call model.eval() before torch.export.export",
                )


def check_all_lowered(ledger: Ledger, backend: Backend) -> None:
    """In strict mode: every operator that reads low precision has a kernel."""
    missed = [d for d in _meant_to_be_lowered(ledger) if d.status == "float"]
    if missed:
        raise StrictModeError(
            f"{len(missed)} operators read low precision and have no kernel of {backend.name}",
            where=tuple(
                "\n".join(filter(None, (f"%{d.node} ({d.target}): {d.reason}", d.detail, d.source)))
                for d in missed
            ),
            hint="explain says what to do about each; without strict=True or --strict they stay float",
        )


def _meant_to_be_lowered(ledger: Ledger) -> list[Decision]:
    # What is there for training only computes nothing now, and what is faster in float is as it is to be.
    not_meant = {"training-only", "faster-in-float"}
    return [d for d in ledger.decisions if d.intended and d.reason not in not_meant]


def warn_if_none_lowered(ledger: Ledger, backend: Backend) -> None:
    """Warn where no operator that reads low precision has a kernel."""
    intended = _meant_to_be_lowered(ledger)
    if not intended or any(d.status != "float" for d in intended):
        return
    reasons = ", ".join(dict.fromkeys(d.reason for d in intended))
    warnings.warn(
        NothingLoweredWarning(
            f"none of the {len(intended)} operators that read low precision has a kernel of {backend.name} "
            f"({reasons}): they compute in float what was rounded. explain says what to do about each."
        ),
        stacklevel=3,
    )


def warn_if_nothing_rounds(prepared: GraphModule) -> None:
    """Warn where training has observers, and nothing that rounds."""
    observers = [module for module in prepared.modules() if isinstance(module, ObserverBase)]
    if observers and not any(isinstance(module, FakeQuantizeBase) for module in prepared.modules()):
        warnings.warn(
            NothingRoundedWarning(
                "none of the quantizer's specs asks for a fake quantizer, so training rounds nothing. Is "
                "is_qat=True missing from the preset?"
            ),
            stacklevel=3,
        )


def warn_if_calibration_rounds(prepared: GraphModule) -> None:
    """Warn where calibration has what rounds."""
    if any(isinstance(module, FakeQuantizeBase) for module in prepared.modules()):
        warnings.warn(
            RoundedCalibrationWarning(
                "the quantizer's specs ask for fake quantizers, which are for training: they observe in "
                "training mode only, and what they observe was rounded before it. Use prepare_qat_pt2e, or a "
                "preset without is_qat=True"
            ),
            stacklevel=3,
        )
