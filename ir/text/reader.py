"""From text to the graph module it was written from; see :mod:`.syntax` for the grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ...errors import GraphTextError
from ..annotation import QuantizationAnnotation
from ..attributes import find_attribute
from ..gone import GoneEntry
from ..graph_module import ExportedGraphModule
from ..ledger import Ledger, _Entry
from ..meta import ANNOTATION_KEY, LEDGER_KEY
from ..near_miss import NearMiss
from ..stages import set_stage
from .exported import Signature, read_sources, restore_checks, set_signature
from .objects import ValueReader
from .statements import GraphText, NodeLine, Statements, key_of
from .structures import read_structure
from .symbols import Interval, Symbol, read_end
from .tensors import Placement, Stored, from_stored
from .trees import Call, Entry, Items, Literal, Name, TensorType, Tree

__all__ = ["parse", "parse_around"]


def parse(text: str, tensors: Mapping[str, torch.Tensor] | None = None) -> GraphModule:
    """The graph module that ``text`` was written from.

    Code is neither evaluated nor imported: functions, classes and operators are found by name among what the
    process has loaded, so a package of observers of one's own is imported before.

    Args:
        text: what :func:`~lowbit.ir.text.to_text` returned.
        tensors: what :func:`~lowbit.ir.text.to_tensors` returned; they are copied.

    Returns:
        A graph module that runs, and goes on through passes, as the one that was written did.

    Raises:
        GraphTextError: ``text`` does not parse, or names what there is not; says line and column.
    """
    return _Builder(Statements(text), stored={} if tensors is None else tensors).build()


def parse_around(text: str, tensors: Mapping[str, torch.Tensor]) -> GraphModule:
    """As :func:`parse`, with ``tensors``, by dotted path, as they are rather than copies."""
    return _Builder(Statements(text), given=tensors).build()


class _Builder:
    """Makes everything that the statements name; of the tensors, what is ``given`` is used as it is."""

    def __init__(
        self,
        text: Statements,
        *,
        stored: Mapping[str, torch.Tensor] | None = None,
        given: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.text = text
        self.value = ValueReader(text.source)
        self.stored = {} if stored is None else stored
        self.given = given

    def build(self) -> GraphModule:
        for name, at, call in self.text.symbols:
            self.value.symbols.declare(self._symbol(name, call), at)
        for index, call in self.text.specs:
            self.value.specs[index] = self.value.read(call)
        top = self._modules()
        self._tensors(top)
        for graph in self.text.graphs.values():
            self._graph(graph)
        set_stage(top, self.text.stage)
        if self.text.decisions or self.text.gone:
            entries = [self._entry(_Entry, line) for line in self.text.decisions]
            gone = [self._entry(GoneEntry, line) for line in self.text.gone]
            top.meta[LEDGER_KEY] = Ledger.of(entries, gone)
        for path in reversed(self.text.graphs):
            module = self.value.modules[path]
            assert isinstance(module, GraphModule)
            module.recompile()
        return top

    def _symbol(self, name: str, call: Call) -> Symbol:
        words = [tree.name for tree in call.args if isinstance(tree, Name)]
        keywords = dict(call.keywords)
        lower = upper = None
        match keywords.get("range"):
            case Call(name="interval", args=(low, high)):
                lower, upper = (read_end(end, self.text.source) for end in (low, high))
            case None:
                pass
            case other:
                raise self.value.error(other, "this is no range", "write range=interval(2, int_oo)")
        hint = keywords.get("hint")
        return Symbol(
            name=name,
            assumptions=tuple(word for word in words if word != "size"),
            lower=lower,
            upper=upper,
            hint=None if hint is None else self.value.read(hint),
            is_size="size" in words,
        )

    def _modules(self) -> GraphModule:
        """Make all modules, empty, and then fill in their state, which may refer to other modules."""
        modules = self.value.modules
        states: list[tuple[torch.nn.Module, Call]] = []
        top: GraphModule | None = None
        for line in self.text.modules:
            if line.path in modules:
                raise self._error(line.at, f"submodule {line.path!r} is written twice", "write it once")
            module = None
            if line.call is not None:
                modules[line.path] = module = self._empty(line.path, line.call)
                states.append((module, line.call))
                if not line.path and isinstance(module, GraphModule):
                    top = module
                module.training = line.mode == "train" if line.mode or top is None else top.training
            elif line.same is not None:
                module = modules.get(line.same)
                if module is None:
                    raise self._error(line.at, f"there is no submodule {line.same!r}", "write it before")
            if line.path:
                owner, name = self._owner(line.path, line.at)
                owner._modules[name] = module
        if top is None:
            raise self._error(0, "the section modules has no self", "write self = graph()")
        for module, call in states:
            state = {name: self.value.read(tree) for name, tree in call.keywords}
            if isinstance(module, GraphModule):
                vars(module).update(state)
            else:
                self.value.make(call, module.__setstate__, state)
        return top

    def _error(self, at: int, found: str, hint: str) -> GraphTextError:
        return self.text.source.error(at, found, hint)

    def _owner(self, path: str, at: int) -> tuple[torch.nn.Module, str]:
        """The submodule that ``path`` leads into, and the name it has there."""
        parent, _, name = path.rpartition(".")
        owner = self.value.modules.get(parent)
        if owner is None:
            raise self._error(at, f"there is no submodule {parent!r} for it to be in", "write it before")
        return owner, name

    def _empty(self, path: str, call: Call) -> torch.nn.Module:
        if call.name in ("graph", "exported"):
            graph = self.text.graphs.get(path)
            if graph is None:
                raise self.value.error(call, f"there is no graph {path or 'self'}", "write a section for it")
            made = ExportedGraphModule if call.name == "exported" else GraphModule
            return made(torch.nn.Module(), Graph(), class_name=graph.class_name)
        kind: Any = torch.nn.Module
        if call.name != "container":
            kind = self.value.reference(call, call.name)
            if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
                raise self.value.error(call, f"{call.name} is no class of modules", "write module:Class")
        module = kind.__new__(kind)
        torch.nn.Module.__init__(module)
        return module

    # Tensors.

    def _tensors(self, top: GraphModule) -> None:
        memory: dict[str, torch.Tensor] = {}
        read: dict[str, torch.Tensor] = {}
        for path, at, call in self.text.tensors:
            owner, name = self._owner(path, at)
            tensor = self._tensor(path, call, read, memory)
            if tensor is not None:
                read[path] = tensor
            if call.name == "parameter":
                owner._parameters[name] = tensor  # pyright: ignore[reportArgumentType]
            elif call.name == "buffer":
                transient = dict(call.keywords).get("transient")
                owner.register_buffer(name, tensor, persistent=transient is None)
            else:
                vars(owner)[name] = tensor

    def _tensor(
        self, path: str, call: Call, read: dict[str, torch.Tensor], memory: dict[str, torch.Tensor]
    ) -> torch.Tensor | None:
        match call.args:
            case (Literal(value=None),):
                return None
            case (TensorType() as kind,):
                pass
            case _:
                raise self.value.error(call, "this is no tensor", f"write {call.name}(f32[2, 3])")
        if self.given is not None:
            return self.given[path]
        keywords = {name: self.value.read(tree) for name, tree in call.keywords}
        same = keywords.get("same")
        if same is not None:
            if same not in read:
                raise self.value.error(call, f"there is no tensor {same!r} before this", "write it before")
            return read[same]
        place = Placement(keywords.get("memory", path), offset=keywords.get("offset"))
        if place.key not in self.stored:
            raise self.value.error(
                call,
                f"there is no tensor {place.key!r} beside the text",
                "hand in what to_tensors returned, or the safetensors file that was saved with the text",
            )
        options = self.value.options(kind)
        stored = Stored(
            dtype=self.value.dtype(kind.dtype),
            shape=tuple(self.value.symbols.size(size) for size in kind.shape),
            strides=options.get("strides"),
            device=options.get("device", torch.device("cpu")),
        )
        tensor = self.value.make(call, from_stored, self.stored, place, stored, memory)
        grad = keywords.get("grad", call.name == "parameter")
        if call.name == "parameter":
            return torch.nn.Parameter(tensor, requires_grad=grad)
        return tensor.requires_grad_(grad)

    # Graphs.

    def _graph(self, text: GraphText) -> None:
        gm = self.value.modules.get(text.path)
        if not isinstance(gm, GraphModule):
            hint = f"write {text.path or 'self'} = graph() in the section modules"
            raise self._error(text.at, f"no submodule is the graph {text.path or 'self'}", hint)
        graph = gm.graph
        self.value.nodes = {}
        for line in text.nodes:
            self._node(gm, graph, line)
        # Annotations may refer to nodes that come later.
        for line in text.nodes:
            node = self.value.nodes[line.name.name]
            for name, tree in line.metadata.items if line.metadata is not None else ():
                self._metadata(node, key_of(name, self.text.source), tree)
        self.value.nodes = {}
        if text.names is not None and text.inputs is not None:
            outputs = None if text.outputs is None else read_structure(text.outputs, self.text.source)
            inputs = read_structure(text.inputs, self.text.source)
            set_signature(graph, Signature(tuple(self.value.read(text.names)), inputs, outputs))
        for name, tree in text.meta:
            gm.meta[name] = self.value.read(tree)
        if text.checked:
            environment = self.value.symbols.environment
            restore_checks(gm, {s: Interval(r.lower, r.upper) for s, r in environment.var_to_range.items()})

    def _node(self, gm: GraphModule, graph: Graph, line: NodeLine) -> None:
        name = line.name.name
        if name in self.value.nodes:
            raise self.value.error(
                line.name, f"there is a node %{name} already", "give each a name of its own"
            )
        target: Any = line.target
        if line.op == "call_function":
            find = self.value.reference if ":" in target else self.value.operator
            target = find(Name(target, line.target_at), target)
        elif line.op in ("get_attr", "call_module") and find_attribute(gm, target) is None:
            hint = "write it in the section tensors or modules"
            raise self._error(line.target_at, f"there is nothing at {target!r}", hint)
        args = tuple(self.value.read(a) for a in line.call.args)
        keywords = {k: self.value.read(v) for k, v in line.call.keywords}
        node = graph.create_node(line.op, target, args, keywords, name=name)
        # FX takes another name for one that Python would not; whoever gave it had a reason.
        node.name = name
        if line.value is not None:
            node.meta["val"] = self.value.read(line.value)
        self.value.nodes[name] = node

    def _metadata(self, node: Node, key: str, tree: Tree) -> None:
        if key == "at" and isinstance(tree, Entry):
            node.meta.update(self._place(tree))
        elif key == ANNOTATION_KEY:
            if not isinstance(tree, Call) or tree.name != "annotation" or tree.args:
                raise self.value.error(
                    tree, "this is no annotation", "write annotation(inputs={…}, output=…)"
                )
            fields = {k: self.value.read(v) for k, v in tree.keywords}
            names = {"inputs": "input_qspec_map", "output": "output_qspec", "annotated": "_annotated"}
            renamed = {names.get(k, k): v for k, v in fields.items()}
            node.meta[key] = self.value.make(tree, QuantizationAnnotation, **renamed)
        else:
            node.meta[key] = self.value.read(tree)

    # Where nodes come from.

    def _place(self, entry: Entry) -> dict[str, Any]:
        if entry.index not in self.text.places:
            raise self.value.error(
                entry, f"there is no place @{entry.index}", "write it down in the section places"
            )
        origins: dict[str, Any] = {}
        for name, tree in self.text.places[entry.index].items():
            if name == "stack_trace" and isinstance(tree, Items):
                origins[name] = "".join(map(self._frame, tree.items))
            elif name == "from_node":
                origins[name] = self.value.make(tree, read_sources, self.value.read(tree))
            else:
                origins[name] = self.value.read(tree)
        return origins

    def _frame(self, tree: Tree) -> str:
        if not isinstance(tree, Entry) or tree.table != "&" or tree.index not in self.text.frames:
            raise self.value.error(tree, "this is no frame", "write &0, an entry of the section frames")
        return self.text.frames[tree.index]

    def _entry(self, kind: type, line: tuple[Call, Entry | None]) -> Any:
        """An entry of the ledger, with where its operator comes from."""
        call, place = line
        fields = {k: self.value.read(v) for k, v in call.keywords}
        if "nearest" in fields:
            fields["nearest"] = self.value.make(call, lambda: NearMiss(*fields["nearest"]))
        origin = {} if place is None else self._place(place)
        return self.value.make(call, kind, **fields, origin=origin)
