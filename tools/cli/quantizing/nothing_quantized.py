"""A model of which nothing is quantized, said in the words of the options."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from torch.fx import GraphModule

from ....backends.choosing import best_first, presets_for_calibration
from ....errors import LowbitWarning, NothingQuantizedWarning, StrictModeError
from ....ir.clone import clone_graph_module
from ....ir.stages import Stage, set_stage
from ....passes import Annotate, PassContext, PassManager, Pipeline
from ....quantize_pt2e import coverage, prepare_pt2e
from .options import QuantizeOptions
from .target import Target, find_target, make_quantizer

__all__ = ["told_in_options", "warn_if_nothing_is_quantized"]


@contextmanager
def told_in_options(exported: GraphModule, target: Target, options: QuantizeOptions) -> Generator[None]:
    """Leave out the warning of the pass, which speaks of quantizers; and so does the error of strict mode.

    ``exported`` is the float graph that is prepared for ``target``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingQuantizedWarning)
        try:
            yield
        except StrictModeError as error:
            if not isinstance(error.__cause__, NothingQuantizedWarning):
                raise
            prepared = prepare_pt2e(exported, make_quantizer(target, options.left_float))
            raise StrictModeError(
                f"nothing is quantized for {target.backend.name} with the preset {target.preset}: "
                f"{_why(prepared)}",
                hint=_what_to_try(prepared, target, options),
            ) from error


def warn_if_nothing_is_quantized(prepared: GraphModule, target: Target, options: QuantizeOptions) -> None:
    """Warn with NothingQuantizedWarning, with the reasons and what to try."""
    if coverage(prepared).quantized:
        return
    warnings.warn(
        NothingQuantizedWarning(
            f"nothing is quantized for {target.backend.name} with the preset {target.preset}: "
            f"{_why(prepared)}. To get on: {_what_to_try(prepared, target, options)}."
        ),
        stacklevel=2,
    )


def _why(prepared: GraphModule) -> str:
    found = coverage(prepared)
    reasons = ", ".join(f"{reason} {count}" for reason, count in found.left_float)
    return (
        f"all {found.total} float operators stay float ({reasons})"
        if reasons
        else "it has no float operators"
    )


def _what_to_try(prepared: GraphModule, target: Target, options: QuantizeOptions) -> str:
    left_float = options.left_float
    if left_float and _quantizes(target, (), prepared):
        ways = ["leave --left-float out"]
    else:
        presets = best_first(presets_for_calibration(target.backend))
        # What does not suit this machine is a warning, and so an error.
        names = [preset.name for preset in presets if preset.suits() or not options.strict]
        others = [find_target(target.backend.name, name) for name in names if name != target.preset]
        would = [other.preset for other in others if _quantizes(other, left_float, prepared)]
        ways = [f"take another preset (--preset {', '.join(would)})"] if would else []
    return ", or ".join([*ways, _see(target)])


def _see(target: Target) -> str:
    return f"see lowbit capabilities {target.backend.name} for what it quantizes"


def _quantizes(target: Target, left_float: Iterable[str], prepared: GraphModule) -> bool:
    """Whether anything would be quantized so of a model of which nothing is."""
    # Nothing is annotated, so the graph is what annotation was handed.
    graph = clone_graph_module(prepared)
    set_stage(graph, Stage.FLOAT)
    context = PassContext(quantizer=make_quantizer(target, left_float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowbitWarning)
        PassManager().run(graph, Pipeline((Annotate(),)), context)
    return any(entry.status == "quantized" for entry in context.ledger.entries)
