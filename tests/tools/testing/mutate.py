"""Runs the mutation zoo: ``python tests/tools/testing/mutate.py [WORDS]`` seeds the faults of those names.

A fault is caught when a law of the kit breaks that holds without it. Fails where fewer than 95 % are, or
where a defect of the peer is found by another law than its table names.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import sys
import textwrap
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import torch
from lowbit import Stage
from lowbit.backends.registry import get_backend
from lowbit.passes import pass_class
from lowbit.tools.testing import laws
from lowbit.tools.testing.subjects import forget

sys.path.insert(0, str(Path(__file__).parent))

from peer import DEFECTS
from zoo import ZOO, Mutant

CHEAP: Final = tuple(law for law in laws.LAWS if law not in laws.COSTLY)
WANTED: Final = 0.95
EXAMPLES: Final = 200
TRAINING: Final = {"fuse-conv-bn-qat", "insert-fake-quantizers", "fold-conv-bn-qat"}
LOWERING: Final = {"emit-inductor", "merge-parallel-linears", "linears-to-convolutions", "pack-weights"}


def find(path: str) -> types.FunctionType:
    """The function at ``module:qualified.name``."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(f"lowbit.{module}")
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
    found = inspect.unwrap(found)
    assert isinstance(found, types.FunctionType), path
    return found


def mutated(name: str, function: types.FunctionType, old: str, new: str) -> types.CodeType:
    """The code of ``function`` with ``new`` in place of ``old``, for the mutant ``name``."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name}: {source.count(old)} times {old!r}"
    tree = ast.parse(source.replace(old, new))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list.clear()
    definition.returns = None
    for argument in ast.walk(definition.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    module = compile(tree, f"<{name}>", "exec", dont_inherit=True)
    # Every reference to the function keeps it; only what it does is another.
    (code,) = [
        c for c in module.co_consts if isinstance(c, types.CodeType) and c.co_name == function.__name__
    ]
    assert code.co_freevars == function.__code__.co_freevars, name
    return code


def changes(mutant: Mutant) -> list[tuple[types.FunctionType, types.CodeType]]:
    """The functions that ``mutant`` changes, and what they become."""
    edits = ((mutant.function, mutant.old, mutant.new), *mutant.also)
    functions = [(find(path), old, new) for path, old, new in edits]
    return [(function, mutated(mutant.name, function, old, new)) for function, old, new in functions]


@contextlib.contextmanager
def seeded(mutant: Mutant) -> Iterator[None]:
    """With the fault in place."""
    new = changes(mutant)
    before = [function.__code__ for function, _ in new]
    for function, code in new:
        function.__code__ = code
    forget()
    try:
        yield
    finally:
        for (function, _), code in zip(new, before, strict=True):
            function.__code__ = code
        forget()


def quantizer_of(name: str) -> Any:
    """The quantizer of a backend; with 7 bits where some CPUs have kernels for no more."""
    backend = get_backend(name)
    presets = {preset.name: preset for preset in backend.presets}
    quantizer: Any = backend.quantizer()
    return quantizer.set_global(presets.get("static-7-bit", presets["static"]).config())


def caught_by(mutant: Mutant) -> laws.LawBroken | None:
    """The law that breaks, None if none does."""
    with seeded(mutant):
        for name in mutant.passes:
            options: dict[str, Any] = {"is_training": name in TRAINING}
            if name in LOWERING:
                options["backend"] = get_backend("x86_inductor")
            if mutant.quantizer:
                options["quantizer"] = quantizer_of(mutant.quantizer)
            if mutant.stage:
                options["stage"] = Stage[mutant.stage]
            pass_ = pass_class(name)()
            # As many as in the tests of the laws.
            is_float = Stage.FLOAT in pass_.requires and not (mutant.quantizer or mutant.stage)
            examples = EXAMPLES * 3 if is_float else EXAMPLES
            for chosen, count in ((CHEAP, examples), (laws.COSTLY, EXAMPLES // 20)):
                try:
                    laws.check(pass_, examples=count, max_steps=4, laws=chosen, shrinks=False, **options)
                except laws.LawBroken as error:
                    return error
    return None


def main(words: list[str]) -> int:
    """Seed, count, report."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = [m for m in ZOO if not words or any(word in m.name for word in words)]
    for mutant in chosen:
        changes(mutant)  # the text that it changes is still there
    missed: list[Mutant] = []
    others: list[Mutant] = []
    expected = {name: law for defect in DEFECTS for name, law in defect.mutants.items()}
    for mutant in chosen:
        started = time.perf_counter()
        broken = caught_by(mutant)
        if broken is None:
            missed.append(mutant)
        elif broken.law != expected.get(mutant.name, broken.law):
            others.append(mutant)
        seconds = time.perf_counter() - started
        peer = " (of the peer)" if mutant.name in expected else ""
        report = "MISSED" if broken is None else str(broken).splitlines()[0]
        click.echo(f"{mutant.name}{peer}: {report}  [{seconds:.1f} s]")
    for mutant in others:
        click.echo(f"{mutant.name}: not by the law {expected[mutant.name]}, as the table of the peer has it")
    share = 1 - len(missed) / len(chosen)
    click.echo(f"\n{len(chosen) - len(missed)} of {len(chosen)} faults caught, {share:.1%}")
    of_peer = [m for m in missed if m.name in expected]
    return 0 if share >= WANTED and not others and not of_peer else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
