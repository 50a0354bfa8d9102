"""What ``lowbit quantize`` can be told: the same in Python, in TOML and on the command line."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import attrs

from ....errors import LowbitError, OptionError
from ....passes.registry import unknown_name

__all__ = ["OPTION_NAMES", "QuantizeOptions", "Verification", "about_option", "make_options", "option_of"]

Verification: TypeAlias = Literal["stages", "numeric"]


def _refuse(field: attrs.Attribute[Any], value: object, wanted: str) -> OptionError:
    return OptionError(f"the option {_written(field.name)} is {value!r}", hint=f"it has to be {wanted}")


def _text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and value):
        raise _refuse(field, value, "text")


def _count(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise _refuse(field, value, "a whole number of at least 1")


def _names(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(name, str) and name for name in value):
        raise _refuse(field, value, "a list of module names, such as layer1.0.conv1")


def _verification(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value not in get_args(Verification):
        raise _refuse(field, value, " or ".join(get_args(Verification)))


def _flag(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise _refuse(field, value, "true or false")


def _path(value: str | Path | None) -> Path | None:
    # What is no path goes on to the validator, which says so.
    return Path(value) if isinstance(value, str) and value else value  # pyright: ignore[reportReturnType]


def _is_path(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, Path):
        raise _refuse(field, value, "the path of a file or folder")


def _tuple(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(value)
    return value  # likewise  # pyright: ignore[reportReturnType]


@attrs.frozen(kw_only=True)
class QuantizeOptions:
    """What to quantize, for whom, and what to write.

    Args:
        model: ``package.module:name`` of a function that returns a module in evaluation or training mode
            (evaluation is what it is quantized in), ``(module, example inputs)``, or an ExportedProgram; or
            the path of a ``.pt2`` file that ``torch.export.save`` wrote of the float program.
        backend: name of a backend; None is Inductor's for this CPU.
        preset: name of one of its presets for post-training quantization; None is its static one, which on
            X86 without VNNI has 7 bits.
        calibration: a ``.npz`` or ``.pt`` file, or ``package.module:name`` of batches or of a function that
            returns them (:mod:`~lowbit.tools.cli.quantizing.calibration_data`). Presets that find ranges at
            run time or quantize weights alone need none.
        batch_size: samples in a batch, where the file has single samples and the model takes any number.
        steps: how many batches to take; None takes all.
        left_float: dotted names of modules that stay float.
        verify: ``"numeric"`` also checks in float64 that no pass changes what is computed.
        strict: warnings are errors, and so is an operator that gets no kernel though it was to have one.
        output: file for the converted program, by ``torch.export.save``.
        package: file for the lowered program, compiled by AOTInductor.
        save_graphs: folder for the graph at each stage, for ``lowbit explain``, ``diff`` and ``opt``.
        report: file for the report, one page of HTML.
        diffs: folder for what each pass changed, a file a pass.
        reproducers: folder for what it takes to run a pass again that fails, one file, weights included.

    Raises:
        OptionError: a value of the wrong kind.
    """

    model: str = attrs.field(validator=_text)
    backend: str | None = attrs.field(default=None, validator=_text)
    preset: str | None = attrs.field(default=None, validator=_text)
    calibration: str | None = attrs.field(default=None, validator=_text)
    batch_size: int | None = attrs.field(default=None, validator=_count)
    steps: int | None = attrs.field(default=None, validator=_count)
    left_float: tuple[str, ...] = attrs.field(default=(), converter=_tuple, validator=_names)
    verify: Verification = attrs.field(default="stages", validator=_verification)
    strict: bool = attrs.field(default=False, validator=_flag)
    output: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)
    package: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)
    save_graphs: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)
    report: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)
    diffs: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)
    reproducers: Path | None = attrs.field(default=None, converter=_path, validator=_is_path)


def _written(name: str) -> str:
    return name.replace("_", "-")


OPTION_NAMES: Final = tuple(_written(field.name) for field in attrs.fields(QuantizeOptions))
"""The options as they are written in TOML and, behind ``--``, on the command line."""


def make_options(values: dict[str, Any]) -> QuantizeOptions:
    """Options from values by the names in :data:`OPTION_NAMES`.

    Raises:
        UnknownNameError: a name that is none of them; the hint has the nearest.
        OptionError: a value of the wrong kind, or no model.
    """
    for name in values:
        if name not in OPTION_NAMES:
            raise unknown_name("option", name, OPTION_NAMES)
    if values.get("model") is None:
        raise OptionError(
            "no model was named",
            hint="name package.module:build, which returns a module, or a .pt2 file of a float program",
        )
    return QuantizeOptions(**{name.replace("-", "_"): value for name, value in values.items()})


_ABOUT: Final = "it is about the option "


@contextmanager
def about_option(name: str) -> Generator[None]:
    """Note on lowbit's errors that are raised inside which option they are about: it may be in a file."""
    try:
        yield
    except LowbitError as error:
        error.add_note(_ABOUT + name)
        raise


def option_of(error: LowbitError) -> str | None:
    """The option that an error is about, where :func:`about_option` noted one."""
    notes = (note for note in getattr(error, "__notes__", ()) if note.startswith(_ABOUT))
    return next((note.removeprefix(_ABOUT) for note in notes), None)
