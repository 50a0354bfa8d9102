"""Replaying the reproducers that :class:`lowbit.passes.instruments.Reproducer` writes, and shrinking them."""

from __future__ import annotations

import importlib
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError
from safetensors.torch import load
from torch.fx import GraphModule

from ...backends.base import Backend
from ...backends.registry import get_backend
from ...errors import GraphInputError, LowbitError
from ...ir.ledger import Ledger
from ...ir.quantizer import Quantizer
from ...ir.text import parse
from ...ir.wording import with_article
from ...matchers.operator_pattern import OperatorPattern
from ...passes import Pass, PassContext, PassManager, Pipeline
from ...passes.instruments import Verify
from ...passes.instruments.reproducer_file import write_reproducer
from .cut import cut, names_of
from .delta import smallest_part

__all__ = ["Reproduction", "read_reproducer", "reduce_reproducer", "replay"]

_log = logging.getLogger("lowbit.tools.bisect")


def replay(path: str | Path, *, quantizer: Quantizer | None = None) -> GraphModule:
    """Run the pass of a reproducer on its graph, and raise what it raises.

    Args:
        path: the file. It is opened as a program is: it may run any code when it is loaded.
        quantizer: where the file does not hold the one that the pass needs.

    Returns:
        The graph behind the pass, where it does not fail.

    Raises:
        GraphInputError: the file is no reproducer, or needs modules, classes or a backend that are not here.
        LowbitError: what the pass raised.
    """
    return _read_and_log(Path(path), quantizer).run()


def reduce_reproducer(
    path: str | Path,
    output: str | Path | None = None,
    *,
    quantizer: Quantizer | None = None,
    on_trial: Callable[[], object] = lambda: None,
) -> Path:
    """Shrink the graph of a reproducer to one on which the pass fails in the same way.

    Nodes and outputs are left out as long as it does. "The same way" is the same types of the error and its
    cause, and the same words, whatever nodes and numbers are in them.

    Args:
        path: the file.
        output: where the smaller one goes; ``NAME-reduced.zip`` beside it if None.
        quantizer: as of :func:`replay`.
        on_trial: called before each trial, of which there are some three a node.

    Returns:
        ``output``.

    Raises:
        GraphInputError: the pass does not fail.
    """
    path = Path(path)
    reproduction = _read_and_log(path, quantizer)
    wanted = reproduction.failure()
    if wanted is None:
        raise GraphInputError(
            f"the pass of {path} does not fail, so there is nothing to shrink",
            hint="it may have been mended since, or need another machine",
        )
    kind = _kind(wanted)

    def fails_alike(names: tuple[str, ...]) -> bool:
        on_trial()
        error = attrs.evolve(reproduction, gm=cut(reproduction.gm, frozenset(names))).failure()
        return error is not None and _kind(error) == kind

    kept = smallest_part(names_of(reproduction.gm), fails_alike)
    smaller = attrs.evolve(reproduction, gm=cut(reproduction.gm, frozenset(kept)))
    error = smaller.failure()
    if error is None or _kind(error) != kind:
        smaller, error = reproduction, wanted  # nothing could be left out
    target = path.with_name(f"{path.stem}-reduced.zip") if output is None else Path(output)
    write_reproducer(target, smaller.gm, smaller.pass_, smaller.context(), error)
    return target


@attrs.frozen(eq=False)
class Reproduction:
    """What is in a reproducer.

    Args:
        gm: the graph before the pass.
        pass_: the pass.
        quantizer: who annotates, if it was needed and could be written.
        patterns: those of the backend.
        backend: name of the backend.
        lacks: what could not be written into the file.
    """

    gm: GraphModule
    pass_: Pass
    quantizer: Quantizer | None
    patterns: tuple[OperatorPattern, ...]
    backend: str | None
    lacks: tuple[str, ...] = ()

    def context(self) -> PassContext:
        """What the pass is handed."""
        return PassContext(self.quantizer, Ledger(), self.patterns, backend=self.backend)

    def run(self) -> GraphModule:
        """The graph behind the pass; raises what the pass raises."""
        return PassManager((Verify(),)).run(self.gm, Pipeline((self.pass_,)), self.context())

    def failure(self) -> Exception | None:
        """What the pass raises, if it does."""
        try:
            self.run()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what is looked for)
            return error
        return None


def _read_and_log(path: Path, quantizer: Quantizer | None) -> Reproduction:
    found = read_reproducer(path, quantizer)
    if found.lacks:
        _log.warning("%s lacks %s", path, "; ".join(found.lacks))
    return found


def read_reproducer(path: Path, quantizer: Quantizer | None = None) -> Reproduction:
    """What is in the reproducer at ``path``; it is opened as a program is.

    Raises:
        GraphInputError: as of :func:`replay`.
    """
    lacks: tuple[str, ...] = ()
    try:
        with zipfile.ZipFile(path) as file:
            content = {name: file.read(name) for name in file.namelist()}
        about: dict[str, Any] = json.loads(content["about.json"])
        lacks = tuple(about["lacks"])
        for name in about["imports"]:
            importlib.import_module(name)
        patterns = _find_patterns(about["patterns"])
        gm = parse(content["graph.lowbit"].decode(), load(content["graph.safetensors"]))
        (pass_,) = Pipeline.parse(about["pipeline"])
    except (
        zipfile.BadZipFile,
        KeyError,
        AttributeError,
        ValueError,
        SafetensorError,
        ImportError,
        LowbitError,
    ) as error:
        found = error.found if isinstance(error, LowbitError) else error
        raise GraphInputError(
            f"{path} cannot be replayed: {found}",
            where=tuple(f"{path} lacks {each}" for each in lacks),
            hint="hand in a file of the Reproducer instrument, where the modules that it names can be found, "
            "and import what else defines its pass and its backend (lowbit replay --import)",
        ) from error
    if quantizer is None and "quantizer.pickle" in content:
        quantizer = _unpickled(path, content["quantizer.pickle"])
    return Reproduction(gm, pass_, quantizer, patterns, about["backend"], lacks)


def _find_patterns(place: str | None) -> tuple[OperatorPattern, ...]:
    """Those of the backend at ``module:ATTRIBUTE``, or of that name."""
    if place is None:
        return ()
    module, _, attribute = place.rpartition(":")
    backend: object = getattr(importlib.import_module(module), attribute) if module else get_backend(place)
    if not isinstance(backend, Backend):
        raise GraphInputError(f"{place} is {with_article(type(backend).__name__)}, not a Backend")
    return backend.patterns


def _unpickled(path: Path, content: bytes) -> Any:
    try:
        return pickle.loads(content)
    except Exception as error:
        raise GraphInputError(
            f"the quantizer in {path} cannot be read: {type(error).__name__}: {error}",
            hint="pass one like it: replay(path, quantizer=…)",
        ) from error


def _kind(error: Exception) -> tuple[str, str, str]:
    """What stays of an error when the graph is another."""
    text = error.found if isinstance(error, LowbitError) else str(error)
    text = re.sub(r" \(and \d+ more\)", "", text)
    return type(error).__name__, type(error.__cause__).__name__, re.sub(r"%[\w.]+|\d+", "_", text)
