"""The grammar of the text form: from characters to a syntax tree, with the place of every part.

The parser knows nothing of torch. It reads statements, one a line, in sections that begin at the margin::

    lowbit-graph 1
    stage FLOAT

    graph self "GraphModule"
      %x: f32[2, s0] = input x
      %relu: f32[2, s0] = aten.relu.default(%x) {id: 1}
      %output = return (%relu,)

    modules
      self = graph()

Values are literals (``1``, ``-0.5``, ``inf``, ``"text"``, ``None``), ``[…]``, ``(…)``, ``{key: value}``,
nodes (``%x``), entries of tables (``#0``), names (``f32``, ``torch.channels_last``), names of Python objects
(``module:name``), calls of either (``slice(1, None, None)``), tensors (``f32[2, s0 + 1]``), and ``*``, a leaf
of a structure. ``;`` begins a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

import attrs

from ...errors import GraphTextError
from .trees import Call, Entry, Items, Leaf, Literal, Mapping, Name, NodeName, Operation, TensorType, Tree

__all__ = ["Reader", "Source"]


@attrs.frozen
class Source:
    """A text, for errors that name a place in it."""

    text: str

    def error(self, at: int, found: str, hint: str) -> GraphTextError:
        """An error at character ``at``."""
        line = self.text.count("\n", 0, at) + 1
        start = self.text.rfind("\n", 0, at) + 1
        end = self.text.find("\n", at)
        content = self.text[start : None if end < 0 else end]
        # A long line is shown around the place.
        first = max(0, at - start - 60)
        shown = content[first : first + 100]
        return GraphTextError(
            f"line {line}, column {at - start + 1}: {found}",
            where=f"{shown}\n{' ' * (at - start - first)}^",
            hint=hint,
        )


_SPACE: Final = re.compile(r"[ \t]*(?:;[^\n]*)?")
_BLANK: Final = re.compile(r"(?:[ \t]*(?:;[^\n]*)?\n)*")
_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?::[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)?")
_PATH: Final = re.compile(r"\w+(?:\.\w+)*")
_NODE: Final = re.compile(r"\w+")
_INDEX: Final = re.compile(r"\d+")
_NUMBER: Final = re.compile(r"-?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf\b)")
_STRING: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_OPERATOR: Final = re.compile(r"\*\*|//|[+*]|-(?!inf)")
_PRECEDENCE: Final = {"+": 1, "-": 1, "*": 2, "//": 2, "**": 3}
_CONSTANTS: Final = {"None": None, "True": True, "False": False, "nan": float("nan")}


class Reader:
    """Reads a text from front to back."""

    def __init__(self, text: str) -> None:
        self.source = Source(text)
        self.text = text
        self.at = 0

    def error(self, found: str, hint: str, at: int | None = None) -> GraphTextError:
        """An error here, or at ``at``."""
        return self.source.error(self.at if at is None else at, found, hint)

    # Lines.

    def skip_blank(self) -> bool:
        """Go on to the next line that is not empty; say whether there is one."""
        match = _BLANK.match(self.text, self.at)
        assert match is not None  # it matches nothing, too
        self.at = match.end()
        end = _SPACE.match(self.text, self.at)
        assert end is not None
        return end.end() < len(self.text)

    def is_indented(self) -> bool:
        """Whether the line that begins here belongs to a section."""
        return self.text.startswith(" ", self.at)

    def end_line(self) -> None:
        """Take the end of the line."""
        self._skip_space()
        if self.at < len(self.text) and self.text[self.at] != "\n":
            raise self.error(f"the line goes on with {self._ahead()}", "write one statement a line")
        self.at += 1

    # Words.

    def _skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _ahead(self) -> str:
        end = re.compile(r"[\w.]+|.|$").match(self.text, self.at)
        return repr(end[0]) if end is not None and end[0] else "its end"

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        self._skip_space()
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match[0]

    def at_end_of_line(self) -> bool:
        """Whether nothing is left of the line."""
        self._skip_space()
        return self.text[self.at : self.at + 1] in ("", "\n")

    def peek(self, character: str) -> bool:
        """Whether ``character`` is next."""
        self._skip_space()
        return self.text.startswith(character, self.at)

    def take(self, characters: str) -> bool:
        """Take ``characters`` if they are next; say whether they were."""
        if not self.peek(characters):
            return False
        self.at += len(characters)
        return True

    def expect(self, characters: str) -> None:
        """Take ``characters``."""
        if not self.take(characters):
            raise self.error(
                f"there is {self._ahead()} where {characters!r} belongs", "see lowbit.ir.text.syntax"
            )

    def word(self) -> str:
        """A word: the name of a section, a keyword."""
        found = self._take(_WORD)
        if found is None:
            raise self.error(f"there is {self._ahead()} where a word belongs", "see lowbit.ir.text.syntax")
        return found

    def dotted(self) -> str:
        """``a.b.c``, or ``module:a.b``."""
        found = self._take(_DOTTED)
        if found is None:
            raise self.error(f"there is {self._ahead()} where a name belongs", "see lowbit.ir.text.syntax")
        return found

    def path(self) -> str:
        """A dotted path of attributes, quoted when it is not made of words."""
        if self.peek('"'):
            return self.string()
        found = self._take(_PATH)
        if found is None:
            raise self.error(f"there is {self._ahead()} where a path belongs", "write it as layer.0.weight")
        return found

    def string(self) -> str:
        """Quoted text."""
        self._skip_space()
        at = self.at
        found = self._take(_STRING)
        if found is None:
            raise self.error(
                f"there is {self._ahead()} where quoted text belongs", 'write it as in JSON: "text"'
            )
        try:
            return json.loads(found)
        except ValueError as error:
            raise self.error(f"{found} is no text: {error}", "write it as in JSON", at) from error

    def node(self) -> NodeName:
        """``%name``"""
        self.expect("%")
        at = self.at - 1
        if self.peek('"'):
            return NodeName(self.string(), at)
        found = self._take(_NODE)
        if found is None:
            raise self.error(
                f"there is {self._ahead()} where the name of a node belongs", "write it as %name"
            )
        return NodeName(found, at)

    def index(self, table: str) -> Entry:
        """``#3``, an entry of a table."""
        self.expect(table)
        at = self.at - 1
        found = self._take(_INDEX)
        if found is None:
            raise self.error(f"there is {self._ahead()} where a number belongs", f"write it as {table}0")
        return Entry(table, int(found), at)

    # Values.

    def value(self) -> Tree:
        """A value."""
        self._skip_space()
        at = self.at
        reader = _VALUES.get(self.text[at : at + 1])
        if reader is not None:
            return reader(self, at)
        number = self._take(_NUMBER)
        return self._named(at) if number is None else Literal(_number(number), at)

    def _text(self, at: int) -> Tree:
        return Literal(self.string(), at)

    def _entry(self, at: int) -> Tree:
        return self.index(self.text[at])

    def _leaf(self, at: int) -> Tree:
        self.at += 1
        return Leaf(at)

    def _items(self, at: int) -> Tree:
        self.at += 1
        kind = self.text[at]
        return Items(kind, self._until("]" if kind == "[" else ")", self.value), at)

    def _named(self, at: int) -> Tree:
        name = self._take(_DOTTED)
        if name is None:
            raise self.error(f"there is {self._ahead()} where a value belongs", "see lowbit.ir.text.syntax")
        if name in _CONSTANTS:
            return Literal(_CONSTANTS[name], at)
        if self.text.startswith("(", self.at):
            return self.call(name, at)
        if self.text.startswith("[", self.at):
            self.at += 1
            shape = self._until("]", self.size)
            options = self.mapping() if self.text.startswith("{", self.at) else None
            return TensorType(Name(name, at), shape, options, at)
        return Name(name, at)

    def call(self, name: str, at: int) -> Call:
        """The arguments of a call of ``name``, which stands at ``at``."""
        self.expect("(")
        keywords: list[tuple[str, Tree]] = []

        def argument() -> Tree | None:
            self._skip_space()
            start = self.at
            key = self._keyword()
            if key is None:
                if keywords:
                    raise self.error("a value stands behind one with a keyword", "give keywords last")
                return self.value()
            if any(key == known for known, _ in keywords):
                raise self.error(f"{key} is given twice", "give it once", start)
            keywords.append((key, self.value()))
            return None

        args = tuple(a for a in self._until(")", argument) if a is not None)
        return Call(name, args, tuple(keywords), at)

    def _keyword(self) -> str | None:
        """``key`` of ``key=value``; a key that is not a word is quoted."""
        start = self.at
        if self.peek('"'):
            key: str | None = self.string()
        else:
            key = self._take(_WORD)
        if key is not None and self.take("="):
            return key
        self.at = start
        return None

    def mapping(self) -> Mapping:
        """``{key: value}``; a key may be any value, and words stand for text."""
        self.expect("{")
        at = self.at - 1

        def item() -> tuple[Tree, Tree]:
            key = self.value()
            self.expect(":")
            return key, self.value()

        return Mapping(self._until("}", item), at)

    def _until(self, end: str, item: Callable[[], Any]) -> tuple[Any, ...]:
        items: list[Any] = []
        while not self.take(end):
            if items:
                self.expect(",")
                if self.take(end):
                    break
            items.append(item())
        return tuple(items)

    # Sizes.

    def size(self, precedence: int = 1) -> Tree:
        """A size: a number, a symbol, or arithmetic of them."""
        left = self._atom()
        while True:
            self._skip_space()
            at = self.at
            operator = self._take(_OPERATOR)
            if operator is None or _PRECEDENCE[operator] < precedence:
                self.at = at
                return left
            # Powers group to the right, all others to the left.
            above = _PRECEDENCE[operator] + (operator != "**")
            left = Operation(operator, left, self.size(above), at)

    def _atom(self) -> Tree:
        if self.take("("):
            inner = self.size()
            self.expect(")")
            return inner
        self._skip_space()
        at = self.at
        number = self._take(_NUMBER)
        if number is not None:
            return Literal(_number(number), at)
        name = self.word()
        if name in ("True", "False"):
            return Literal(name == "True", at)
        if not self.take("("):
            return Name(name, at)
        return Call(name, self._until(")", self.size), (), at)


def _number(text: str) -> int | float:
    return float(text) if re.search(r"[.ef]", text) else int(text)


_VALUES: Final[dict[str, Callable[[Reader, int], Tree]]] = {
    '"': Reader._text,
    "%": lambda reader, _: reader.node(),
    "#": Reader._entry,
    "@": Reader._entry,
    "&": Reader._entry,
    "*": Reader._leaf,
    "{": lambda reader, _: reader.mapping(),
    "[": Reader._items,
    "(": Reader._items,
}
