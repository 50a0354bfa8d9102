"""What a BackendConfig can quantize, as the table that other backends have."""

from __future__ import annotations

import attrs
import torch

from ...ir.specs import storage_dtype
from ...matchers.operator_pattern import Mode
from ..capabilities import Capabilities, Capability
from .dtype_config import DTypeConfig
from .pattern_config import ObservationType
from .rules import Rule, RuleBook

__all__ = ["capabilities_of_rules"]


@attrs.frozen
class _Kind:
    """What configs of dtypes have in common that stand in one column of the table."""

    mode: Mode
    activation: torch.dtype | None
    weight: torch.dtype | None

    @property
    def name(self) -> str:
        """``static-uint8``, ``dynamic-uint8``, ``weight-only-int8``, ``float16-weight``."""
        if self.mode is Mode.HALF_WEIGHT:
            return "float16-weight"
        dtype = self.weight if self.activation is None else self.activation
        return f"{self.mode.value}-{str(dtype).removeprefix('torch.')}"


def capabilities_of_rules(backend: str, book: RuleBook, *, is_qat: bool) -> Capabilities:
    """The table of ``book``: a row a pattern, a column for each way in which a config asks for dtypes.

    A module class and the function of its name (``nn.Conv2d``, ``F.conv2d``) are one row. Constraints on
    ranges and scales are not in the table: the ledger says which of them a QConfig broke.
    """
    table: dict[str, dict[str, DTypeConfig]] = {}
    columns: dict[str, _Kind] = {}
    for rule in (rule for rules in book.ending.values() for rule in rules):
        row = table.setdefault(rule.name, {})
        for config in _quantizing(rule):
            kind = _kind(config)
            if kind is not None:
                columns.setdefault(kind.name, kind)
                row.setdefault(kind.name, config)
    return Capabilities(
        tuple(
            _cell(backend, name, column, columns[column], row.get(column), is_qat=is_qat)
            for name, row in table.items()
            for column in columns
        )
    )


def _quantizing(rule: Rule) -> list[DTypeConfig]:
    config = rule.config
    if config is None or config.observation_type is ObservationType.INPUT_OUTPUT_NOT_OBSERVED:
        return []
    return config.dtype_configs


def _kind(config: DTypeConfig) -> _Kind | None:
    activation, weight = _quantized(config.input_dtype), _quantized(config.weight_dtype)
    if config.is_dynamic and activation is torch.float16:
        # Cast at run time, an activation would be cast back at once.
        activation = None
    if activation is not None:
        return _Kind(Mode.DYNAMIC if config.is_dynamic else Mode.STATIC, activation, None)
    if weight is None:
        return None
    return _Kind(Mode.HALF_WEIGHT if weight is torch.float16 else Mode.WEIGHT_ONLY, None, weight)


def _quantized(dtype: torch.dtype | None) -> torch.dtype | None:
    """What values of a config's ``dtype`` are stored in; None where they stay float, or nothing is said."""
    stored = None if dtype is None else storage_dtype(dtype)
    return None if stored in (torch.float32, torch.float64) else stored


def _cell(
    backend: str, pattern: str, column: str, kind: _Kind, config: DTypeConfig | None, *, is_qat: bool
) -> Capability:
    return Capability(
        backend,
        pattern,
        f"{column}-qat" if is_qat else column,
        kind.mode,
        is_qat,
        supported=config is not None,
        activation=kind.activation if config is not None else None,
        weight=_quantized(config.weight_dtype) if config is not None else None,
        output=_quantized(config.output_dtype) if config is not None else None,
        lowering="handed over",
    )
