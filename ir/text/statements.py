"""From text to statements, by sections; see :mod:`.syntax` for the grammar of values."""

from __future__ import annotations

from typing import Final

import attrs

from ..stages import Stage
from .syntax import Reader, Source
from .trees import Call, Entry, Literal, Mapping, Name, NodeName, Tree

__all__ = ["FORMAT", "GraphText", "NodeLine", "Statements", "key_of"]

FORMAT: Final = 1
"""The version of the format."""

_SECTIONS: Final = ("symbols", "specs", "modules", "tensors", "ledger", "places", "frames")


@attrs.frozen
class NodeLine:
    """A node as it is written: what it is, and what else is known of it."""

    name: NodeName
    value: Tree | None
    op: str
    target: str
    target_at: int
    call: Call
    metadata: Mapping | None


@attrs.frozen
class ModuleLine:
    """A submodule as it is written: made by ``call``, or ``same`` as an earlier one, or neither: a name that
    holds nothing. ``mode`` is "train", "eval" or None, the mode of the top."""

    path: str
    at: int
    call: Call | None
    same: str | None
    mode: str | None


@attrs.define
class GraphText:
    """A section ``graph``."""

    path: str
    class_name: str
    at: int
    nodes: list[NodeLine] = attrs.Factory(list)
    meta: list[tuple[str, Tree]] = attrs.Factory(list)
    names: Tree | None = None
    inputs: Tree | None = None
    outputs: Tree | None = None
    checked: bool = False


def key_of(tree: Tree, source: Source) -> str:
    """The key of metadata that ``tree`` is: words, or quoted text."""
    match tree:
        case Name(name=key) | Literal(value=str() as key):
            return key
        case _:
            raise source.error(tree.at, "this is no key of metadata", "write words, or quoted text")


class Statements:
    """All statements of a text, parsed but not looked at: what they refer to may come later.

    Raises:
        GraphTextError: ``text`` does not parse.
    """

    def __init__(self, text: str) -> None:
        self.reader = Reader(text)
        self.source = self.reader.source
        self.stage = Stage.FLOAT
        self.graphs: dict[str, GraphText] = {}
        self.symbols: list[tuple[str, int, Call]] = []
        self.specs: list[tuple[int, Call]] = []
        self.modules: list[ModuleLine] = []
        self.tensors: list[tuple[str, int, Call]] = []
        self.decisions: list[tuple[Call, Entry | None]] = []
        self.gone: list[tuple[Call, Entry | None]] = []
        self.places: dict[int, dict[str, Tree]] = {}
        self.frames: dict[int, str] = {}
        self._header()
        while self.reader.skip_blank():
            self._section()
        if "" not in self.graphs:
            raise self.reader.error("the text has no graph", 'write a section graph self "GraphModule"')

    def _header(self) -> None:
        read = self.reader
        read.skip_blank()
        if not read.take("lowbit-graph"):
            raise read.error("this is no graph of lowbit", "its text begins with lowbit-graph and a number")
        at = read.at
        version = read.value()
        if not isinstance(version, Literal) or version.value != FORMAT:
            shown = version.value if isinstance(version, Literal) else "unknown"
            raise read.error(
                f"the format is {shown}, and this lowbit reads {FORMAT}", "read it with its lowbit", at
            )
        read.end_line()

    def _section(self) -> None:
        read = self.reader
        if read.is_indented():
            raise read.error(
                "an indented line belongs to no section", "write the head of a section before it"
            )
        at = read.at
        name = read.word()
        if name == "stage":
            stage = read.word()
            if stage not in Stage.__members__:
                raise read.error(
                    f"there is no stage {stage}", f"stages are {', '.join(Stage.__members__)}", at
                )
            self.stage = Stage[stage]
            read.end_line()
        elif name == "graph":
            graph = GraphText(self._path(), read.string(), at)
            if graph.path in self.graphs:
                raise read.error(f"graph {graph.path or 'self'} is written twice", "write it once", at)
            self.graphs[graph.path] = graph
            read.end_line()
            while read.skip_blank() and read.is_indented():
                self._graph_line(graph)
                read.end_line()
        elif name in _SECTIONS:
            read.end_line()
            line = getattr(self, f"_{name}_line")
            while read.skip_blank() and read.is_indented():
                line()
                read.end_line()
        else:
            raise read.error(
                f"there is no section {name}", f"sections are stage, graph, {', '.join(_SECTIONS)}", at
            )

    def _path(self) -> str:
        path = self.reader.path()
        return "" if path == "self" else path

    def _graph_line(self, graph: GraphText) -> None:
        read = self.reader
        if read.peek("%"):
            graph.nodes.append(self._node_line())
            return
        at = read.at
        match read.word():
            case "names":
                graph.names = read.value()
            case "inputs":
                graph.inputs = read.value()
            case "outputs":
                graph.outputs = read.value()
            case "checked":
                graph.checked = True
            case "meta":
                name = key_of(read.value(), self.source)
                read.expect("=")
                graph.meta.append((name, read.value()))
            case other:
                hint = "it is a node, names, inputs, outputs, checked or meta"
                raise read.error(f"there is no {other!r} in a graph", hint, at)

    def _node_line(self) -> NodeLine:
        read = self.reader
        name = read.node()
        value = read.value() if read.take(":") else None
        read.expect("=")
        read.peek("")
        at = read.at
        op, target, call = self._call_line()
        metadata = read.mapping() if read.peek("{") else None
        return NodeLine(name, value, op, target, at, call, metadata)

    def _call_line(self) -> tuple[str, str, Call]:
        read = self.reader
        at = read.at
        if read.take("."):
            return "call_method", (name := read.word()), read.call(name, at)
        if read.take("self."):
            return "call_module", (path := read.path()), read.call(path, at)
        match called := read.dotted():
            case "input":
                path = read.path()
                return "placeholder", path, Call(path, (read.value(),) if read.take("=") else (), (), at)
            case "get":
                return "get_attr", (path := read.path()), Call(path, (), (), at)
            case "return":
                return "output", "output", Call("output", (read.value(),), (), at)
            case _ if read.peek("("):
                return "call_function", called, read.call(called, at)
            case _:
                raise read.error(
                    f"{called} is not called", "write target(arguments), input, get or return", at
                )

    def _symbols_line(self) -> None:
        read = self.reader
        at, name = read.at, read.word()
        read.expect("=")
        self.symbols.append((name, at, self._call_of("symbol")))

    def _call_of(self, *names: str) -> Call:
        read = self.reader
        tree = read.value()
        if not isinstance(tree, Call) or (names and tree.name not in names):
            raise read.error(
                "this line has another form", f"write {' or '.join(f'{n}(…)' for n in names)}", tree.at
            )
        return tree

    def _specs_line(self) -> None:
        entry = self.reader.index("#")
        self.reader.expect("=")
        self.specs.append((entry.index, self._call_of("quantization", "fixed")))

    def _modules_line(self) -> None:
        read = self.reader
        at, path = read.at, self._path()
        read.expect("=")
        read.peek("")
        start, name = read.at, read.dotted()
        if name == "same":
            self.modules.append(ModuleLine(path, at, None, self._path(), None))
        elif name == "none":
            self.modules.append(ModuleLine(path, at, None, None, None))
        else:
            call = read.call(name, start)
            mode = "train" if read.take("train") else "eval" if read.take("eval") else None
            self.modules.append(ModuleLine(path, at, call, None, mode))

    def _tensors_line(self) -> None:
        at, path = self.reader.at, self.reader.path()
        self.reader.expect("=")
        self.tensors.append((path, at, self._call_of("parameter", "buffer", "constant")))

    def _ledger_line(self) -> None:
        call = self._call_of("decision", "gone")
        lines = self.decisions if call.name == "decision" else self.gone
        lines.append((call, self.reader.index("@") if self.reader.peek("@") else None))

    def _places_line(self) -> None:
        read = self.reader
        entry = read.index("@")
        origins: dict[str, Tree] = {}
        while True:
            start = read.at
            read.peek("")
            if read.at_end_of_line():
                break
            name = read.word()
            read.expect("=")
            if name in origins:
                raise read.error(f"{name} is given twice", "give it once", start)
            origins[name] = read.value()
        self.places[entry.index] = origins

    def _frames_line(self) -> None:
        entry = self.reader.index("&")
        self.reader.expect("=")
        self.frames[entry.index] = self.reader.string()
