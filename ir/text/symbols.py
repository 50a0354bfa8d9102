"""Symbolic sizes: sympy expressions written as arithmetic, and read into a shape environment of their own.

What torch calls a ``SymInt`` is an expression of symbols in a ``ShapeEnv``, which knows the range of each
symbol and the value it had in the example inputs. Both are kept; what was proved of the symbols while tracing
is not, since the graph holds the checks that matter at run time.

sympy's own parser evaluates Python, so expressions are written in a grammar of ours. This is the one module
that uses ``torch.utils._sympy``; ``tests/ir/text/test_symbols.py`` says when it moves.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import attrs
import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy import functions, numbers
from torch.utils._sympy.value_ranges import ValueRanges

from ...errors import UnsupportedError
from .syntax import Source
from .trees import Call, Literal, Name, Operation, Tree

__all__ = ["Interval", "Symbol", "SymbolReader", "SymbolWriter", "SymbolicNumber", "read_end", "write_end"]

Interval = ValueRanges
SymbolicNumber = (torch.SymInt, torch.SymFloat, torch.SymBool)

_FUNCTIONS: Final[dict[str, Any]] = {
    **{name: getattr(functions, name) for name in functions.__all__},
    **{kind.__name__: kind for kind in (functions.Max, functions.Min, sympy.Abs, sympy.And, sympy.Or)},
    **{
        kind.__name__: kind
        for kind in (
            *(sympy.Not, sympy.Eq, sympy.Ne, sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge),
            *(sympy.Rational, sympy.Float),
        )
    },
}
_OPERATORS: Final[dict[str, Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "**": operator.pow,
    "//": functions.FloorDiv,
}
_INFIX: Final = ((sympy.Mul, 2, " * "), (functions.FloorDiv, 2, " // "), (sympy.Pow, 3, " ** "))
_HIGHEST: Final = 4
_ENDS: Final = {
    "int_oo": numbers.int_oo,
    "minus_int_oo": -numbers.int_oo,
    "oo": sympy.oo,
    "minus_oo": -sympy.oo,
}
_ASSUMPTIONS: Final = ("integer", "positive", "nonnegative", "real")


@attrs.frozen
class Symbol:
    """A symbol as it is written.

    Args:
        name: ``s0`` for a size of an input, ``u0`` for one that data decide.
        assumptions: what sympy takes it to be ("integer", "positive").
        lower: the smallest value, or ``-int_oo``.
        upper: the largest, or ``int_oo``.
        hint: the value it had in the example inputs.
        is_size: whether torch takes it as a size that is not 0 or 1.
    """

    name: str
    assumptions: tuple[str, ...]
    lower: Any
    upper: Any
    hint: int | float | None
    is_size: bool


class SymbolWriter:
    """Writes expressions, and notes the symbols in them."""

    def __init__(self) -> None:
        self._environments: dict[sympy.Symbol, ShapeEnv | None] = {}

    def size(self, value: Any) -> str:
        """The text of a dimension: an ``int``, or a SymInt (SymFloat, SymBool) as an expression."""
        if not isinstance(value, SymbolicNumber):
            return repr(value)
        expression = value.node.expr
        for symbol in expression.free_symbols:
            self._environments[symbol] = value.node.shape_env
        return self.expression(expression)

    def number(self, value: Any) -> str:
        """The text of a SymInt (SymFloat, SymBool) by itself: a plain number where it is constant."""
        expression = value.node.expr
        if expression.free_symbols:
            return f"sym[{self.size(value)}]"
        return repr(value.node.pytype(expression))

    def symbol(self, symbol: sympy.Symbol) -> str:
        """The text of a symbol by itself, which does not know its environment."""
        self._environments.setdefault(symbol, None)
        return str(symbol)

    def expression(self, e: Any, precedence: int = 0) -> str:
        """The text of a sympy expression, in parentheses where it stands in one of higher precedence."""
        if e.is_Symbol or isinstance(e, sympy.logic.boolalg.BooleanAtom):
            return str(e)
        if e.is_Integer:
            return str(int(e))
        own, text = _infix(e, self)
        return f"({text})" if own < precedence else text

    def symbols(self) -> list[Symbol]:
        """The symbols met so far, in the order of their names."""
        return [
            _describe(symbol, self._environments[symbol])
            for symbol in sorted(self._environments, key=lambda s: (s.name[:1], len(s.name), s.name))
        ]


def _infix(e: Any, write: SymbolWriter) -> tuple[int, str]:
    """The precedence of an expression's operator, and the expression."""
    if e.is_Add:
        return 1, " + ".join(write.expression(term, 1) for term in e.as_ordered_terms())
    for kind, precedence, sign in _INFIX:
        if isinstance(e, kind):
            return precedence, sign.join(write.expression(part, precedence + 1) for part in e.args)
    return _HIGHEST, _call(e, write)


def _call(e: Any, write: SymbolWriter) -> str:
    if e.is_Rational:
        return f"Rational({e.p}, {e.q})"
    if e.is_Float:
        return f"Float({float(e)!r})"
    name = type(e).__name__
    if _FUNCTIONS.get(name) is not type(e):
        raise UnsupportedError(
            f"a symbolic size is {e}, and there is no text for {name} in it",
            hint="export the model with fewer dynamic dimensions, or with static ones",
        )
    return f"{name}({', '.join(write.expression(a) for a in e.args)})"


def _describe(symbol: sympy.Symbol, environment: ShapeEnv | None) -> Symbol:
    environment = ShapeEnv() if environment is None else environment
    interval = environment.var_to_range.get(symbol)
    hint = environment.backed_var_to_val.get(symbol)
    return Symbol(
        name=symbol.name,
        assumptions=tuple(a for a in _ASSUMPTIONS if symbol._assumptions_orig.get(a)),
        lower=None if interval is None else interval.lower,
        upper=None if interval is None else interval.upper,
        hint=None if hint is None else float(hint) if hint.is_Float else int(hint),
        is_size=symbol in environment.size_like,
    )


class SymbolReader:
    """Makes the symbols of a text anew, in one shape environment with one fake mode."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._symbols: dict[str, sympy.Symbol] = {}
        self.environment = ShapeEnv()
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=self.environment)

    def declare(self, symbol: Symbol, at: int) -> None:
        """Make ``symbol``, which is declared at character ``at``."""
        if symbol.name in self._symbols:
            raise self._source.error(at, f"symbol {symbol.name} is declared twice", "declare it once")
        made = sympy.Symbol(symbol.name, **dict.fromkeys(symbol.assumptions, True))
        self._symbols[symbol.name] = made
        if symbol.hint is not None:
            self.environment.add_backed_var_to_val(made, symbol.hint)  # pyright: ignore[reportArgumentType]
        if symbol.lower is not None:
            self.environment.constrain_symbol_range(
                made, compiler_min=symbol.lower, compiler_max=symbol.upper
            )
        if symbol.is_size:
            self.environment.size_like.add(made)

    def symbol(self, name: str, at: int) -> sympy.Symbol:
        """The symbol of that name."""
        if name not in self._symbols:
            raise self._source.error(at, f"there is no symbol {name}", "declare it in the section symbols")
        return self._symbols[name]

    def size(self, tree: Tree) -> Any:
        """The int, or the SymInt (SymFloat, SymBool), that ``tree`` says."""
        if isinstance(tree, Literal):
            return tree.value
        expression = self.expression(tree)
        if expression.is_Boolean or expression.is_Relational:
            return self.environment.create_symboolnode(expression)
        if expression.is_number:
            return int(expression) if expression.is_integer else float(expression)
        if expression.is_integer is False:
            return self.environment.create_symfloatnode(expression, hint=None)
        return self.environment.create_symintnode(expression, hint=None)

    def expression(self, tree: Tree) -> Any:
        """The sympy expression that ``tree`` says."""
        match tree:
            case Literal(value=bool() as value):
                return sympy.true if value else sympy.false
            case Literal(value=int() | float() as value):
                return sympy.sympify(value)
            case Name():
                return self.symbol(tree.name, tree.at)
            case Operation():
                return _OPERATORS[tree.operator](self.expression(tree.left), self.expression(tree.right))
            case Call() if tree.name in _FUNCTIONS:
                return _FUNCTIONS[tree.name](*map(self.expression, tree.args))
            case _:
                raise self._source.error(
                    tree.at, "this is no size", f"sizes are arithmetic of symbols and {', '.join(_FUNCTIONS)}"
                )


def write_end(end: Any) -> str:
    """An end of an interval: a number, or one of the infinities."""
    for name, value in _ENDS.items():
        if end is value:
            return name
    return repr(bool(end)) if end.is_Boolean else str(end) if end.is_Integer else repr(float(end))


def read_end(tree: Tree, source: Source) -> Any:
    """What :func:`write_end` wrote."""
    match tree:
        case Name() if tree.name in _ENDS:
            return _ENDS[tree.name]
        case Literal(value=int() | float() as value):
            return sympy.sympify(value)
        case _:
            raise source.error(
                tree.at, "this is no end of an interval", f"write a number or {', '.join(_ENDS)}"
            )
