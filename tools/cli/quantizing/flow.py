"""``quantize``: from a model by its name to files, as options say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import attrs
import torch
from rich.progress import Progress
from torch.fx import GraphModule

from ....ir.coverage import Coverage
from ....ir.ledger import Decision
from ....passes.instruments import DiffToFolder, Instrument, Reproducer
from ....quantize_pt2e import calibrate, convert_pt2e, coverage, decisions, lower_pt2e, prepare_pt2e
from ...report import Report, write_report
from .batches import batches_for, told_in_the_data
from .calibration_data import Data, FirstBatch, find_data, first_batch
from .checks import check_goes_together, check_is_float, check_outputs
from .files import written_whole
from .float_model import Built, export, find_model
from .model_inputs import ModelInputs, inputs_of
from .nothing_quantized import told_in_options, warn_if_nothing_is_quantized
from .options import QuantizeOptions, Verification, about_option
from .outputs import save_graphs, save_package, save_program, weight_bytes
from .target import Target, check_left_float, find_target, make_quantizer
from .watch import Watch

__all__ = ["QuantizeResult", "quantize"]


@attrs.frozen(eq=False)
class QuantizeResult:
    """What came of it.

    Args:
        backend: name of the backend.
        preset: name of the preset.
        exported: the float graph.
        prepared: with observers, calibrated.
        converted: with quantize and dequantize operators.
        lowered: with the backend's kernels; None where another program takes converted models.
        files: what was written, by the name of the option that asked for it.
        notes: what was chosen or left out that was not asked for, a sentence each.
    """

    backend: str
    preset: str
    exported: GraphModule
    prepared: GraphModule
    converted: GraphModule
    lowered: GraphModule | None
    files: dict[str, Path]
    notes: tuple[str, ...]

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What became of each float operator, in the end."""
        return decisions(self.final)

    @property
    def coverage(self) -> Coverage:
        """How many of them are in low precision, and why not the rest."""
        return coverage(self.final)

    @property
    def final(self) -> GraphModule:
        """The graph that went furthest."""
        return self.converted if self.lowered is None else self.lowered

    @property
    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of the tensors of the float model and of the converted one."""
        return weight_bytes(self.exported), weight_bytes(self.converted)


def quantize(options: QuantizeOptions, *, progress: Progress | None = None) -> QuantizeResult:
    """Export a model, prepare and calibrate it, convert and lower it, and write what is asked for.

    ::

        quantize(QuantizeOptions(model="my_model:build", calibration="data.npz", output="int8.pt2"))

    The verbs of :mod:`lowbit.quantize_pt2e` do the same with objects instead of names. Files are written when
    all went well, each whole or not at all; those of ``diffs`` as passes run.

    Args:
        options: what to do.
        progress: told of each step.

    Raises:
        OptionError, UnknownNameError: options that name what there is not, or do not fit together.
        CalibrationDataError: data that do not fit the model.
        GraphInputError: a model that torch.export cannot export.
        LowbitError: what the verbs raise.
        Exception: what the user's model or data raised.

    Warns with NothingQuantizedWarning where nothing is quantized; that is a StrictModeError with ``strict``.
    """
    check_outputs(options)
    build, load, target = _find(options)
    watch = Watch(progress or Progress(disable=True))
    notes = [*target.notes]

    with watch.step("building the model"):
        built = build()
    data = None
    if load is not None:
        with watch.step("loading calibration data"):
            data = load()
    with watch.step("exporting"):
        exported, found = export(built, _batch_for_export(built, data, options.batch_size))
    notes += found
    with about_option("model"):
        check_is_float(exported, built)
    with about_option("left-float"):
        check_left_float(exported, options.left_float, target.backend)
    inputs = inputs_of(exported)
    if options.output or options.package:
        notes += _fixed_batch(exported)
    fed = None
    if data is not None:
        fed = batches_for(inputs, data, batch_size=options.batch_size, steps=options.steps)
        notes += fed.notes
    first = None if fed is None else next(fed.batches)
    example = _example(inputs, first, built)

    report = Report()
    instruments: list[Instrument] = [report] if options.report else []
    instruments += [DiffToFolder(options.diffs)] if options.diffs else []
    instruments += [Reproducer(options.reproducers)] if options.reproducers else []
    checks: _Checks = {"verify": options.verify, "example_inputs": example}
    quantizer, backend = make_quantizer(target, options.left_float), target.backend
    with watch.passes("preparing", backend.prepare) as each, told_in_options(exported, target, options):
        prepared = prepare_pt2e(
            exported, quantizer, instruments=(*instruments, each), strict=options.strict, **checks
        )
    warn_if_nothing_is_quantized(prepared, target, options)
    if target.needs_calibration and fed is not None:
        taken = itertools.chain((first,), fed.batches)
        with watch.step("calibrating", fed.count) as advance, told_in_the_data(fed.place):
            calibrate(prepared, _counted(taken, advance), progress=False)
    elif fed is not None:
        notes.append(
            f"the preset {target.preset} calibrates nothing, so of the data only the shapes were used"
        )
    with watch.passes("converting", backend.convert) as each:
        converted = convert_pt2e(prepared, instruments=(*instruments, each), **checks)
    lowered = None
    if backend.lower is not None:
        with watch.passes("lowering", backend.lower) as each:
            lowered = lower_pt2e(
                converted,
                backend,
                pack_weights=False,
                instruments=(*instruments, each),
                strict=options.strict,
                **checks,
            )

    result = QuantizeResult(
        backend.name, target.preset, exported, prepared, converted, lowered, {}, tuple(notes)
    )
    _write(result, options, report, example, watch)
    return result


def _find(
    options: QuantizeOptions,
) -> tuple[Callable[[], Built], Callable[[], Data] | None, Target]:
    """What builds the model, what loads the data, and for whom they are."""
    # The user's modules first: importing them may register a backend.
    with about_option("model"):
        build = find_model(options.model)
    with about_option("calibration"):
        load = None if options.calibration is None else find_data(options.calibration)
    target = find_target(options.backend, options.preset)
    check_goes_together(options, target)
    return build, load, target


class _Checks(TypedDict):
    verify: Verification
    example_inputs: Sequence[Any] | None


def _fixed_batch(exported: GraphModule) -> list[str]:
    """A note where what is written takes batches of one size only."""
    values = [node.meta.get("val") for node in exported.graph.find_nodes(op="placeholder")]
    firsts = [v.shape[0] for v in values if isinstance(v, torch.Tensor) and v.ndim > 0]
    sizes = {size for size in firsts if isinstance(size, int)}
    if len(sizes) != 1 or len(firsts) != sum(isinstance(size, int) for size in firsts):
        return []
    return [
        f"what is written takes batches of {sizes.pop()} alone, as exported. For any size let the function "
        "return torch.export.export(model, inputs, dynamic_shapes=…)"
    ]


def _batch_for_export(built: Built, data: Data | None, batch_size: int | None) -> FirstBatch | None:
    return first_batch(data, batch_size) if built.example is None and data is not None else None


def _example(inputs: ModelInputs, first: Any, built: Built) -> tuple[Any, ...] | None:
    """Arguments in the order of the graph's inputs: of real data if there are any."""
    if first is not None and (inputs.values or isinstance(first, (tuple, list))):
        return tuple(first.values() if isinstance(first, dict) else first)
    if built.example is None:
        return None
    args, kwargs = built.example
    return (*args, *kwargs.values())


def _counted(batches: Iterable[Any], advance: Callable[[], None]) -> Iterator[Any]:
    for batch in batches:
        yield batch
        advance()


def _write(
    result: QuantizeResult,
    options: QuantizeOptions,
    report: Report,
    example: tuple[Any, ...] | None,
    watch: Watch,
) -> None:
    if options.output is not None:
        with watch.step(f"writing {options.output}"):
            save_program(result.converted, options.output)
        result.files["output"] = options.output
    if options.package is not None and result.lowered is not None:
        with watch.step(f"compiling {options.package}"):
            save_package(result.lowered, options.package)
        result.files["package"] = options.package
    if options.save_graphs is not None:
        graphs = {
            "float": result.exported,
            "prepared": result.prepared,
            "converted": result.converted,
            "lowered": result.lowered,
        }
        with watch.step(f"writing {options.save_graphs}"):
            save_graphs({name: gm for name, gm in graphs.items() if gm is not None}, options.save_graphs)
        result.files["save-graphs"] = options.save_graphs
    if options.report is not None:
        with watch.step(f"writing {options.report}"), written_whole(options.report) as draft:
            write_report(draft, report, title=options.model, inputs=example)
        result.files["report"] = options.report
    if options.diffs is not None:
        result.files["diffs"] = options.diffs
