"""What is looked at before work begins: whether options go together, and fit the model."""

from __future__ import annotations

from torch.fx import GraphModule

from ....errors import GraphInputError, OptionError
from ....ir.stages import Stage, get_stage
from .files import check_is_folder, check_is_writable
from .float_model import Built
from .options import QuantizeOptions, about_option
from .target import Target

__all__ = ["check_goes_together", "check_is_float", "check_outputs"]


def check_outputs(options: QuantizeOptions) -> None:
    """See that all that is asked for can be written, each to a file of its own.

    Raises:
        OptionError: it cannot.
    """
    for name, path, ending in (
        ("output", options.output, ".pt2"),
        ("package", options.package, ".pt2"),
        ("report", options.report, ""),
    ):
        if path is not None:
            with about_option(name):
                check_is_writable(path, name, ending)
    for name, path in (
        ("save-graphs", options.save_graphs),
        ("diffs", options.diffs),
        ("reproducers", options.reproducers),
    ):
        if path is not None:
            with about_option(name):
                check_is_folder(path, name)
    files = [path for path in (options.output, options.package, options.report) if path is not None]
    if len({path.resolve() for path in files}) < len(files):
        raise OptionError("two outputs have the same path", hint="give each a file of its own")


def check_goes_together(options: QuantizeOptions, target: Target) -> None:
    """See that there are data where the preset needs them, and that a package is of what is compiled here.

    Raises:
        OptionError: there are none, or it is not.
    """
    if target.needs_calibration and options.calibration is None:
        raise OptionError(
            f"the preset {target.preset} of {target.backend.name} needs data to find ranges with",
            hint="give --calibration: a .npz or .pt file, or package.module:function that returns batches",
        )
    if options.package is not None and target.backend.lower is None:
        raise OptionError(
            f"models for {target.backend.name} are not compiled here",
            hint=f"write the converted program with --output; it goes to {target.backend.lowered_by}",
        )


def check_is_float(exported: GraphModule, built: Built) -> None:
    """See that a model is not quantized already.

    Raises:
        GraphInputError: it is.
    """
    stage = get_stage(exported)
    if stage is not Stage.FLOAT:
        raise GraphInputError(
            f"{built.name} is quantized already: its graph is at stage {stage.name}",
            hint="give the float model, or the program that it was exported as",
        )
