"""What passes on a saved graph are run for: a backend, its quantizer, its patterns."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch.fx import GraphModule

from ...backends.registry import get_backend
from ...errors import OptionError
from ...ir.meta import BACKEND_KEY
from ...ir.quantizer import Quantizer
from ...matchers.operator_pattern import OperatorPattern
from ...passes import Pipeline
from .quantizing.target import check_left_float, find_target, make_quantizer

__all__ = ["PassTarget", "find_pass_target", "refuse_without_effect"]


@attrs.frozen(eq=False)
class PassTarget:
    """For whom passes are run.

    Args:
        backend: name of the backend, None where neither the command nor the graph names one.
        quantizer: who annotates; None where no pass of the pipeline does.
        patterns: what the backend can run.
        notes: what to say about the choice.
    """

    backend: str | None
    quantizer: Quantizer | None
    patterns: tuple[OperatorPattern, ...]
    notes: tuple[str, ...] = ()


def find_pass_target(
    gm: GraphModule,
    passes: Pipeline,
    backend: str | None,
    preset: str | None,
    left_float: tuple[str, ...] = (),
) -> PassTarget:
    """The backend of this name, that of the graph, or, for ``annotate``, that of this machine.

    Raises:
        UnknownNameError, OptionError: as of :func:`find_target`; or nothing annotates, and there are options
            for who does.
    """
    name = backend or gm.meta.get(BACKEND_KEY)
    if "annotate" not in passes.names:
        refuse_without_effect(
            {"preset": preset, "left-float": left_float}, "the pipeline does not have the pass annotate"
        )
        return PassTarget(name, None, () if name is None else get_backend(name).patterns)
    target = find_target(name, preset)
    check_left_float(gm, left_float, target.backend)
    quantizer = make_quantizer(target, left_float)
    return PassTarget(target.backend.name, quantizer, target.backend.patterns, target.notes)


def refuse_without_effect(options: Mapping[str, object], why: str) -> None:
    """Refuse options that would do nothing.

    Args:
        options: values by the names of the options; None or empty where they were not given.
        why: why they would do nothing.

    Raises:
        OptionError: one of them was given.
    """
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        has = "has" if len(given) == 1 else "have"
        raise OptionError(f"{' and '.join(given)} {has} no effect: {why}", hint="leave it out")
