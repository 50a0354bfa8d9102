"""Several quantizers as one, and several backends as one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import attrs
from torch.fx import GraphModule, Node

from ..errors import AnnotationError, GraphInputError, PipelineError, SpecError, UnsupportedError
from ..ir.annotation import QuantizationAnnotation, get_annotation
from ..ir.ledger import Ledger
from ..ir.location import locate
from ..ir.quantizer import Quantizer
from ..passes import Pipeline
from .base import Backend
from .capabilities import Capabilities

__all__ = ["ComposableQuantizer", "compose_backends"]


@runtime_checkable
class _Describes(Protocol):
    def quantization_capabilities(self) -> Capabilities: ...


class ComposableQuantizer(Quantizer):
    """Lets several quantizers annotate one model, one after the other.

    ::

        quantizer = ComposableQuantizer([EmbeddingQuantizer(), X86InductorQuantizer().set_global(config)])

    The order counts: what one has claimed, the next ones leave alone, and they may follow its tensors. One
    that changes what another has annotated is an error that names both.

    Args:
        quantizers: in the order in which they annotate; at least one.

    Raises:
        GraphInputError: there is none, or one is no quantizer.
    """

    def __init__(self, quantizers: Sequence[Quantizer]) -> None:
        # What is composed of composed ones is taken apart: errors are to name who annotates.
        self.quantizers = tuple(
            part for each in quantizers for part in (each.quantizers if _is_composed(each) else (each,))
        )
        if not self.quantizers:
            raise GraphInputError("a ComposableQuantizer of no quantizers", hint="pass at least one")
        for quantizer in self.quantizers:
            if not isinstance(quantizer, Quantizer):
                raise GraphInputError(
                    f"a ComposableQuantizer was given a {type(quantizer).__name__}, not a Quantizer",
                    hint="pass quantizers: X86InductorQuantizer().set_global(…), or your own",
                )

    @property
    def backend_name(self) -> str | None:
        """The backends of its quantizers, joined by ``+``; None where none has one."""
        names = [getattr(quantizer, "backend_name", None) for quantizer in self.quantizers]
        parts = [part for name in names if name for part in name.split("+")]
        return "+".join(dict.fromkeys(parts)) or None

    def quantization_capabilities(self) -> Capabilities:
        """The tables of all its quantizers, in their order.

        Raises:
            UnsupportedError: one has no table.
        """
        cells = []
        for quantizer in self.quantizers:
            if not isinstance(quantizer, _Describes):
                raise UnsupportedError(
                    f"{type(quantizer).__name__} does not say what it can quantize",
                    hint="give it a method quantization_capabilities() → Capabilities",
                )
            cells.extend(quantizer.quantization_capabilities())
        return Capabilities(tuple(dict.fromkeys(cells)))

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Let each transform the model, in order.

        Raises:
            SpecError: some are set up for training, and others for calibration.
        """
        _check_mode(self.quantizers)
        for quantizer in self.quantizers:
            returned = quantizer.transform_for_annotation(model)
            _check_returned(model, returned, quantizer, "transform_for_annotation")
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Let each annotate the model, in order.

        Raises:
            AnnotationError: one changed or took away what another had annotated; all such nodes are listed.
        """
        annotated: dict[Node, tuple[Quantizer, _Copy]] = {}
        for quantizer in self.quantizers:
            # Older quantizers return nothing from annotate; the graph they were handed is what counts.
            _check_returned(model, quantizer.annotate(model), quantizer, "annotate")
            _check_unchanged(annotated, quantizer)
            for node in model.graph.nodes:
                annotation = get_annotation(node)
                if annotation is not None and node not in annotated:
                    annotated[node] = (quantizer, _Copy.of(annotation))
        return model

    def validate(self, model: GraphModule) -> None:
        """Let each validate the model, in order."""
        for quantizer in self.quantizers:
            quantizer.validate(model)

    def bind_ledger(self, ledger: Ledger) -> None:
        """Hand ``ledger`` to all; what one could not quantize, the next may."""
        for quantizer in self.quantizers:
            quantizer.bind_ledger(ledger)


def _is_composed(quantizer: object) -> TypeGuard[ComposableQuantizer]:
    # Of a class derived from it nothing is known.
    return type(quantizer) is ComposableQuantizer


@attrs.frozen
class _Copy:
    """What an annotation said when it was made."""

    inputs: tuple[tuple[Node, object], ...]
    output: object
    allow_implicit_sharing: bool

    @classmethod
    def of(cls, annotation: QuantizationAnnotation) -> _Copy:
        inputs = tuple(annotation.input_qspec_map.items())
        return cls(inputs, annotation.output_qspec, annotation.allow_implicit_sharing)


def _check_mode(quantizers: Sequence[Quantizer]) -> None:
    """One model is trained or calibrated; who is set up for weights alone takes part in both."""
    modes: dict[bool, str] = {}
    for quantizer in quantizers:
        is_qat = getattr(quantizer, "is_qat", None)
        if is_qat is not None:
            modes.setdefault(bool(is_qat), type(quantizer).__name__)
    if len(modes) == 2:
        raise SpecError(
            f"a QAT configuration of {modes[True]} is mixed with a PTQ one of {modes[False]}",
            hint="use one mode for the whole model; None leaves parts of it float",
        )


def _check_returned(
    model: GraphModule, returned: GraphModule | None, quantizer: Quantizer, step: str
) -> None:
    if returned is not model and returned is not None:
        raise AnnotationError(
            f"{type(quantizer).__name__}.{step} returned another module than it was handed",
            hint="change the module in place and return it: it is a working copy already",
        )


def _check_unchanged(annotated: dict[Node, tuple[Quantizer, _Copy]], second: Quantizer) -> None:
    places: list[str] = []
    owners: dict[str, None] = {}
    for node, (first, before) in annotated.items():
        annotation = get_annotation(node)
        if annotation is not None and _Copy.of(annotation) == before:
            continue
        owners[type(first).__name__] = None
        what = "took away the annotation" if annotation is None else "changed the annotation"
        at, *more = locate(node)
        places.append("\n".join([f"{what} that {type(first).__name__} made of {at}", *more]))
    if places:
        raise AnnotationError(
            f"{type(second).__name__} annotates what {' and '.join(owners)} had annotated before it",
            where=tuple(places),
            hint=(
                "put it first, if it is to have the operators; or let it leave alone what is_annotated(node) "
                "says is taken, and mark what it takes with _annotated=True"
            ),
        )


def compose_backends(*backends: Backend) -> Backend:
    """Several backends as one, for models that :class:`ComposableQuantizer` prepared: ``"a+b"``.

    Its patterns are those of all, in their order, of which the first that fits counts. Pipelines must agree;
    of those that lower one may have passes besides all of the other's, which are for kernels of its own.

    Raises:
        PipelineError: two of them cannot work on one model; the message names both.
    """
    # Of each two: what the first leaves open (a device, training) others may disagree about.
    for one, other in itertools.combinations(backends, 2):
        _check_composable(one, other)
    lowered_by = [f"{backend.name}: {backend.lowered_by}" for backend in backends if backend.lowered_by]
    lower = [backend.lower for backend in backends if backend.lower is not None]
    qat = [backend.prepare_qat for backend in backends if backend.prepare_qat is not None]
    devices = dict.fromkeys(backend.device for backend in backends if backend.device is not None)
    architectures = dict.fromkeys(b.architecture for b in backends if b.architecture is not None)
    return Backend(
        name="+".join(backend.name for backend in backends),
        patterns=tuple(pattern for backend in backends for pattern in backend.patterns),
        quantizer=lambda: ComposableQuantizer([backend.quantizer() for backend in backends]),
        prepare=backends[0].prepare,
        convert=backends[0].convert,
        # The longest has the passes of all.
        lower=max(lower, key=len) if len(lower) == len(backends) else None,
        lowered_by="; ".join(lowered_by),
        prepare_qat=next(iter(qat), None),
        device=next(iter(devices), None),
        architecture=next(iter(architectures), None),
        is_available=lambda: all(backend.is_available() for backend in backends),
        checks=lambda: tuple(finding for backend in backends for finding in backend.checks()),
        by_hand=tuple(each for backend in backends for each in backend.by_hand),
        parts=backends,
    )


def _is_part_of(shorter: Pipeline, longer: Pipeline) -> bool:
    """Whether ``longer`` has the passes of ``shorter``, in their order, and perhaps others between them."""
    rest = iter(longer)
    return all(any(pass_ == each for each in rest) for pass_ in shorter)


def _check_composable(first: Backend, other: Backend) -> None:
    for step in ("prepare", "convert", "prepare_qat", "lower"):
        ours, theirs = getattr(first, step), getattr(other, step)
        if ours is None or theirs is None or ours == theirs:
            continue
        if step != "lower" or not _is_part_of(*sorted((ours, theirs), key=len)):
            raise PipelineError(
                f"the backends {first.name} and {other.name} have different {step} pipelines",
                where=(f"{first.name}: {ours}", f"{other.name}: {theirs}"),
                hint=f"pass the one to run: {step}_pt2e(…, pipeline=…)",
            )
    if first.device is not None and other.device is not None and first.device != other.device:
        raise PipelineError(
            f"the backends {first.name} and {other.name} run on different devices: {first.device} and "
            f"{other.device}",
            hint="prepare a model for each device",
        )
    ours, theirs = first.architecture, other.architecture
    if ours is not None and theirs is not None and ours != theirs:
        raise PipelineError(
            f"the backends {first.name} and {other.name} run on different processors: {ours} and {theirs}",
            hint="prepare a model for each machine",
        )
