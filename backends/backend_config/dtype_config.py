"""The dtypes that a backend takes around an operator, and the bounds that it puts on their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import attrs
import torch

from ...errors import SpecError
from .checks import known_keys

__all__ = ["DTypeConfig", "DTypeWithConstraints"]


def _is_dtype(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, torch.dtype):
        raise SpecError(
            f"{attribute.name} is {value!r}, which is no dtype",
            hint="pass a torch.dtype such as torch.quint8, or None",
        )


@attrs.frozen
class DTypeWithConstraints:
    """A dtype, and what a QConfig must keep to with it; None leaves it free.

    Args:
        dtype: the dtype that values are quantized to.
        quant_min_lower_bound: the smallest quantized value that the backend takes.
        quant_max_upper_bound: the largest.
        scale_min_lower_bound: the smallest scale; compared with the ``eps`` of the QConfig's observer.
        scale_max_upper_bound: the largest scale; kept, but not enforced: no observer promises one.
        scale_exact_match: the scale itself, of operators whose results lie in a known range.
        zero_point_exact_match: the zero point of such operators.

    Raises:
        SpecError: bounds out of order, or one of the two exact matches alone.
    """

    dtype: torch.dtype | None = attrs.field(default=None, validator=_is_dtype)
    quant_min_lower_bound: int | float | None = None
    quant_max_upper_bound: int | float | None = None
    scale_min_lower_bound: int | float | None = None
    scale_max_upper_bound: int | float | None = None
    scale_exact_match: float | None = None
    zero_point_exact_match: int | None = None

    def __attrs_post_init__(self) -> None:
        pairs = (
            ("quant_min_lower_bound", self.quant_min_lower_bound, self.quant_max_upper_bound),
            ("scale_min_lower_bound", self.scale_min_lower_bound, self.scale_max_upper_bound),
        )
        for name, low, high in pairs:
            if low is not None and high is not None and low > high:
                raise SpecError(
                    f"DTypeWithConstraints has {name}={low} above the upper bound {high}",
                    hint="swap the two bounds",
                )
        if (self.scale_exact_match is None) != (self.zero_point_exact_match is None):
            raise SpecError(
                f"DTypeWithConstraints has scale_exact_match={self.scale_exact_match} and "
                f"zero_point_exact_match={self.zero_point_exact_match}",
                hint="fixed parameters are a scale and a zero point: give both, or neither",
            )


def _with_constraints(dtype: object) -> DTypeWithConstraints:
    if isinstance(dtype, DTypeWithConstraints):
        return dtype
    if dtype is None or isinstance(dtype, torch.dtype):
        return DTypeWithConstraints(dtype)
    raise SpecError(
        f"a DTypeConfig has {dtype!r} in place of a dtype",
        hint="pass a torch.dtype, a DTypeWithConstraints or None",
    )


_KEYS: Final = ("input_dtype", "output_dtype", "weight_dtype", "bias_dtype", "is_dynamic")


@attrs.frozen(init=False)
class DTypeConfig:
    """One choice of dtypes for the tensors of an operator; a QConfig is used if it agrees with one of them.

    Of quantize → [dequantize → operator → quantize] → dequantize, ``input_dtype`` is that of the first
    quantize and ``output_dtype`` that of the second; ``torch.float`` puts none there, None says nothing.

    Args:
        input_dtype: of the activations read; with constraints or without.
        output_dtype: of the result; likewise.
        weight_dtype: of the weight; likewise.
        bias_dtype: of the bias: ``torch.float`` or ``torch.float16``.
        is_dynamic: whether the ranges of activations are found at run time.
    """

    input_dtype_with_constraints: DTypeWithConstraints
    output_dtype_with_constraints: DTypeWithConstraints
    weight_dtype_with_constraints: DTypeWithConstraints
    bias_dtype: torch.dtype | None = attrs.field(validator=_is_dtype)
    is_dynamic: bool | None

    def __init__(
        self,
        input_dtype: torch.dtype | DTypeWithConstraints | None = None,
        output_dtype: torch.dtype | DTypeWithConstraints | None = None,
        weight_dtype: torch.dtype | DTypeWithConstraints | None = None,
        bias_dtype: torch.dtype | None = None,
        is_dynamic: bool | None = None,
    ) -> None:
        self.__attrs_init__(  # pyright: ignore[reportAttributeAccessIssue]  (attrs writes it)
            _with_constraints(input_dtype),
            _with_constraints(output_dtype),
            _with_constraints(weight_dtype),
            bias_dtype,
            is_dynamic,
        )

    @property
    def input_dtype(self) -> torch.dtype | None:
        """The dtype of activations read, without its constraints."""
        return self.input_dtype_with_constraints.dtype

    @property
    def output_dtype(self) -> torch.dtype | None:
        """The dtype of the result, without its constraints."""
        return self.output_dtype_with_constraints.dtype

    @property
    def weight_dtype(self) -> torch.dtype | None:
        """The dtype of the weight, without its constraints."""
        return self.weight_dtype_with_constraints.dtype

    @classmethod
    def from_dict(cls, dtype_config_dict: Mapping[str, Any]) -> Self:
        """A config from a dictionary with the arguments of the class, all of them optional.

        Raises:
            UnknownNameError: a key that is none of them.
            SpecError: a value that is no dtype.
        """
        known_keys("a DTypeConfig dictionary", dtype_config_dict, _KEYS)
        return cls(**dtype_config_dict)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary that :meth:`from_dict` takes, without what is not set."""
        values = {
            "input_dtype": self.input_dtype_with_constraints,
            "output_dtype": self.output_dtype_with_constraints,
            "weight_dtype": self.weight_dtype_with_constraints,
            "bias_dtype": self.bias_dtype,
            "is_dynamic": self.is_dynamic,
        }
        not_set = (None, DTypeWithConstraints())
        return {key: value for key, value in values.items() if value not in not_set}
