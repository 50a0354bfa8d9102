"""The table of reason codes: every code that is written is in it, and every code in it is written."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import lowbit
import pytest
from lowbit.backends.annotation import mode_code
from lowbit.backends.registry import get_backend
from lowbit.errors import DuplicateReasonError
from lowbit.ir.reasons import REASONS, Reason, register_reasons
from lowbit.matchers.operator_pattern import Mode

ROOT = Path(lowbit.__file__).parent
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
WRITERS = {"missed", "Refusal", "Refused", "NotFoldable", "Miss", "_miss"}
"""What is called with a code first."""
GUARDS = {"str | None", "tuple[str, str]", "tuple[str, str] | None", "tuple[str, Node, str]"}
"""What functions return that return a code, or a code first."""
BACKENDS = ("x86_inductor", "arm_inductor", "xpu_inductor", "xnnpack", "embedding")


def texts(expression: ast.expr) -> Iterator[str]:
    """The texts that ``expression`` may be, the first of a tuple; of an f-string a pattern."""
    match expression:
        case ast.IfExp(body=body, orelse=other):
            yield from texts(body)
            yield from texts(other)
        case ast.Tuple(elts=[first, *_]):
            yield from texts(first)
        case ast.Constant(value=str(text)) if CODE.fullmatch(text):
            yield re.escape(text)
        case ast.JoinedStr(values=values):
            parts = [re.escape(v.value) if isinstance(v, ast.Constant) else "[a-z0-9-]+" for v in values]
            # With a colon it is the place of an object.
            if not any(" " in part or ":" in part for part in parts):
                yield "".join(parts)


def expressions(tree: ast.AST) -> Iterator[ast.expr]:
    """The expressions in ``tree`` that are codes."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[first, *_]):
                if name in WRITERS:
                    yield first
            case ast.FunctionDef(returns=ast.expr() as returns) if ast.unparse(returns) in GUARDS:
                inside = (part for part in ast.walk(node) if isinstance(part, ast.Return))
                yield from (part.value for part in inside if part.value is not None)
            case ast.Assign(targets=[ast.Name(id="reason" | "refusal" | "why")], value=value):
                yield value
            case ast.Assign(targets=[ast.Tuple(elts=[ast.Name(id="reason"), *_])], value=value):
                yield value


def written() -> dict[str, str]:
    """Every code that is written (or a pattern of several), and where."""
    found: dict[str, str] = {}
    for folder in ("ir", "matchers", "passes", "backends"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for text in itertools.chain.from_iterable(map(texts, expressions(tree))):
                found.setdefault(text, str(path.relative_to(ROOT)))
    # Those of modes are put together from the modes of a pattern.
    for name in BACKENDS:
        for pattern in get_backend(name).patterns:
            found.setdefault(mode_code(pattern.modes), name)
    return found


@pytest.fixture(scope="module")
def codes() -> dict[str, str]:
    return written()


def test_the_search_finds_codes_of_every_form(codes: dict[str, str]) -> None:
    plain = {text.replace("\\", "") for text in codes}
    assert {"weight-not-constant", "control-flow-body", "several-users", "not-annotated"} <= plain
    assert {"statistics-read", "in-place-alias", "second-user", "static-only"} <= plain
    assert "not-[a-z0-9-]+-dimensional" in plain
    assert len(codes) > 80


def test_every_code_that_is_written_is_in_the_table(codes: dict[str, str]) -> None:
    unknown = [
        (text, where)
        for text, where in codes.items()
        if not any(re.fullmatch(text, code) for code in REASONS)
    ]
    assert not unknown


def test_every_code_in_the_table_is_written(codes: dict[str, str]) -> None:
    # Compositions of modes that no backend of ours has may be another's.
    modes = {mode_code((mode,)) for mode in Mode}
    unwritten = [
        code for code in REASONS if code not in modes and not any(re.fullmatch(text, code) for text in codes)
    ]
    assert not unwritten


def test_a_code_says_what_it_means_and_what_to_do() -> None:
    for code, reason in REASONS.items():
        assert CODE.fullmatch(code), code
        for sentence in (reason.meaning, reason.advice):
            assert sentence, code
            assert not sentence.endswith("."), code
        assert "--" not in reason.advice, f"{code}: options are for those who use the command"
        assert not re.search(r"set_\w+|reduce_range", reason.in_command or ""), code
        if re.search(r"set_\w+|reduce_range", reason.advice):
            assert "--" in reason.in_command, f"{code}: the command has no such functions"


def test_a_code_means_one_thing() -> None:
    register_reasons({"not-configured": REASONS["not-configured"]})
    with pytest.raises(DuplicateReasonError, match="'not-configured' is there already, and means: no conf"):
        register_reasons({"not-configured": Reason("something else", "nothing")})
    assert REASONS["not-configured"].meaning.startswith("no configuration")
