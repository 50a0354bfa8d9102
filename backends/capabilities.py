"""What a backend can quantize, as a table: operator patterns × presets, with dtypes and lowering."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs
import torch

from ..ir.specs import QuantizationConfig, storage_dtype
from ..matchers.operator_pattern import Mode, OperatorPattern, Role, Sharing
from .by_hand import ByHand

__all__ = ["Capabilities", "Capability", "Preset", "capabilities_of", "mode_of"]


@attrs.frozen
class Preset:
    """A configuration that a backend has by name.

    Args:
        name: kebab-case, unique in the backend: ``static``, ``dynamic``, ``static-qat``.
        config: makes it.
        suits: whether it is right for this machine. Where nobody chooses, the first that suits is taken.
        unsuited: why it is not where it does not, half a sentence.
    """

    name: str
    config: Callable[[], QuantizationConfig]
    suits: Callable[[], bool] = lambda: True
    unsuited: str = ""


@attrs.frozen
class Capability:
    """One cell of the table: an operator pattern under a preset.

    Args:
        backend: the backend's name.
        pattern: the operator pattern's name.
        preset: the preset's name.
        mode: what of an operator the preset has in low precision.
        is_qat: whether the preset is for training.
        supported: whether the pattern is quantized under the preset.
        activation: dtype of activations, None where they stay float.
        weight: dtype of the weight, None where there is none or it stays float.
        output: dtype that the result is written in: always, or where its readers want it; None for float.
        lowering: the kernel that runs it, or who does.
    """

    backend: str
    pattern: str
    preset: str
    mode: Mode
    is_qat: bool
    supported: bool
    activation: torch.dtype | None
    weight: torch.dtype | None
    output: torch.dtype | None
    lowering: str

    @property
    def dtypes(self) -> str:
        """The dtypes as text: ``uint8 by int8 → uint8``."""
        if not self.supported:
            return "float"
        sides = [_name(self.activation) if self.mode in (Mode.STATIC, Mode.DYNAMIC) else "float32"]
        if self.weight is not None:
            sides.append(_name(self.weight))
        return f"{' by '.join(sides)} → {_name(self.output)}"


@attrs.frozen
class Capabilities:
    """A table of capabilities; ``str()`` of it is the table as text, a row a pattern."""

    cells: tuple[Capability, ...]

    def __iter__(self) -> Iterator[Capability]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def markdown(self) -> str:
        """The table in Markdown."""
        first, *rest = self.rows()
        lines = [first, ["---"] * len(first), *rest]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rows(self) -> list[list[str]]:
        """The table as text cells: a heading, then a row a pattern with a column a preset."""
        presets = list(dict.fromkeys(cell.preset for cell in self.cells))
        table: dict[tuple[str, str, str], dict[str, str]] = {}
        for cell in self.cells:
            row = table.setdefault((cell.backend, cell.pattern, cell.lowering), {})
            row[cell.preset] = cell.dtypes
        heading = ["backend", "pattern", *presets, "runs as"]
        return [
            heading,
            *(
                [backend, pattern, *(dtypes.get(preset, "") for preset in presets), lowering]
                for (backend, pattern, lowering), dtypes in table.items()
            ),
        ]


def capabilities_of(
    backend: str, patterns: Iterable[OperatorPattern | ByHand], presets: Iterable[Preset], *, is_lowered: bool
) -> Capabilities:
    """The table of a backend; ``is_lowered`` where its models are lowered here."""
    configs = [(preset.name, preset.config()) for preset in presets]
    return Capabilities(
        tuple(
            _cell(backend, pattern, preset, config, is_lowered=is_lowered)
            for pattern in patterns
            for preset, config in configs
        )
    )


def mode_of(config: QuantizationConfig) -> Mode:
    """What of an operator ``config`` has in low precision."""
    activation, weight = config.input_activation, config.weight
    if activation is not None:
        return Mode.DYNAMIC if activation.is_dynamic else Mode.STATIC
    if weight is None:
        return Mode.STATIC
    return Mode.HALF_WEIGHT if weight.dtype is torch.float16 else Mode.WEIGHT_ONLY


def _cell(
    backend: str,
    pattern: OperatorPattern | ByHand,
    preset: str,
    config: QuantizationConfig,
    *,
    is_lowered: bool,
) -> Capability:
    mode = mode_of(config)
    supported = mode in pattern.modes
    activation, weight, output = config.input_activation, config.weight, config.output_activation
    kernel, has_weight = None, False
    if isinstance(pattern, ByHand):
        output = None
    else:
        kernel, has_weight = pattern.kernel, Role.WEIGHT in pattern.roles
        if pattern.sharing is Sharing.SAME_AS_INPUT:
            output = activation
    lowering = kernel.name if kernel is not None else "the compiler" if is_lowered else "handed over"
    return Capability(
        backend,
        pattern.name,
        preset,
        mode,
        config.is_qat,
        supported,
        activation=storage_dtype(activation.dtype) if supported and activation else None,
        weight=storage_dtype(weight.dtype) if supported and has_weight and weight else None,
        output=storage_dtype(output.dtype) if supported and output else None,
        lowering=lowering,
    )


def _name(dtype: torch.dtype | None) -> str:
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")
