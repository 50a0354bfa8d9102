"""The errors and warnings that lowbit raises.

Every error says what was found, where it was found (pass, node, module path and source line of the user's
model, as far as they are known) and what to do about it. Each type is also the built-in type that fits, so
that ``except ValueError`` keeps working.
"""

from __future__ import annotations

__all__ = [
    "AnnotationError",
    "CalibrationDataError",
    "CaptureError",
    "ContractError",
    "DeviceError",
    "DuplicateReasonError",
    "GraphInputError",
    "GraphTextError",
    "IneffectiveSettingWarning",
    "LowbitError",
    "LowbitWarning",
    "MissingDependencyError",
    "NotCalibratedError",
    "NothingLoweredWarning",
    "NothingQuantizedWarning",
    "NothingRoundedWarning",
    "OptionError",
    "PassFailedError",
    "PatternError",
    "PipelineError",
    "RoundedCalibrationWarning",
    "SaturationWarning",
    "SharingError",
    "SpecError",
    "StageError",
    "StrictModeError",
    "UncalibratedBodyWarning",
    "UnknownNameError",
    "UnsupportedError",
]


class LowbitError(Exception):
    """Base of all lowbit errors.

    Args:
        found: what was found, one sentence.
        where: the places it was found at, one line each (node, module path, source line).
        hint: what to do next, one sentence.

    ``pass_name`` is filled in by the pass manager when the error leaves a pass.
    """

    def __init__(self, found: str, *, where: str | tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.where = (where,) if isinstance(where, str) else tuple(where)
        self.hint = hint
        self.pass_name: str | None = None

    def __str__(self) -> str:
        lines = [self.found]
        if self.pass_name is not None:
            lines.append(f"  in pass: {self.pass_name}")
        for place in self.where:
            first, *rest = place.splitlines() or [""]
            lines.append(f"  at: {first}")
            lines.extend(f"      {line}" for line in rest)
        if self.hint:
            lines.append(f"  do: {self.hint}")
        return "\n".join(lines)


class SpecError(LowbitError, ValueError):
    """A quantization spec whose fields contradict each other."""


class AnnotationError(LowbitError, ValueError):
    """An annotation names something that is not in the graph, or that cannot be quantized."""


class SharingError(LowbitError, ValueError):
    """Sharing of quantization parameters that cannot be resolved: a dangling anchor, a cycle, a conflict."""


class GraphInputError(LowbitError, TypeError):
    """The model handed in is not what the verb works on (for example a module that was not exported)."""


class GraphTextError(LowbitError, ValueError):
    """A graph written as text that does not parse, or that names what there is not."""


class DeviceError(LowbitError, ValueError):
    """Tensors on a device where they cannot be worked with: without values, on several, or on another's."""


class StageError(LowbitError, ValueError):
    """A graph is not at the stage that a pass or a verb needs, or breaks the rules of its stage."""


class PipelineError(LowbitError, ValueError):
    """A pipeline whose text does not parse or whose passes do not fit together."""


class StrictModeError(LowbitError, ValueError):
    """In strict mode: what is a warning otherwise, or a line of the ledger that nobody need read."""


class DuplicateReasonError(LowbitError, ValueError):
    """Two backends write one reason code and mean different things."""


class UnknownNameError(LowbitError, KeyError):
    """A name of a pass, backend or module that does not exist; the hint has the nearest ones."""


class OptionError(LowbitError, ValueError):
    """An option of a command, in Python, TOML or on the command line, that makes no sense."""


class PassFailedError(LowbitError, RuntimeError):
    """A pass raised something other than a lowbit error, or reported its change wrongly."""


class ContractError(LowbitError, ArithmeticError):
    """A pass changed numbers by more than its contract allows."""


class PatternError(LowbitError, ValueError):
    """A pattern that cannot be matched by construction (unconnected, several outputs unnamed, …)."""


class CaptureError(LowbitError, RuntimeError):
    """A torch function that could not be captured as a pattern."""


class NotCalibratedError(LowbitError, RuntimeError):
    """Conversion was asked of observers that never saw data."""


class CalibrationDataError(LowbitError, ValueError):
    """Data with NaN or infinity, or of a form the model cannot take, met during calibration.

    ``batch`` is the number of the batch, from 0, that :func:`~lowbit.calibrate` met it in; the first place of
    ``where`` is the same in words. ``input`` and ``index`` say which value of it is at fault, if one is: the
    name of the model's input, and the place in its tensor.
    """

    batch: int | None = None
    input: str = ""
    index: tuple[int, ...] = ()


class MissingDependencyError(LowbitError, ImportError):
    """A package that an optional part of lowbit needs is not installed; the hint names the extra."""


class UnsupportedError(LowbitError, NotImplementedError):
    """Something that lowbit does not do; the hint says what to use instead."""


class LowbitWarning(UserWarning):
    """Base of all lowbit warnings."""


class NothingQuantizedWarning(LowbitWarning):
    """A whole model was prepared and no tensor of it will be quantized."""


class NothingLoweredWarning(LowbitWarning):
    """A model was lowered and none of its operators got a kernel: it computes in float what was rounded."""


class NothingRoundedWarning(LowbitWarning):
    """A model was prepared for quantization-aware training with specs that observe and do not round."""


class IneffectiveSettingWarning(LowbitWarning):
    """A setting of a quantizer or a mapping decided about nothing that could be quantized."""


class RoundedCalibrationWarning(LowbitWarning):
    """A model was prepared for calibration with fake quantizers, which round what they observe."""


class UncalibratedBodyWarning(LowbitWarning):
    """No calibration batch ran a body of ``cond`` or a loop, whose operators stay float therefore."""


class SaturationWarning(LowbitWarning):
    """A model was annotated with ranges that overflow in the int8 kernels of this CPU, which refuse them."""
