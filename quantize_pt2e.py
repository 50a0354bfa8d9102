"""The verbs: prepare, calibrate, convert, lower.

Names, arguments and defaults are those of PyTorch's PT2 Export quantization tutorials.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from .backends.base import Backend
from .backends.pipelines import CONVERT, PREPARE, PREPARE_QAT
from .backends.registry import backend_names, get_backend
from .calibration import calibrate
from .cpp_wrapper import compile_with_cpp_wrapper
from .errors import UnknownNameError, UnsupportedError
from .ir.clone import own_tensors
from .ir.devices import check_has_values, check_is_on
from .ir.meta import BACKEND_KEY, LEDGER_KEY, QAT_KEY
from .ir.quantizer import Quantizer
from .passes import PassContext, PassManager, Pipeline, ReferenceRepresentation
from .passes.instruments import Instrument, TraceChanges, Verify
from .verb_checks import (
    Verification,
    check_all_lowered,
    check_exported,
    check_inference,
    check_quantizer,
    verification,
    warn_if_calibration_rounds,
    warn_if_none_lowered,
    warn_if_nothing_rounds,
    warnings_are_errors,
)
from .verb_results import coverage, decisions, ledger_of, log_coverage

__all__ = [
    "calibrate",
    "convert_pt2e",
    "coverage",
    "decisions",
    "lower_pt2e",
    "prepare_pt2e",
    "prepare_qat_pt2e",
]


def prepare_pt2e(
    model: GraphModule,
    quantizer: Quantizer,
    *,
    pipeline: Pipeline | None = None,
    instruments: Sequence[Instrument] = (),
    verify: Verification = "stages",
    example_inputs: Sequence[Any] | None = None,
    strict: bool = False,
) -> GraphModule:
    """Fold BatchNorm, annotate with ``quantizer`` and insert observers, for post-training quantization.

    ::

        exported = torch.export.export(model.eval(), example_inputs).module()
        prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(config))

    Args:
        model: what ``torch.export.export(...).module()`` returns, of a model in eval mode. It is not changed.
        quantizer: says what is quantized and how.
        pipeline: passes to run instead of the backend's own.
        instruments: what looks on while they run, besides the verifier.
        verify: ``"stages"`` checks the rules of each stage after every pass; ``"numeric"`` also runs the
            graph in float64 on ``example_inputs`` and checks that each pass kept its numbers
            (:class:`~lowbit.passes.instruments.VerifyNumeric`), else raises ContractError.
        example_inputs: the arguments of the model; a batch of one or two is enough.
        strict: raise StrictModeError where a LowbitWarning would be given otherwise: of a model of which
            nothing is quantized, of settings that change nothing, of ranges that no kernel here takes.

    Returns:
        A new graph module to be calibrated: run it on representative inputs.

    Raises:
        GraphInputError: ``model`` was not exported, or in training mode.
        StageError: ``model`` is prepared or converted already.
        AnnotationError, SharingError: the quantizer's annotations do not fit the graph or each other.

    Warns with RoundedCalibrationWarning when specs ask for fake quantizers, as presets with ``is_qat=True``.
    """
    check_exported(model)
    looking_on = (*instruments, *verification(verify, example_inputs))
    check_quantizer(quantizer)
    backend = _backend_of(quantizer)
    check_inference(model)
    default = PREPARE if backend is None else backend.prepare
    passes = default if pipeline is None else pipeline
    with warnings_are_errors() if strict else contextlib.nullcontext():
        prepared = _run(model, passes, PassContext(quantizer=quantizer), looking_on)
        warn_if_calibration_rounds(prepared)
    if backend is not None:
        prepared.meta[BACKEND_KEY] = backend.name
    log_coverage("prepare", prepared)
    return prepared


def prepare_qat_pt2e(
    model: GraphModule,
    quantizer: Quantizer,
    *,
    pipeline: Pipeline | None = None,
    instruments: Sequence[Instrument] = (),
    verify: Verification = "stages",
    example_inputs: Sequence[Any] | None = None,
    strict: bool = False,
) -> GraphModule:
    """Annotate with ``quantizer`` and insert fake quantizers, for quantization-aware training.

    ::

        exported = torch.export.export(model.train(), example_inputs).module()
        prepared = prepare_qat_pt2e(exported, X86InductorQuantizer().set_global(config))
        optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-3)

    Convolutions and linears with a BatchNorm behind them train with the weights that inference will have
    (:mod:`lowbit.ir.conv_bn`). With fake quantization disabled, values and gradients are those of ``model``.

    Args:
        model: what ``torch.export.export(...).module()`` returns, of a model in training mode; what is in
            evaluation mode in it (a frozen BatchNorm) stays so. It is not changed.
        quantizer: says what is quantized and how; its presets with ``is_qat=True`` have fake quantizers.
        pipeline: passes to run instead of the backend's own.
        instruments: what looks on while they run, besides the verifier.
        verify: ``"stages"`` checks the rules of each stage after every pass; ``"numeric"`` also runs the
            graph in float64 on ``example_inputs`` and checks that each pass kept its numbers
            (:class:`~lowbit.passes.instruments.VerifyNumeric`), else raises ContractError.
        example_inputs: the arguments of the model; a batch of one or two is enough.
        strict: raise StrictModeError where a LowbitWarning would be given otherwise: of a model of which
            nothing is quantized, of settings that change nothing, of ranges that no kernel here takes.

    Returns:
        A new graph module with parameters of its own, in training mode. Train it, with an optimizer over its
        parameters; :func:`~lowbit.move_exported_model_to_eval` before evaluating it, then ``convert_pt2e``.

    Raises:
        GraphInputError: ``model`` was not exported.
        StageError: ``model`` is prepared or converted already.
        UnsupportedError: the backend has no quantization-aware training.
        AnnotationError, SharingError: the quantizer's annotations do not fit the graph or each other.

    Warns with NothingRoundedWarning when no spec asks for a fake quantizer, as with presets for calibration.
    """
    check_exported(model)
    looking_on = (*instruments, *verification(verify, example_inputs))
    check_quantizer(quantizer)
    backend = _backend_of(quantizer)
    default = PREPARE_QAT if backend is None else backend.prepare_qat
    passes = default if pipeline is None else pipeline
    if passes is None:
        assert backend is not None
        raise UnsupportedError(
            f"the backend {backend.name} has no quantization-aware training",
            hint="quantize the trained model: prepare_pt2e, calibrate, convert_pt2e",
        )
    with warnings_are_errors() if strict else contextlib.nullcontext():
        prepared = _run(model, passes, PassContext(quantizer=quantizer), looking_on)
        warn_if_nothing_rounds(prepared)
    own_tensors(prepared)
    torch.nn.Module.train(prepared, True)
    if backend is not None:
        prepared.meta[BACKEND_KEY] = backend.name
    log_coverage("prepare", prepared)
    return prepared


def convert_pt2e(
    model: GraphModule,
    use_reference_representation: bool = False,
    fold_quantize: bool = True,
    *,
    pipeline: Pipeline | None = None,
    instruments: Sequence[Instrument] = (),
    verify: Verification = "stages",
    example_inputs: Sequence[Any] | None = None,
) -> GraphModule:
    """Replace observers by quantize/dequantize pairs with the parameters they found.

    Args:
        model: a prepared model that was calibrated or trained. It is not changed; the result of a trained one
            is in evaluation mode.
        use_reference_representation: write quantized operators as integer arithmetic, and quantize and
            dequantize in plain operators.
        fold_quantize: store quantized weights; False keeps float weights and quantizes them at every call.
        pipeline: passes to run instead of the backend's own.
        instruments: what looks on while they run, besides the verifier.
        verify: ``"stages"`` checks the rules of each stage after every pass; ``"numeric"`` also runs the
            graph in float64 on ``example_inputs`` and checks that each pass kept its numbers
            (:class:`~lowbit.passes.instruments.VerifyNumeric`), else raises ContractError.
        example_inputs: the arguments of the model; a batch of one or two is enough.

    Returns:
        A new graph module of float operators between quantize/dequantize pairs; with
        ``use_reference_representation`` of integer operators, to read and to compare with, not to lower.

    Raises:
        StageError: ``model`` was not prepared.
        NotCalibratedError: an observer saw no data.
        DeviceError: a tensor is on the meta device.
    """
    check_exported(model)
    check_has_values(model)
    looking_on = (*instruments, *verification(verify, example_inputs))
    name = model.meta.get(BACKEND_KEY)
    default = CONVERT if name is None else get_backend(name).convert
    passes = default if pipeline is None else pipeline
    if not fold_quantize and "fold-quantize" in passes.names:
        passes = passes.without("fold-quantize")
    if use_reference_representation:
        passes = Pipeline((*passes, ReferenceRepresentation()))
    converted = _run(model, passes, PassContext(ledger=ledger_of(model)), looking_on)
    if model.meta.get(QAT_KEY):
        # Training may go on, and writes into what the two would share (biases, running statistics).
        own_tensors(converted)
    log_coverage("convert", converted)
    return converted


def lower_pt2e(
    model: GraphModule,
    backend: str | Backend | None = None,
    *,
    pack_weights: bool = True,
    cpp_wrapper: bool = False,
    pipeline: Pipeline | None = None,
    instruments: Sequence[Instrument] = (),
    verify: Verification = "stages",
    example_inputs: Sequence[Any] | None = None,
    strict: bool = False,
) -> GraphModule:
    """Put a backend's kernels in place of dequantize → operator → quantize.

    No environment variable and no freezing flag is needed: the graph is rewritten here, ahead of compilation.
    The result runs eagerly and under ``torch.compile``.

    Args:
        model: a converted model, also one that was saved with ``torch.export.save`` and loaded again. It is
            not changed.
        backend: a backend or its name; None means the one whose quantizer prepared the model.
        pack_weights: bring weights into the kernels' own layout. Such a model can be neither saved nor
            copied; with False it can, by ``torch.export.export`` and ``torch.export.save``. Loaded elsewhere
            it runs eagerly; to compile there, save the converted model and lower it after loading.
        cpp_wrapper: compile the result when it is first called, with kernels called from C++ instead of
            Python. Unlike ``torch.compile`` this does not look in each call whether tensors of the model were
            changed one by one: other values are right (``load_state_dict``), and so is ``to``; a tensor of
            another shape, dtype or strides set by hand is not noticed, nor is a body whose graph is changed.
        pipeline: passes to run instead of the backend's own.
        instruments: what looks on while they run, besides the verifier.
        verify: ``"stages"`` checks the rules of each stage after every pass; ``"numeric"`` also runs the
            graph in float64 on ``example_inputs`` and checks that each pass kept its numbers
            (:class:`~lowbit.passes.instruments.VerifyNumeric`), else raises ContractError.
        example_inputs: the arguments of the model; a batch of one or two is enough.
        strict: raise StrictModeError where an operator that reads low precision gets no kernel.

    Returns:
        A new graph module that computes in low precision.

    Raises:
        StageError: ``model`` was not converted.
        UnknownNameError: there is no such backend, or none was named and none is recorded.
        UnsupportedError: another program takes converted models of this backend; the hint says which.
        DeviceError: a tensor is on the meta device, or, where weights are packed, not where the kernels run.
    """
    check_exported(model)
    check_has_values(model)
    looking_on = (*instruments, *verification(verify, example_inputs))
    chosen = backend if isinstance(backend, Backend) else _named_backend(model, backend)
    passes = chosen.lower if pipeline is None else pipeline
    if passes is None:
        raise UnsupportedError(
            f"models for {chosen.name} are not lowered here: what convert_pt2e returns is handed over",
            hint=chosen.lowered_by,
        )
    if not pack_weights and "pack-weights" in passes.names:
        passes = passes.without("pack-weights")
    if chosen.device is not None and "pack-weights" in passes.names:
        check_is_on(model, chosen.device, chosen.name)
    context = PassContext(ledger=ledger_of(model), patterns=chosen.patterns, backend=chosen.name)
    lowered = _run(model, passes, context, looking_on)
    log_coverage("lower", lowered, chosen.name)
    if strict:
        check_all_lowered(context.ledger, chosen)
    else:
        warn_if_none_lowered(context.ledger, chosen)
    if cpp_wrapper:
        compile_with_cpp_wrapper(lowered)
    return lowered


def _backend_of(quantizer: Quantizer) -> Backend | None:
    name = getattr(quantizer, "backend_name", None)
    return None if name is None else get_backend(name)


def _named_backend(model: GraphModule, name: str | None) -> Backend:
    name = name or model.meta.get(BACKEND_KEY)
    if name is None:
        raise UnknownNameError(
            "no backend was named, and the model does not say whose quantizer prepared it",
            hint=f"pass backend=…, one of {', '.join(backend_names())}",
        )
    return get_backend(name)


def _run(
    model: GraphModule, pipeline: Pipeline, context: PassContext, instruments: Sequence[Instrument]
) -> GraphModule:
    result = PassManager((Verify(), TraceChanges(), *instruments)).run(model, pipeline, context)
    result.meta[LEDGER_KEY] = context.ledger
    return result
