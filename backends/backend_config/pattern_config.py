"""How one pattern of operators runs on a backend."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Self

import attrs
from torch import nn

from ...errors import PatternError, SpecError
from .checks import known_keys
from .dtype_config import DTypeConfig

__all__ = ["BackendPatternConfig", "MatchAllNode", "ObservationType", "nested_pattern"]


class MatchAllNode:
    """Stands for an input that may come from anywhere, in nested patterns."""


class ObservationType(enum.Enum):
    """Where the parameters of an operator's result come from."""

    OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT = 0
    """From an observer of its own: the operator computes new values (convolution, softmax)."""
    OUTPUT_SHARE_OBSERVER_WITH_INPUT = 1
    """From the observer of the input: the operator moves or picks values (concatenation, max pooling)."""
    INPUT_OUTPUT_NOT_OBSERVED = 2
    """There are none: the operator asks about a tensor rather than computes with it."""


_PATTERN_KEYS: Final = (
    "pattern",
    "pattern_complex_format",
    "observation_type",
    "dtype_configs",
    "root_module",
    "qat_module",
    "reference_quantized_module_for_root",
    "fused_module",
    "fuser_method",
)
_MODULES: Final = ("root_module", "qat_module", "reference_quantized_module", "fused_module")


@attrs.define(eq=False)
class BackendPatternConfig:
    """How one pattern of operators runs on a backend.

    ::

        BackendPatternConfig((torch.nn.Conv2d, torch.nn.ReLU)).add_dtype_config(weighted_int8_dtype_config)

    A pattern is a module class, a torch function, the name of a tensor method, or a tuple of two or three of
    them that follow one another. A config with a fused module, or a fuser method, says that its pattern is
    run as that module; it is then quantized as the config whose pattern is the fused module says, or without
    a fused module as that of the root module. Any other config says itself how its pattern is quantized.

    What is fused here is the graph: no observer stands between the operators, and BatchNorm is folded into
    the convolution or linear before it. Fused, QAT and reference modules and fuser methods are therefore
    never called: they tell configs apart, and are there for backends that take the config elsewhere.
    """

    pattern: Any = None
    pattern_complex_format: Any = attrs.field(default=None, init=False)
    observation_type: ObservationType = attrs.field(
        default=ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT, init=False
    )
    dtype_configs: list[DTypeConfig] = attrs.field(factory=list[DTypeConfig], init=False)
    root_module: type[nn.Module] | None = attrs.field(default=None, init=False)
    qat_module: type[nn.Module] | None = attrs.field(default=None, init=False)
    reference_quantized_module: type[nn.Module] | None = attrs.field(default=None, init=False)
    fused_module: type[nn.Module] | None = attrs.field(default=None, init=False)
    fuser_method: Callable[..., Any] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if self.pattern is not None:
            self.set_pattern(self.pattern)

    def set_pattern(self, pattern: Any) -> Self:
        """Set the pattern; a tuple is in the order in which its parts run.

        Raises:
            PatternError: it is no pattern, a tuple of another length, or there is a nested one already.
        """
        self._check_single(self.pattern_complex_format)
        if isinstance(pattern, tuple) and len(pattern) not in (2, 3):
            raise PatternError(
                f"the pattern {pattern!r} has {len(pattern)} parts",
                hint="a tuple is of two or three; longer ones are nested (set_pattern_complex_format)",
            )
        for part in pattern if isinstance(pattern, tuple) else (pattern,):
            _check_part(part)
        self.pattern = pattern
        return self

    def set_pattern_complex_format(self, pattern: Any) -> Self:
        """Set a pattern in the nested form: ``(operator, pattern of its first input, …)``.

        ``(torch.add, torch.nn.Conv2d, MatchAllNode)`` is an addition whose first operand is a convolution.

        Raises:
            PatternError: it is no pattern, or there is one already.
        """
        self._check_single(self.pattern)
        _check_nested(pattern)
        self.pattern_complex_format = pattern
        return self

    def _check_single(self, other: Any) -> None:
        if other is not None:
            raise PatternError(
                f"the pattern {other!r} is set already, in the other form",
                hint="a config has one pattern: make another config",
            )

    def set_observation_type(self, observation_type: ObservationType) -> Self:
        """Set where the parameters of the result come from.

        Raises:
            SpecError: ``observation_type`` is no ObservationType.
        """
        if not isinstance(observation_type, ObservationType):
            raise SpecError(
                f"the observation type is {observation_type!r}",
                hint=f"pass one of {', '.join(str(member) for member in ObservationType)}",
            )
        self.observation_type = observation_type
        return self

    def add_dtype_config(self, dtype_config: DTypeConfig) -> Self:
        """Add a choice of dtypes.

        Raises:
            SpecError: ``dtype_config`` is no DTypeConfig.
        """
        return self.set_dtype_configs([*self.dtype_configs, dtype_config])

    def set_dtype_configs(self, dtype_configs: Iterable[DTypeConfig]) -> Self:
        """Set all choices of dtypes, in place of those there were; the first that fits is used.

        Raises:
            SpecError: one is no DTypeConfig.
        """
        configs = list(dtype_configs)
        for config in configs:
            if not isinstance(config, DTypeConfig):
                raise SpecError(f"{config!r} is no DTypeConfig", hint="pass DTypeConfig(input_dtype=…, …)")
        self.dtype_configs = configs
        return self

    def set_root_module(self, root_module: type[nn.Module]) -> Self:
        """Set the module that does the work of the pattern: Linear, of a fused Linear and ReLU.

        It has an effect where a fuser method is set and no fused module is: the config whose pattern is the
        root module then says how the pattern is quantized.
        """
        return self._set_module("root_module", root_module)

    def set_qat_module(self, qat_module: type[nn.Module]) -> Self:
        """Set the module that another program trains with in place of the pattern.

        Kept for such programs, in :meth:`to_dict` too; nothing here is done with it: here the graph is
        trained, with fake quantizers in it.
        """
        return self._set_module("qat_module", qat_module)

    def set_reference_quantized_module(self, reference_quantized_module: type[nn.Module]) -> Self:
        """Set the module that another program puts in place of the root module when it converts.

        Kept for such programs, in :meth:`to_dict` too; nothing here is done with it: here what is converted
        is the operator between quantize and dequantize.
        """
        return self._set_module("reference_quantized_module", reference_quantized_module)

    def set_fused_module(self, fused_module: type[nn.Module]) -> Self:
        """Set the module that the pattern becomes: the pattern of the config that quantizes it."""
        return self._set_module("fused_module", fused_module)

    def _set_module(self, name: str, module: type[nn.Module]) -> Self:
        if not (isinstance(module, type) and issubclass(module, nn.Module)):
            raise SpecError(f"{name} is {module!r}", hint="pass a module class, not an instance")
        setattr(self, name, module)
        return self

    def set_fuser_method(self, fuser_method: Callable[..., Any]) -> Self:
        """Set how another program fuses the modules: ``fuser_method(is_qat, first, second, …)``.

        It is not called here. That there is one says that the pattern is run as its fused module, or without
        that as its root module, whose config says how it is quantized; without such a config it stays float,
        for the reason ``fused-only``.

        Raises:
            SpecError: it cannot be called.
        """
        if not callable(fuser_method):
            raise SpecError(f"the fuser method is {fuser_method!r}", hint="pass a function")
        self.fuser_method = fuser_method
        return self

    @classmethod
    def from_dict(cls, backend_pattern_config_dict: Mapping[str, Any]) -> Self:
        """A config from what :meth:`to_dict` returns; all keys are optional.

        Raises:
            UnknownNameError: a key that there is not.
            SpecError, PatternError: a value that its setter refuses.
        """
        known_keys("a BackendPatternConfig dictionary", backend_pattern_config_dict, _PATTERN_KEYS)
        given = {key: value for key, value in backend_pattern_config_dict.items() if value is not None}
        config = cls()
        config.set_dtype_configs(
            DTypeConfig.from_dict(each) if isinstance(each, Mapping) else each
            for each in given.pop("dtype_configs", ())
        )
        for key, value in given.items():
            getattr(config, f"set_{key.removesuffix('_for_root')}")(value)
        return config

    def to_dict(self) -> dict[str, Any]:
        """What is set, by the keys of :meth:`from_dict`: the names of the fields.

        ``dtype_configs`` is a list of dictionaries. The reference module has the key
        ``reference_quantized_module_for_root``, as in PyTorch.
        """
        values = {
            key: getattr(self, key.removesuffix("_for_root"))
            for key in _PATTERN_KEYS
            if key != "dtype_configs"
        }
        values["dtype_configs"] = [config.to_dict() for config in self.dtype_configs]
        return {key: value for key, value in values.items() if value is not None}


def _check_part(part: object) -> None:
    if part is None or isinstance(part, (tuple, nn.Module)) or not (callable(part) or isinstance(part, str)):
        raise PatternError(
            f"{part!r} is no part of a pattern",
            hint="parts are module classes, torch functions and names of tensor methods",
        )


def _check_nested(pattern: object) -> None:
    if isinstance(pattern, tuple) and pattern:
        _check_part(pattern[0])
        for operand in pattern[1:]:
            _check_nested(operand)
    else:
        _check_part(pattern)


def nested_pattern(config: BackendPatternConfig) -> Any:
    """The pattern of ``config`` in the nested form: ``(relu, conv)`` for the sequence ``(conv, relu)``."""
    if config.pattern_complex_format is not None:
        return config.pattern_complex_format
    if config.pattern is None:
        raise PatternError(
            "a BackendPatternConfig has no pattern", hint="call set_pattern, or pass it to the constructor"
        )
    if not isinstance(config.pattern, tuple):
        return config.pattern
    nested, *rest = config.pattern
    for part in rest:
        nested = (part, nested)
    return nested
