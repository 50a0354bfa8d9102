"""Replaying the reproducers that :class:`lowbit.passes.instruments.Reproducer` writes, and shrinking them."""

from __future__ import annotations

import importlib
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import attrs
from safetensors.torch import load
from torch.fx import GraphModule

from ...backends.registry import get_backend
from ...errors import GraphInputError, LowbitError
from ...ir.ledger import Ledger
from ...ir.quantizer import Quantizer
from ...ir.text import parse
from ...passes import Pass, PassContext, PassManager, Pipeline
from ...passes.instruments import Verify
from ...passes.instruments.reproduce import write_reproducer
from .cut import cut, names_of
from .delta import smallest, without_chunks

__all__ = ["reduce_reproducer", "replay"]


def replay(path: str | Path, *, quantizer: Quantizer | None = None) -> GraphModule:
    """Run the pass of a reproducer on its graph, and raise what it raises.

    Args:
        path: the file. It is opened as a program is: it may run any code when it is loaded.
        quantizer: where the file does not hold the one that the pass needs.

    Returns:
        The graph behind the pass, where it does not fail.

    Raises:
        GraphInputError: the file is no reproducer, or imports modules that are not here.
        LowbitError: what the pass raised.
    """
    return _read(Path(path), quantizer).run()


def reduce_reproducer(
    path: str | Path, output: str | Path | None = None, *, quantizer: Quantizer | None = None
) -> Path:
    """Shrink the graph of a reproducer to one on which the pass fails in the same way.

    Nodes and outputs are left out as long as it does. "The same way" is the same types of the error and its
    cause, and the same words, whatever nodes and numbers are in them.

    Args:
        path: the file.
        output: where the smaller one goes; ``NAME-reduced.zip`` beside it if None.
        quantizer: as of :func:`replay`.

    Returns:
        ``output``.

    Raises:
        GraphInputError: the pass does not fail.
    """
    path = Path(path)
    reproduction = _read(path, quantizer)
    wanted = reproduction.failure()
    if wanted is None:
        raise GraphInputError(
            f"the pass of {path} does not fail, so there is nothing to shrink",
            hint="it may have been mended since, or need another machine",
        )
    kind = _kind(wanted)

    def fails_alike(names: tuple[str, ...]) -> bool:
        error = attrs.evolve(reproduction, gm=cut(reproduction.gm, frozenset(names))).failure()
        return error is not None and _kind(error) == kind

    kept = smallest(names_of(reproduction.gm), without_chunks, fails_alike)
    smaller = attrs.evolve(reproduction, gm=cut(reproduction.gm, frozenset(kept)))
    error = smaller.failure()
    if error is None or _kind(error) != kind:
        smaller, error = reproduction, wanted  # nothing could be left out
    target = path.with_name(f"{path.stem}-reduced.zip") if output is None else Path(output)
    write_reproducer(target, smaller.gm, smaller.pass_, smaller.context(), error)
    return target


@attrs.frozen(eq=False)
class _Reproduction:
    """What is in a reproducer."""

    gm: GraphModule
    pass_: Pass
    quantizer: Quantizer | None
    backend: str | None

    def context(self) -> PassContext:
        patterns = () if self.backend is None else get_backend(self.backend).patterns
        return PassContext(self.quantizer, Ledger(), patterns, backend=self.backend)

    def run(self) -> GraphModule:
        return PassManager((Verify(),)).run(self.gm, Pipeline((self.pass_,)), self.context())

    def failure(self) -> Exception | None:
        try:
            self.run()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is what is looked for)
            return error
        return None


def _read(path: Path, quantizer: Quantizer | None) -> _Reproduction:
    try:
        with zipfile.ZipFile(path) as file:
            content = {name: file.read(name) for name in file.namelist()}
        about: dict[str, Any] = json.loads(content["about.json"])
        for name in about["imports"]:
            if name != "__main__":
                importlib.import_module(name)
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, ImportError) as error:
        raise GraphInputError(
            f"{path} cannot be replayed: {error}",
            hint="hand in a file of the Reproducer instrument, where the modules that it names can be found",
        ) from error
    if quantizer is None and "quantizer.pickle" in content:
        quantizer = pickle.loads(content["quantizer.pickle"])
    gm = parse(content["graph.lowbit"].decode(), load(content["graph.safetensors"]))
    (pass_,) = Pipeline.parse(about["pipeline"])
    return _Reproduction(gm, pass_, quantizer, about["backend"])


def _kind(error: Exception) -> tuple[str, str, str]:
    """What stays of an error when the graph is another."""
    text = error.found if isinstance(error, LowbitError) else str(error)
    text = re.sub(r" \(and \d+ more\)", "", text)
    return type(error).__name__, type(error.__cause__).__name__, re.sub(r"%[\w.]+|\d+", "_", text)
